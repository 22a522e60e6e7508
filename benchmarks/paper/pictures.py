"""Sheets of what the arms generate, to look at beside the tables.

Pictures that show images of the data, reconstructions and nearest training scenes, stay in the folder of the runs.
"""

import colorsys
from pathlib import Path

import PIL.Image
import torch
from baselines import NULL_CLASS
from diffusers.utils import make_image_grid
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import as_rgb, tensor_to_image
from mmdiff_pipelines.modalities.masked_image import random_visibility

from .data import NUM_SCENE_CLASSES, one_hot_channels
from .sampling import Denoise, conditioned, guided, plain, sample_ddpm, sample_pipeline, to_unit
from .scores import Judge


COLUMNS = 10
SCALES = (1.0, 2.0)
ZOOM = 2


def draw_sheet(lines: list[torch.Tensor], path: Path) -> None:
    """One line for each list of images (n, 1 or 3, H, W) in [0, 1]."""
    cells = [tensor_to_image(image) for line in lines for image in as_rgb(line)]
    size = (ZOOM * cells[0].width, ZOOM * cells[0].height)
    cells = [cell.resize(size, PIL.Image.Resampling.NEAREST) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(cells, len(lines), len(lines[0])).save(path)


def color_masks(masks: torch.Tensor) -> torch.Tensor:
    """(n, H, W) classes -> (n, 3, H, W), a hue each."""
    hues = [colorsys.hsv_to_rgb(k / NUM_SCENE_CLASSES, 0.8, 1.0) for k in range(NUM_SCENE_CLASSES)]
    return torch.tensor(hues)[masks].movedim(-1, 1)


def joint_lines(pipeline: MultimodalMultitaskPipeline, judge: Judge) -> list[torch.Tensor]:
    """Of the ten labels, where there are labels; with the masks, where there are masks; with half of it filled in anew."""

    def sample(count: int, given: dict[str, torch.Tensor] | None = None, **arguments) -> dict[str, torch.Tensor]:
        return sample_pipeline(pipeline, count, given, num_inference_steps=judge.num_steps, **arguments)

    modalities = pipeline.unet.modality_modules
    if "label" in modalities:
        labels = {"label": torch.arange(COLUMNS)}
        return [sample(COLUMNS, labels, guidance_scale=scale)["image"] for scale in SCALES]
    if "mask" in modalities:
        pairs = sample(COLUMNS)
        return [pairs["image"], color_masks(pairs["mask"])]
    if "hole" in modalities:
        images = sample(COLUMNS)["image"]
        visible = random_visibility(COLUMNS, *images.shape[2:], 0.5, 0.5, generator=torch.Generator().manual_seed(0))
        holes = torch.cat([(images * 2 - 1) * visible, visible], dim=1)
        return [images, images * visible, sample(COLUMNS, {"hole": holes})["image"]]
    return list(sample(2 * COLUMNS)["image"].split(COLUMNS))


@torch.no_grad()
def baseline_lines(name: str, model: nn.Module, judge: Judge) -> list[torch.Tensor]:
    """Of a baseline the same; none of one that generates nothing."""

    def sample(denoise: Denoise, count: int = COLUMNS, channels: int = 0) -> torch.Tensor:
        shape = (channels or judge.images.shape[1], *judge.images.shape[2:])
        return to_unit(sample_ddpm(denoise, shape, count, judge.num_steps))

    if name.startswith("ddpm") or name == "fashion_ddpm":
        return list(sample(plain(model), 2 * COLUMNS).split(COLUMNS))
    if name.startswith("class_conditional"):
        return [sample(guided(model, torch.arange(COLUMNS), NULL_CLASS, scale)) for scale in SCALES]
    if name == "mask_to_image":
        masks = one_hot_channels(judge.test["mask"][:COLUMNS])
        return [sample(conditioned(model, masks), len(masks))]
    if name == "concatenated":
        pairs = sample(plain(model), channels=3 + NUM_SCENE_CLASSES)
        return [pairs[:, :3], color_masks(pairs[:, 3:].argmax(1))]
    return []


def draw(name: str, model: MultimodalMultitaskPipeline | nn.Module, judge: Judge, path: Path) -> None:
    """The sheet of an arm, if it generates anything."""
    joint = isinstance(model, MultimodalMultitaskPipeline)
    if lines := joint_lines(model, judge) if joint else baseline_lines(name, model, judge):
        draw_sheet(lines, path)
