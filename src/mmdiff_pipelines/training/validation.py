"""Samples in the course of training, as one picture: a column for each, the image above its aligned maps."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from accelerate import Accelerator

from ..modalities import MaskedImageModality
from ..pipelines import MultimodalMultitaskPipeline


MIN_CELL = 96  # pixels, that captions can be read
CAPTION = 12  # pixels


def sample_grid(
    pipeline: MultimodalMultitaskPipeline, num_images: int, num_inference_steps: int, seed: int
) -> PIL.Image.Image:
    """Sample everything jointly and draw it."""
    pipeline.set_progress_bar_config(disable=True)
    device = pipeline.unet.device
    output = pipeline(
        batch_size=num_images,
        num_inference_steps=num_inference_steps,
        generator=[torch.Generator(device).manual_seed(seed + i) for i in range(num_images)],
    )
    modules = pipeline.unet.modality_modules
    pictures = [output.images]
    captions: list[list[str]] = [[] for _ in range(num_images)]
    for name, values in output.modalities.items():
        if modules[name].spatial and not isinstance(modules[name], MaskedImageModality):
            pictures.append(values)
        elif modules[name].discrete:
            for caption, value in zip(captions, values, strict=True):
                caption.append(str(value))
    return draw_grid(pictures, [", ".join(caption) for caption in captions])


def draw_grid(pictures: list, captions: list[str]) -> PIL.Image.Image:
    """Rows of pictures, scaled up to be seen, over a line of captions."""
    first = as_picture(pictures[0][0])
    factor = max(1, math.ceil(MIN_CELL / first.width))
    width, height = first.width * factor, first.height * factor
    grid = PIL.Image.new("RGB", (width * len(captions), height * len(pictures) + CAPTION), "white")
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            scaled = as_picture(picture).resize((width, height), PIL.Image.Resampling.NEAREST)
            grid.paste(scaled, (j * width, i * height))
    draw = PIL.ImageDraw.Draw(grid)
    for j, caption in enumerate(captions):
        draw.text((j * width + 2, height * len(pictures)), caption, fill="black")
    return grid


def as_picture(value) -> PIL.Image.Image:
    """A PIL image, or an array (H, W[, C]) in [0, 1] of any number of channels, of which the first three are shown."""
    if isinstance(value, PIL.Image.Image):
        return value.convert("RGB")
    array = value[..., :3] if value.ndim == 3 and value.shape[-1] >= 3 else value.reshape(*value.shape[:2], -1)[..., 0]
    return PIL.Image.fromarray((array * 255).round().astype("uint8")).convert("RGB")


def write_grid(grid: PIL.Image.Image, output_dir: Path, step: int, accelerator: Accelerator) -> None:
    """Write samples/step-NNNNNN.png, and show it to the trackers."""
    folder = output_dir / "samples"
    folder.mkdir(exist_ok=True)
    grid.save(folder / f"step-{step:06d}.png")
    for tracker in accelerator.trackers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"samples": np.asarray(grid)[None]}, step=step, **options)
