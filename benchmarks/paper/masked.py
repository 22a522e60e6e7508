"""Task 1, masked pretraining: how well hidden parts of held-out images are filled in, and how well images are made.

Two protocols: "raw", what the network puts out, as the paper has it, and "pasted", the known pixels put back.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import LearnedSimilarity, frechet_distance, peak_signal_to_noise
from mmdiff_pipelines.modalities.masked_image import random_visibility

from .data import hole_channels, to_pixels
from .pictures import COLUMNS, draw_sheet
from .sampling import (
    check_size,
    conditioned,
    plain,
    repaint,
    sample_ddpm,
    sample_pipeline,
    single_call,
    single_joint_call,
    to_unit,
)
from .scores import Judge, Rows


LEVELS = (0.10, 0.25, 0.50, 0.75)
SHOWN_LEVEL = 0.50
HELD_OUT = 500
FEW_STEPS = 3
DRAWS = 4  # independent reconstructions that are averaged
REPAINT_RATIO = 2.5  # ancestral steps of RePaint, before its jumps back, for each step of the solver
Reconstruct = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Reconstructions:
    """Scores of reconstructions of the first held-out images, by any method."""

    def __init__(self, judge: Judge, similarity: LearnedSimilarity):
        self.judge, self.similarity = judge, similarity
        self.pixels = to_pixels(judge.test["image"][: min(HELD_OUT, judge.num_samples)])
        self.images = self.pixels / 2 + 0.5
        shown, visible = self.images[:COLUMNS], self.visibility(SHOWN_LEVEL)[:COLUMNS]
        self.lines = [shown, shown * visible]  # of the picture

    def visibility(self, level: float) -> torch.Tensor:
        """(n, 1, 32, 32), a share of `level` hidden; the same for all methods."""
        generator = torch.Generator().manual_seed(round(100 * level))
        return random_visibility(len(self.pixels), *self.pixels.shape[2:], level, level, generator=generator)

    def score(self, images: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            lpips = self.similarity(images, self.images).mean().item()
        real = self.judge.real_features("held-out", self.images)
        return {
            "lpips": lpips,
            "psnr": peak_signal_to_noise(images, self.images),
            "fd": frechet_distance(self.judge.features(images), real),
        }

    def add(self, rows: Rows, method: str, reconstruct: Reconstruct, raw: bool = True, draws: int = 1) -> None:
        """Rows of one method at all levels.

        Args:
            reconstruct: (images (n, C, H, W) in [-1, 1], visibility) -> the same, whole.
            raw: else it keeps the known pixels itself.
            draws: reconstructions whose mean is taken.
        """
        for level in LEVELS:
            name, output = f"{method}, {level:.0%} hidden", []

            def images(pasted: bool, level: float = level, output: list = output) -> torch.Tensor:
                visible = self.visibility(level)
                output or output.append(self._mean(reconstruct, visible, draws))  # once for both protocols
                return to_unit(torch.where(visible > 0, self.pixels, output[0]) if pasted else output[0])

            if raw:
                rows.add(f"{name}, raw", lambda images=images: self.score(images(False)))
            rows.add(f"{name}, pasted", lambda images=images: self.score(images(True)))
            if level == SHOWN_LEVEL and output:
                self.lines.append(images(True)[:COLUMNS])

    def _mean(self, reconstruct: Reconstruct, visible: torch.Tensor, draws: int) -> torch.Tensor:
        """Of draws that differ in their noise: which noise a row has goes by its place."""
        total = torch.zeros_like(self.pixels)
        for draw in range(draws):
            total += reconstruct(self.pixels.roll(draw, 0), visible.roll(draw, 0)).roll(-draw, 0).clamp(-1, 1)
        return total / draws


def score_joint(
    pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, held_out: Reconstructions, generates: bool
) -> None:
    check_size(pipeline, judge.images)
    hole = pipeline.unet.modality_modules["hole"]

    def inputs(pixels: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
        return torch.cat([pixels * visibility, visibility], dim=1)

    def fill_in(steps: int, imposed: bool) -> Reconstruct:
        def reconstruct(pixels: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
            hole.constrains_anchor = imposed
            known = {"hole": inputs(pixels, visibility)}
            return sample_pipeline(pipeline, len(pixels), known, num_inference_steps=steps)["image"] * 2 - 1

        return reconstruct

    steps = f"{judge.num_steps} steps"
    held_out.add(rows, "one call", lambda p, v: single_joint_call(pipeline, inputs(p, v)))
    held_out.add(rows, steps, fill_in(judge.num_steps, imposed=False))
    held_out.add(rows, f"{FEW_STEPS} steps, imposed", fill_in(FEW_STEPS, imposed=True), raw=False)
    held_out.add(rows, f"{steps}, imposed", fill_in(judge.num_steps, imposed=True), raw=False)
    many = f"{steps}, imposed, mean of {DRAWS}"
    held_out.add(rows, many, fill_in(judge.num_steps, imposed=True), raw=False, draws=DRAWS)
    if generates:
        rows.add("generation", lambda: generation(pipeline, judge))


def generation(pipeline: MultimodalMultitaskPipeline, judge: Judge) -> dict[str, float]:
    """Images with nothing given."""
    samples = sample_pipeline(pipeline, judge.num_samples, outputs=[], num_inference_steps=judge.num_steps)
    return judge.quality(judge.features(samples["image"]))


@torch.no_grad()
def score_regression(model: nn.Module, rows: Rows, held_out: Reconstructions) -> None:
    held_out.add(rows, "one call", lambda p, v: model(hole_channels(p, v), 0).sample)


def score_mask_conditioned(model: nn.Module, rows: Rows, judge: Judge, held_out: Reconstructions) -> None:
    def fill_in(steps: int) -> Reconstruct:
        def reconstruct(pixels: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
            denoise = conditioned(model, hole_channels(pixels, visibility))
            return sample_ddpm(denoise, pixels.shape[1:], len(pixels), steps)

        return reconstruct

    steps = f"{judge.num_steps} steps"
    held_out.add(rows, "one call", lambda p, v: single_call(model, hole_channels(p, v)))
    held_out.add(rows, steps, fill_in(judge.num_steps))
    held_out.add(rows, f"{FEW_STEPS} steps", fill_in(FEW_STEPS), raw=False)
    held_out.add(rows, f"{steps}, mean of {DRAWS}", fill_in(judge.num_steps), raw=False, draws=DRAWS)


def score_ddpm(model: nn.Module, rows: Rows, judge: Judge, held_out: Reconstructions) -> None:
    held_out.add(rows, "RePaint", lambda p, v: repaint(model, p, v, round(REPAINT_RATIO * judge.num_steps)), raw=False)
    rows.add("generation", lambda: ddpm_quality(model, judge))


def ddpm_quality(model: nn.Module, judge: Judge) -> dict[str, float]:
    """Images of the plain DDPM."""
    images = to_unit(sample_ddpm(plain(model), judge.images.shape[1:], judge.num_samples, judge.num_steps))
    return judge.quality(judge.features(images))


def score(
    name: str, model, rows: Rows, judge: Judge, similarity: LearnedSimilarity, pictures: Path, generates: bool
) -> None:
    """All rows of an arm of this task, and a picture of held-out images, what is left of them, and each method."""
    held_out = Reconstructions(judge, similarity)
    if isinstance(model, MultimodalMultitaskPipeline):
        score_joint(model, rows, judge, held_out, generates)
    elif name == "mask_conditioned":
        score_mask_conditioned(model, rows, judge, held_out)
    elif name == "ddpm":
        score_ddpm(model, rows, judge, held_out)
    else:
        score_regression(model, rows, held_out)
    if len(held_out.lines) > 2:
        draw_sheet(held_out.lines, pictures / f"{rows.path.stem}, {SHOWN_LEVEL:.0%} hidden.png")
