"""Samples of joint pipelines and of the baselines, with fixed seeds and the same solver. Images go out in [0, 1]."""

from collections.abc import Callable, Iterator

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, RePaintScheduler
from evaluate import SOLVER
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline, Presence


BATCH_SIZE = 250
LAST_TIMESTEP = 999
JUMP_LENGTH, JUMP_SAMPLES = 5, 3  # of RePaint
Denoise = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]  # z_t, t, the rows that are sampled -> the noise


def batches(num_samples: int) -> Iterator[tuple[slice, torch.Generator]]:
    for start in range(0, num_samples, BATCH_SIZE):
        yield slice(start, min(start + BATCH_SIZE, num_samples)), torch.Generator().manual_seed(1000 + start)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clipped."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def check_size(pipeline: MultimodalMultitaskPipeline, images: torch.Tensor) -> None:
    """See that images (n, C, H, W) are of the size that a checkpoint makes.

    Raises:
        ValueError: naming both sizes.
    """
    size = pipeline.unet.config.sample_size
    made = (pipeline.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    if tuple(images.shape[1:]) != made:
        raise ValueError(f"the data are of {tuple(images.shape[1:])} (C, H, W), and the checkpoint makes {made}.")


def sample_pipeline(
    pipeline: MultimodalMultitaskPipeline, num_samples: int, given: dict[str, torch.Tensor] | None = None, **arguments
) -> dict[str, torch.Tensor]:
    """Everything that a pipeline puts out, "image" among it; class probabilities as "<name>_probabilities"."""
    parts: list[dict[str, torch.Tensor]] = []
    for rows, generator in batches(num_samples):
        known = {name: list(values[rows]) for name, values in (given or {}).items()}
        output = pipeline(
            given=known, batch_size=rows.stop - rows.start, generator=generator, output_type="pt", **arguments
        )
        probabilities = {f"{name}_probabilities": values for name, values in output.confidences.items()}
        parts.append({"image": output.images, **output.modalities, **probabilities})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def sample_ddpm(denoise: Denoise, shape: tuple[int, int, int], num_samples: int, num_steps: int) -> torch.Tensor:
    """Samples (n, *shape) of SDE-DPM-Solver++, as they come: in [-1, 1] or about."""
    scheduler = DPMSolverMultistepScheduler(**SOLVER)
    done = []
    for rows, generator in batches(num_samples):
        z = torch.randn(rows.stop - rows.start, *shape, generator=generator)
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            z = scheduler.step(denoise(z, t, rows), t, z, generator=generator).prev_sample
        done.append(z)
    return torch.cat(done)


def noise_in(z: torch.Tensor, t: torch.Tensor, output: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """The noise in z_t, by what a network puts out: noise itself, or v."""
    if prediction_type == "epsilon":
        return output
    alpha_bar = DDPMScheduler().alphas_cumprod[t]
    return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * z


def plain(model: nn.Module) -> Denoise:
    return lambda z, t, rows: noise_in(z, t, model(z, t).sample, model.prediction_type)


def conditioned(model: nn.Module, condition: torch.Tensor) -> Denoise:
    """On channels (n, c, H, W) beside z_t."""

    def denoise(z: torch.Tensor, t: torch.Tensor, rows: slice) -> torch.Tensor:
        return noise_in(z, t, model(torch.cat([z, condition[rows]], dim=1), t).sample, model.prediction_type)

    return denoise


def guided(model: nn.Module, labels: torch.Tensor, null_class: int, scale: float) -> Denoise:
    """On class labels (n,), with classifier-free guidance where `scale` is not 1."""

    def denoise(z: torch.Tensor, t: torch.Tensor, rows: slice) -> torch.Tensor:
        output = model(z, t, class_labels=labels[rows]).sample
        if scale != 1:
            free = model(z, t, class_labels=torch.full_like(labels[rows], null_class)).sample
            output = free + scale * (output - free)
        return noise_in(z, t, output, model.prediction_type)

    return denoise


@torch.no_grad()
def repaint(model: nn.Module, images: torch.Tensor, visibility: torch.Tensor, num_steps: int) -> torch.Tensor:
    """RePaint (Lugmayr et al. 2022) with a plain DDPM.

    Args:
        images: (n, C, H, W) in [-1, 1], of which only what is visible is used.
        visibility: (n, 1, H, W), 1 where known.
    """
    scheduler, denoise, done = RePaintScheduler(eta=1.0, clip_sample=True), plain(model), []
    for rows, generator in batches(len(images)):
        known, shown = images[rows] * visibility[rows], visibility[rows]
        z = torch.randn(known.shape, generator=generator)
        length = min(JUMP_LENGTH, num_steps - 1)
        scheduler.set_timesteps(num_steps, jump_length=length, jump_n_sample=JUMP_SAMPLES)
        last = scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < last:
                z = scheduler.step(denoise(z, t, rows), t, z, known, shown, generator).prev_sample
            else:
                z = scheduler.undo_step(z, last, generator)
            last = t
        done.append(z)
    return torch.cat(done)


@torch.no_grad()
def single_call(model: nn.Module, holes: torch.Tensor) -> torch.Tensor:
    """What a mask-conditioned DDPM of v says of the image at t = T."""
    scheduler = DDPMScheduler(prediction_type=model.prediction_type)
    done = []
    for rows, generator in batches(len(holes)):
        hole = holes[rows]
        z = torch.randn(len(hole), hole.shape[1] - 1, *hole.shape[2:], generator=generator)
        output = model(torch.cat([z, hole], dim=1), LAST_TIMESTEP).sample
        done.append(scheduler.step(output, LAST_TIMESTEP, z, generator=generator).pred_original_sample)
    return torch.cat(done)


@torch.no_grad()
def single_joint_call(pipeline: MultimodalMultitaskPipeline, inputs: torch.Tensor) -> torch.Tensor:
    """What a joint model says of the image at t = T, the masked image (n, C + 1, H, W) given as "hole"."""
    unet, scheduler, done = pipeline.unet, pipeline.scheduler, []
    for rows, generator in batches(len(inputs)):
        encodings = unet.encode({"hole": inputs[rows]})
        z = torch.randn(encodings["hole"].shape, generator=generator)
        states = {"hole": torch.full((len(z),), int(Presence.GIVEN))}
        output = unet(z, LAST_TIMESTEP, encodings=encodings, states=states).sample
        timesteps = torch.full((len(z),), LAST_TIMESTEP)
        done.append(scheduler.predict_original(output, timesteps, z, encodings))
    return torch.cat(done)
