"""What one process of a run on two does; started by test_distributed.py, with the folder of the test as its argument."""

import os
import signal
import sys
from pathlib import Path

import datasets
import torch

from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.components import build_components
from mmdiff_pipelines.training.loop import Trainer, build_accelerator, train

from .training_case import FEATURES, MODALITIES, TRUNK, example


ROWS, PROCESSES, GLOBAL_BATCH = 32, 2, 8
STEPS, CHECKPOINT, DEATH = 6, 2, 3
OPTIONS = [
    *TRUNK, *MODALITIES, "--modality", "hole:masked_image", "--random_flip", "--max_train_steps", str(STEPS),
    "--lr_scheduler", "constant", "--learning_rate", "1e-3", "--use_ema", "--checkpointing_steps", str(CHECKPOINT),
]  # fmt: skip


def build_rows(without_annotation: int | None = None) -> list[dict]:
    """Rows that lack both annotations wherever the first epoch hands them to one of the processes."""
    rows = [example(i) for i in range(ROWS)]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    share = GLOBAL_BATCH // PROCESSES
    for position, row in enumerate(order.tolist()):
        if position // share % PROCESSES == without_annotation:
            rows[row] |= {"label": None, "mask": None}
    return rows


def save_data(folder: Path) -> None:
    for name, without_annotation in (("complete", None), ("missing", 1)):
        data = datasets.Dataset.from_list(build_rows(without_annotation), features=FEATURES)
        data.save_to_disk(folder / name)


def arguments(folder: Path, data: str, processes: int, *more: str) -> list[str]:
    return [
        *OPTIONS, "--train_data_dir", str(folder / data), "--train_batch_size", str(GLOBAL_BATCH // processes),
        "--output_dir", str(folder / f"run-{processes}"), *more,
    ]  # fmt: skip


def one_step(folder: Path, data: str, processes: int) -> dict:
    """The gradients of the first step, before they are clipped, the weights after it, and what it logs."""
    args = parse_args(arguments(folder, data, processes))
    accelerator = build_accelerator(args)
    torch.manual_seed(0)
    trainer = Trainer(args, accelerator, build_components(args))
    clip_gradients, result = Trainer._clip_gradients, {}

    def record(self):
        result["gradients"] = {name: p.grad.clone() for name, p in self.unet.named_parameters() if p.requires_grad}
        clip_gradients(self)

    Trainer._clip_gradients = record
    batches = trainer.batches()
    result["logs"] = trainer.optimization_step(batches)
    Trainer._clip_gradients = clip_gradients
    result["weights"] = {name: p.detach().clone() for name, p in trainer.unet.named_parameters()}
    return result


def die_at(step: int, folder: Path) -> None:
    """Let the last process be killed there, as by a machine that fails."""
    optimization_step = Trainer.optimization_step

    def killed(self, batches):
        if self.progress.step == step and self.accelerator.process_index == PROCESSES - 1:
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return optimization_step(self, batches)

    Trainer.optimization_step = killed


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    for data in ("complete", "missing"):
        torch.save(one_step(folder, data, PROCESSES), folder / f"{data}-{rank}.pt")
    die_at(DEATH, folder)
    train(parse_args(arguments(folder, "complete", PROCESSES)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
