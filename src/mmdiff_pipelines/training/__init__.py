"""Training: one entry for every task. Needs the extra `training` (accelerate, datasets, transformers)."""

from .arguments import parse_args
from .loop import Trainer, train
from .objective import MultitaskObjective


__all__ = ["MultitaskObjective", "Trainer", "parse_args", "train"]
