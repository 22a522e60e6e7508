"""How heavy is the loss of a modality beside that of the image, what does its weight do, and is a given value used?

    python benchmarks/task_weights.py runs/label_0.1 runs/label_0.01 --data_dir data/cifar10 --ddpm runs/paper/ddpm_epsilon-0

prints a row for each run of `examples/train_multimodal.py` with one modality, a label, mask, embedding or text:

- gradient: norm of that of the weighted loss of the modality in the trunk, divided by that of the image's; RMS over
  batches of the training data, in the run's own settings;
- t = 5, 50, ...: squared error of the noise on held-out images, whatever the target, the modality absent;
- given, wrong, joint: the same at t = 400, the modality given, that of another image given, and noised along;
- read: the loss of the modality when the image is given, on the same images.
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from diffusers import DDPMScheduler


sys.path.insert(0, str(Path(__file__).parent / "fashion_mnist"))

from paper.arms import make_arms
from paper.data import SIZES, Batch, load_arrays, load_training_arrays, to_pixels
from paper.sampling import plain
from paper.training import load_arm

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalMultitaskPipeline, Presence, multitask_loss
from mmdiff_pipelines.training.arguments import parse_args as parse_training_args
from mmdiff_pipelines.training.components import task_weights
from mmdiff_pipelines.training.embeddings import FrozenEncoder
from mmdiff_pipelines.training.modality_options import ModalityOption
from mmdiff_pipelines.training.states import assign_states, draw_step


TIMESTEPS = (5, 50, 200, 400, 600, 800)
CONDITIONED_AT = 400
NUM_IMAGES, BATCHES = 1000, 24
PLAIN_ARMS = ("ddpm", "ddpm_epsilon", "fashion_ddpm")


def settings_of(run: Path) -> argparse.Namespace:
    """The options that a run was trained with."""
    words = shlex.split(json.loads((run / "training.json").read_text())["command"])
    script = next(place for place, word in enumerate(words) if word.endswith("train_multimodal.py"))
    return parse_training_args(words[script + 1 :])


def gradient_ratio(
    pipe: MultimodalMultitaskPipeline, name: str, weight: float, settings: argparse.Namespace, data: Batch
) -> float:
    """Norm of the gradient of a modality's weighted loss in the trunk, in that of the image's; RMS over batches."""
    unet, generator = pipe.unet.requires_grad_(True), torch.Generator().manual_seed(0)
    scheduler = MultimodalDDPMScheduler.from_config(pipe.scheduler.config)
    trunk = [parameter for key, parameter in unet.named_parameters() if not key.startswith("modality_modules")]
    squares = {"image": 0.0, name: 0.0}
    size, shape = settings.train_batch_size, (unet.total_channels, *data["image"].shape[2:])
    for _ in range(BATCHES):
        rows = torch.randint(len(data["image"]), (size,), generator=generator)
        draws = draw_step(generator, size, shape, scheduler.config.num_train_timesteps, 1)
        present = torch.ones(size, dtype=torch.bool)
        states = assign_states(draws, {name: present}, {name: True}, settings.perception_share, settings.state_shares)
        inputs = {"image": to_pixels(data["image"][rows]), name: data[name][rows]}
        terms = multitask_loss(
            unet, scheduler, inputs, draws.timesteps, draws.noise, states, snr_gamma=settings.snr_gamma
        ).terms
        for task, scale in {"image": 1.0, name: weight}.items():
            gradients = torch.autograd.grad(
                scale * terms[task].mean(), trunk, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            squares[task] += sum(gradient.square().sum().item() for gradient in gradients)
    return (squares[name] / squares["image"]) ** 0.5


@torch.no_grad()
def held_out_losses(pipe: MultimodalMultitaskPipeline, name: str, data: Batch) -> list[float]:
    """The image's at each of TIMESTEPS with the modality absent, then with it given, with that of the next image given
    and with it joint at one of them; last the modality's with the image given. A few of the next images have the same.
    """
    scheduler = MultimodalDDPMScheduler.from_config(pipe.scheduler.config)
    pixels = to_pixels(data["image"])

    def loss(task: str, timestep: int, image: Presence, modality: Presence, wrong: bool = False) -> float:
        inputs = {"image": pixels, name: data[name].roll(1, 0) if wrong else data[name]}
        noise = noise_at(timestep, len(data["image"]), (pipe.unet.total_channels, *data["image"].shape[2:]))
        timesteps = torch.full((len(noise),), timestep)
        states = {"image": torch.full_like(timesteps, int(image)), name: torch.full_like(timesteps, int(modality))}
        terms = multitask_loss(pipe.unet, scheduler, inputs, timesteps, noise, states, snr_gamma=math.inf).terms
        return terms[task].mean().item()

    images = [loss("image", t, Presence.JOINT, Presence.ABSENT) for t in TIMESTEPS]
    conditioned = [
        loss("image", CONDITIONED_AT, Presence.JOINT, state, wrong)
        for state, wrong in ((Presence.GIVEN, False), (Presence.GIVEN, True), (Presence.JOINT, False))
    ]
    return [*images, *conditioned, loss(name, 0, Presence.GIVEN, Presence.QUERIED)]


@torch.no_grad()
def ddpm_losses(model: torch.nn.Module, data: Batch) -> list[float]:
    """Of a plain DDPM, at each of TIMESTEPS."""
    images, losses = to_pixels(data["image"]), []
    for timestep in TIMESTEPS:
        noise = noise_at(timestep, len(images), images.shape[1:])
        timesteps = torch.full((len(images),), timestep)
        noisy = DDPMScheduler().add_noise(images, noise, timesteps)
        losses.append((plain(model)(noisy, timestep, slice(None)) - noise).square().mean().item())
    return losses


def noise_at(timestep: int, num_images: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(timestep))


def sample_rows(data: Batch, num_rows: int) -> Batch:
    rows = torch.randperm(len(data["image"]), generator=torch.Generator().manual_seed(0))[:num_rows]
    return {name: values[rows] for name, values in data.items()}


def read_modality(arrays: Batch, folder: Path, split: str, name: str, option: ModalityOption | None) -> torch.Tensor:
    """The inputs of a modality: a column of the arrays, or embeddings of a column of texts, of which few differ.

    Args:
        option: as the run was told; None for one that was trained on from a pipeline.

    Raises:
        ValueError: if the data lack it.
    """
    column = option.column if option is not None else name
    rows = load_from_disk(str(folder))[split]
    is_text = column in rows.features and getattr(rows.features[column], "dtype", None) == "string"
    if option is not None and option.encoder is not None and is_text:
        texts, places = np.unique(rows[column], return_inverse=True)
        return torch.from_numpy(FrozenEncoder(option.encoder, images=False)(list(texts))[places])
    if column not in arrays or column == "image":
        raise ValueError(
            f"{folder} has {sorted(rows.features)}; accepted for {name!r}: a label, mask, embedding or texts."
        )
    return arrays[column]


def modality_of(pipe: MultimodalMultitaskPipeline, run: Path) -> str:
    """The name of the only modality.

    Raises:
        ValueError: if there are several, or none.
    """
    names = list(pipe.unet.modality_modules)
    if len(names) != 1:
        raise ValueError(f"{run} has the modalities {names}; accepted: runs with one.")
    return names[0]


def arm_of(run: Path) -> str:
    """ddpm, ddpm_epsilon or fashion_ddpm, by the name of the run's folder, ARM-SEED."""
    return run.name.rpartition("-")[0]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of examples/train_multimodal.py")
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="prepared data: a folder cifar10, camvid or fashion_mnist"
    )
    parser.add_argument(
        "--ddpm", type=Path, help="a run of the plain DDPM of benchmarks/paper_tasks.py, of these data"
    )
    parser.add_argument("--num_images", type=int, default=NUM_IMAGES, help="held-out images to score (default: 1000)")
    args = parser.parse_args(argv)
    if args.data_dir.name not in SIZES:
        parser.error(f"--data_dir {args.data_dir}: accepted: a folder called {' or '.join(SIZES)}")
    if args.ddpm is not None and arm_of(args.ddpm) not in PLAIN_ARMS:
        parser.error(f"--ddpm {args.ddpm}: accepted: a folder called {' or '.join(f'{arm}-0' for arm in PLAIN_ARMS)}")
    if missing := [run for run in args.runs if not (run / "training.json").is_file()]:
        parser.error(f"{missing[0]} has no training.json: it is no run that has ended")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    height, width = SIZES[args.data_dir.name]
    held_out = "val" if args.data_dir.name == "camvid" else "test"
    train = load_training_arrays(args.data_dir.parent, args.data_dir.name)
    train = {name: values[..., :height, :width] if values.ndim > 2 else values for name, values in train.items()}
    data = {"train": train, held_out: load_arrays(args.data_dir, held_out, (height, width))}
    print("| run | weight | gradient |", *(f"t = {t} |" for t in TIMESTEPS), "given | wrong | joint | read |")
    print("|---" * (len(TIMESTEPS) + 7) + "|")
    for run in args.runs:
        pipe, settings = MultimodalMultitaskPipeline.from_pretrained(run), settings_of(run)
        name = modality_of(pipe, run)
        option = next((option for option in settings.modalities if option.name == name), None)
        train, test = (
            {"image": arrays["image"], name: read_modality(arrays, args.data_dir, split, name, option)}
            for split, arrays in data.items()
        )
        test = sample_rows(test, args.num_images)
        losses, shown = held_out_losses(pipe, name, test), ["learned", "-"]
        weights = task_weights(settings, settings.modalities)
        if weights != "uncertainty":
            weight = weights.get(name, 1.0)
            shown = [f"{weight:g}", f"{gradient_ratio(pipe, name, weight, settings, train):.2f}"]
        print("|", run.name, "|", *(f"{value} |" for value in [*shown, *(f"{loss:.5f}" for loss in losses)]))
    if args.ddpm is not None:
        test = sample_rows(data[held_out], args.num_images)
        losses = ddpm_losses(load_arm(make_arms()[arm_of(args.ddpm)], args.ddpm), test)
        print("|", args.ddpm.name, "| | |", *(f"{loss:.5f} |" for loss in losses), "| | | |")


if __name__ == "__main__":
    main()
