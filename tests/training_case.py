"""A tiny dataset and a tiny run, for the tests of training."""

import datasets
import numpy as np
import PIL.Image
from accelerate.state import AcceleratorState, GradientState

from mmdiff_pipelines.training import parse_args, train


ANIMALS = ["cat", "dog", "owl"]
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=ANIMALS), "mask": datasets.Image()}
)
TRUNK = (
    "--resolution 16 --block_out_channels 8 16 --layers_per_block 1 --norm_num_groups 4 --attention_head_dim 8 "
    "--train_batch_size 8 --learning_rate 1e-2 --lr_warmup_steps 2 --report_to none"
).split()
MODALITIES = "--modality label:categorical --modality mask:segmentation:num_classes=2".split()


def example(i: int, size: int = 16) -> dict:
    """A bright square whose place and size tell the label; its mask."""
    label = i % len(ANIMALS)
    random = np.random.default_rng(i)
    mask = np.zeros((size, size), np.uint8)
    y, x = random.integers(0, size // 2, 2)
    side = size // 4 + label * size // 8
    mask[y : y + side, x : x + side] = 1
    image = np.clip(mask * 200 + random.integers(0, 40, mask.shape), 0, 255).astype(np.uint8)
    return {"image": PIL.Image.fromarray(image), "label": label, "mask": PIL.Image.fromarray(mask)}


def build_dataset(rows: int = 36, size: int = 16) -> datasets.Dataset:
    return datasets.Dataset.from_list([example(i, size) for i in range(rows)], features=FEATURES)


def save_dataset(folder, rows: int = 36, size: int = 16) -> str:
    path = str(folder / "data")
    build_dataset(rows, size).save_to_disk(path)
    return path


def reset_accelerate() -> None:
    """Accelerate keeps its settings for the life of a process; every run of a test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(*arguments) -> None:
    reset_accelerate()
    train(parse_args([*TRUNK, *map(str, arguments)]))
