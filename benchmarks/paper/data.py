"""The prepared datasets as tensors, decoded once."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import load_from_disk

from mmdiff_pipelines.evaluation import Projection
from mmdiff_pipelines.training.augmentation import crop_rows, flip_rows


SIZES = {"cifar10": (32, 32), "fashion_mnist": (32, 32), "camvid": (48, 64)}  # height and width
PROJECTION = "projection.safetensors"  # of the embeddings of CIFAR-10
CROP_MARGIN = 4  # CamVid is cut at random out of a little more
NUM_SCENE_CLASSES, IGNORED = 11, 255
Batch = dict[str, torch.Tensor]


def load_arrays(folder: Path, split: str, size: tuple[int, int], limit: int | None = None) -> Batch:
    """image (n, C, H, W) uint8, and what there is of label (n,), mask (n, H, W) and embedding (n, d).

    Args:
        limit: take so many rows, at random but always the same.

    Raises:
        FileNotFoundError: if the data have not been prepared.
    """
    if not (folder / "dataset_dict.json").is_file():
        raise FileNotFoundError(f"there are no prepared data in {folder}; see examples/{folder.name}/prepare.py.")
    rows = load_from_disk(str(folder))[split]
    if limit is not None and limit < len(rows):
        rows = rows.shuffle(seed=0).select(range(limit))
    images = stack(rows["image"], size, PIL.Image.Resampling.BILINEAR)
    arrays = {"image": images.movedim(-1, 1).contiguous() if images.ndim == 4 else images[:, None]}
    if "mask" in rows.features:
        arrays["mask"] = stack(rows["mask"], size, PIL.Image.Resampling.NEAREST).long()
    if "label" in rows.features:
        arrays["label"] = torch.tensor(rows["label"])
    if "embedding" in rows.features:
        arrays["embedding"] = torch.tensor(np.asarray(rows.with_format("numpy")["embedding"]))
    return arrays


def embedding_dim(folder: Path, default: int = 64) -> int:
    """Numbers in an embedding of the prepared CIFAR-10; the default of its script where it has none."""
    if not (folder / PROJECTION).is_file():
        return default
    return len(Projection.load(folder / PROJECTION).components)


def stack(images: list[PIL.Image.Image], size: tuple[int, int], method: PIL.Image.Resampling) -> torch.Tensor:
    """(n, H, W[, C]) uint8, scaled as in training."""
    return torch.from_numpy(np.stack([np.asarray(PIL.ImageOps.fit(i, size[::-1], method)) for i in images]))


def load_training_arrays(data_dir: Path, name: str, limit: int | None = None) -> Batch:
    """The training split, with the margin of random crops; see `load_arrays`."""
    height, width = SIZES[name]
    margin = CROP_MARGIN if name == "camvid" else 0
    return load_arrays(data_dir / name, "train", (height + margin, width + margin), limit)


def augment_scenes(batch: Batch, generator: torch.Generator) -> Batch:
    """Flip and cut image and mask alike, as the training entry does."""
    flipped = torch.rand(len(batch["image"]), generator=generator) < 0.5
    draws = torch.rand(len(batch["image"]), 2, generator=generator)
    return {name: crop_rows(flip_rows(values, flipped), draws, SIZES["camvid"]) for name, values in batch.items()}


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


def one_hot_channels(masks: torch.Tensor) -> torch.Tensor:
    """(B, H, W) -> (B, 11, H, W) of -1 and 1; 0 where nothing is annotated."""
    annotated = (masks != IGNORED)[:, None]
    classes = torch.where(masks == IGNORED, 0, masks)
    channels = torch.nn.functional.one_hot(classes, NUM_SCENE_CLASSES).movedim(-1, 1).float() * 2 - 1
    return channels * annotated


def hole_channels(pixels: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) and what is visible of them (B, 1, H, W) -> (B, C + 1, H, W), hidden pixels 0."""
    return torch.cat([pixels * visibility, 2 * visibility - 1], dim=1)
