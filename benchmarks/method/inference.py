"""The inference study: how to sample and to read a trained joint model, one row at a time, kept in one JSON.

    python benchmarks/method/inference.py --data_dir data/fashion_mnist --runs runs/method --arms own_decay_1

Solvers, numbers of steps, eta and churn; expected against drawn encodings of the label, commit and draw first; guidance
scales, against ABSENT and against JOINT; perception in one call, by reading the head at a small t over several draws,
by walking the chain with the image replaced, and by the likelihood of the image under each class. Where a row says
nothing else, it is 20 calls of SDE-DPM-Solver++.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from arms import ARMS, MODALITIES, SIZE
from evaluate import SOLVER, JointSampler, Judge
from rows import NUM_STEPS, Row, given_label, given_mask, quality_and_agreement
from run import HERE, load_judge, make_parser, score
from safetensors.torch import load_file

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    Presence,
)
from mmdiff_pipelines.pipelines.denoiser import SubsetDenoiser


BEST = SOLVER["algorithm_type"]


@contextmanager
def drawn_encodings(unet) -> Iterator[None]:
    """The step uses the encoding of a label drawn from the head, not the expected one."""
    label = unet.modality_modules["label"]
    label.expected_encoding = lambda prediction: label.encode(label.sample(prediction))
    try:
        yield
    finally:
        del label.expected_encoding


def read_label(unet, scheduler, images: torch.Tensor, t: int, draws: int) -> torch.Tensor:
    """Class probabilities averaged over draws, (n, 10): at t = 0 off the given image, as it is trained; later off a
    noised image whose label is joint and yet not in z.
    """
    generator = torch.Generator().manual_seed(t)
    timesteps = torch.full((len(images),), t)
    states = {name: torch.full_like(timesteps, Presence.QUERIED if t == 0 else Presence.JOINT) for name in MODALITIES}
    if t == 0:
        states["image"] = torch.full_like(timesteps, Presence.GIVEN)
    encodings = unet.encode({"image": images * 2 - 1})
    total = 0
    for _ in range(draws):
        noise = torch.randn(len(images), unet.total_channels, SIZE, SIZE, generator=generator)
        z_t = scheduler.add_noise(images * 2 - 1, noise, timesteps)
        predictions = unet(z_t, timesteps, encodings=encodings, states=states).predictions
        total = total + predictions["label"].float().softmax(1)
    return total / draws


def walk(unet, scheduler, images: torch.Tensor, steps: int = 50) -> torch.Tensor:
    """Class probabilities at the end of the joint chain whose image is replaced, at each step, by the noised true one."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(images), unet.total_channels, SIZE, SIZE)
    z_t = torch.randn(shape, generator=generator)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        noise = torch.randn(shape, generator=generator)
        z_t[:, :1] = scheduler.add_noise(images * 2 - 1, noise, t.expand(len(images)))[:, :1]
        output = unet(z_t, t)
        encodings = unet.expected_encodings(output.predictions)
        step = scheduler.step(output.sample.float(), t, z_t, generator=generator, encodings=encodings)
        z_t = step.prev_sample
    return output.predictions["label"].float().softmax(1)


def label_likelihoods(unet, scheduler, images: torch.Tensor, draws: int) -> torch.Tensor:
    """How well the image is denoised given each class (Li et al. 2023): (n, 10), minus the mean squared error norm.

    Args:
        draws: timesteps, evenly from 20 to 700, each with its own noise; ten calls of the network for each.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(images), 10)
    absent, given = (torch.full((len(images),), int(state)) for state in (Presence.ABSENT, Presence.GIVEN))
    for draw in range(draws):
        timesteps = torch.full_like(absent, int(20 + (draw + 0.5) / draws * 680))
        noise = torch.randn(len(images), unet.total_channels, SIZE, SIZE, generator=generator)
        for label in range(10):
            encodings = unet.encode({"label": torch.full_like(absent, label)})
            z_t = scheduler.add_noise(images * 2 - 1, noise, timesteps, encodings=encodings)
            target = scheduler.get_target(images * 2 - 1, noise, timesteps, encodings=encodings)
            output = unet(z_t, timesteps, encodings=encodings, states={"label": given, "mask": absent})
            total[:, label] -= (output.sample.float() - target).square().flatten(1).sum(1)
    return total / draws


def sample_churned(unet, scheduler, count: int, steps: int, churn: float) -> dict[str, torch.Tensor]:
    """Joint samples by deterministic steps, each from a little more noise than the last one left (Karras et al. 2022).

    Args:
        churn: how far back each step goes, as a share of its length.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (count, unet.total_channels, SIZE, SIZE)
    z, encodings = torch.randn(shape, generator=generator), {}
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()

    def at(t: int) -> tuple[torch.Tensor, torch.Tensor | float]:
        shift = scheduler.aggregate(encodings, torch.full((count,), t)).float() if encodings else 0.0
        return scheduler.alphas_cumprod[t], shift

    for t, next_t in zip(times, [*times[1:], None], strict=True):
        back = min(999, t + round(churn * 1000 / steps)) if encodings else t
        (alpha_bar, shift), (alpha_bar_back, shift_back) = at(t), at(back)
        ratio = alpha_bar_back / alpha_bar
        z = ratio.sqrt() * (z - shift) + shift_back + (1 - ratio).sqrt() * torch.randn(shape, generator=generator)
        output = unet(z, back)
        encodings = unet.expected_encodings(output.predictions)
        z_0 = scheduler.predict_original(output.sample.float(), torch.full((count,), back), z, encodings).clamp(-1, 1)
        if next_t is None:
            break
        z_0 = torch.nn.functional.pad(z_0, (0, 0, 0, 0, 0, unet.total_channels - 1))
        (alpha_bar, shift), (alpha_bar_next, shift_next) = at(back), at(next_t)
        noise = (z - shift - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()
        z = alpha_bar_next.sqrt() * z_0 + shift_next + (1 - alpha_bar_next).sqrt() * noise
    modules, predictions = unet.modality_modules, output.predictions
    read = {name: modules[name].estimate(predictions[name]) for name in MODALITIES}
    return {"image": (z_0 / 2 + 0.5).clamp(0, 1)} | read


class Study:
    """All rows of the study of one trained arm."""

    def __init__(self, arm: str, unet, judge: Judge):
        self.arm, self.unet, self.judge, self.ancestral = ARMS[arm], unet, judge, ARMS[arm].scheduler()
        self.pipeline = MultimodalMultitaskPipeline(unet, self.ancestral)
        self.pipeline.set_progress_bar_config(disable=True)
        self.sample = JointSampler(self.pipeline, judge.num_samples)

    def solver(self, kind: str):
        """All with the same timesteps, but for the ancestral one as checkpoints have it."""
        config = self.ancestral.config
        if kind == "ancestral, leading":
            return self.ancestral
        if kind == "ancestral":
            return type(self.ancestral).from_config(config, timestep_spacing="trailing")
        if kind == "DDIM":
            return MultimodalDDIMScheduler.from_config(config, timestep_spacing="trailing")
        return MultimodalDPMSolverMultistepScheduler.from_config(config, **SOLVER | {"algorithm_type": kind})

    def together(self, kind: str = BEST, num_inference_steps: int = NUM_STEPS, **arguments) -> dict[str, float]:
        self.pipeline.scheduler = self.solver(kind)
        samples = self.sample(num_inference_steps=num_inference_steps, **arguments)
        return quality_and_agreement(self.judge, samples)

    def from_given(self, name: str, **arguments) -> dict[str, float]:
        """Images of balanced labels, or of held-out masks."""
        self.pipeline.scheduler = self.solver(BEST)
        values = {"label": self.judge.balanced_labels(), "mask": self.judge.masks[: self.judge.num_samples]}[name]
        images = self.sample({name: values}, num_inference_steps=NUM_STEPS, **arguments)["image"]
        return (given_label if name == "label" else given_mask)(self.judge, images)

    def accuracy(self, probabilities: torch.Tensor) -> dict[str, float]:
        hits = probabilities.argmax(1) == self.judge.labels[: len(probabilities)]
        return {"label_accuracy": hits.float().mean().item()}

    def drawn(self) -> dict[str, float]:
        with drawn_encodings(self.unet):
            return self.together()

    def against_joint(self, scale: float) -> dict[str, float]:
        """Guidance against a pass that takes the label for JOINT, and has its encoding in z."""
        with (
            mock.patch.object(SubsetDenoiser, "withheld_state", Presence.JOINT),
            mock.patch.object(SubsetDenoiser, "_without", lambda self, sample, t, names: sample),
        ):
            return self.from_given("label", guidance_scale=scale)

    def churned(self, steps: int, churn: float) -> dict[str, float]:
        samples = sample_churned(self.unet, self.ancestral, self.judge.num_samples, steps, churn)
        return quality_and_agreement(self.judge, samples)

    def read(self, t: int, draws: int) -> dict[str, float]:
        return self.accuracy(read_label(self.unet, self.ancestral, self.judge.images[:2000], t, draws))

    def by_likelihood(self, draws: int, with_head: bool) -> dict[str, float]:
        """The label under which the image is denoised best; by itself, or added as it is to the head's logarithms."""
        images = self.judge.images[:2000]
        scores = label_likelihoods(self.unet, self.ancestral, images, draws)
        if with_head:
            scores = scores + read_label(self.unet, self.ancestral, images, 0, 1).log()
        return self.accuracy(scores)

    def walked(self) -> dict[str, float]:
        return self.accuracy(walk(self.unet, self.ancestral, self.judge.images[:2000]))

    def rows(self) -> Iterator[Row]:
        """Everything that is scored, as (name, what computes it)."""
        for discrete in ("draw_first", "expected"):
            for steps in (10, 20, 50, 100):
                together = partial(self.together, num_inference_steps=steps, discrete=discrete)
                yield f"ancestral, {steps}, {discrete}", partial(together, "ancestral")
                for kind in ("dpmsolver++", "sde-dpmsolver++"):
                    yield f"{kind}, {steps}, {discrete}", partial(together, kind)
                for eta in (0.0, 0.5, 1.0):
                    for clipped in (True, False):  # False is diffusers' default
                        row = partial(together, "DDIM", eta=eta, use_clipped_model_output=clipped)
                        yield f"DDIM eta {eta:g}{'' if clipped else ' unclipped'}, {steps}, {discrete}", row
        for steps in (20, 50):
            row = partial(self.together, "ancestral, leading", steps, discrete="draw_first")
            yield f"ancestral with leading timesteps, {steps}, draw_first", row
        for kind in ("ancestral", BEST):
            yield f"{kind}, 250, draw_first", partial(self.together, kind, 250, discrete="draw_first")
        for steps in (20, 50):
            for churn in (0.0, 0.5, 1.0):
                yield f"deterministic, {steps}, expected, churn {churn:g}", partial(self.churned, steps, churn)
        yield "drawn encodings", self.drawn
        for threshold in (0.5, 0.8, 0.95):
            yield f"commit {threshold:g}", partial(self.together, discrete="commit", commit_threshold=threshold)
        for name in MODALITIES:
            yield f"{name} given", partial(self.from_given, name)
            # does the other one help, or is it in the way?
            yield f"{name} given, the other ABSENT", partial(self.from_given, name, outputs=["image", name])
        for scale in (1.25, 1.5, 2.0, 3.0):
            row = partial(self.together, discrete="draw_first", guidance_scale=scale)
            yield f"draw_first, guidance {scale:g}", row
            for name in MODALITIES:
                row = partial(self.from_given, name, guidance_scale=scale)
                yield f"{name} given, guidance {scale:g} against ABSENT", row
            yield f"label given, guidance {scale:g} against JOINT", partial(self.against_joint, scale)
        for t in (0, 20, 50, 100):
            for draws in (1, 4, 16):
                yield f"read at t = {t}, {draws} draws", partial(self.read, t, draws)
        if self.arm.space == "own":  # in shared space, the image's channels are the modalities' too
            yield "walk the chain, 50 ancestral", self.walked
        for with_head in (False, True):
            row = f"label by likelihood, 8 draws{', and the head' if with_head else ''}"
            yield row, partial(self.by_likelihood, 8, with_head)


def load_unet(arm: str, seed: int, runs: Path):
    objective = ARMS[arm].build()
    objective.load_state_dict(load_file(runs / f"{arm}-{seed}" / "model.safetensors"))
    return objective.unet.eval().requires_grad_(False)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=["own_decay_1"], help="joint arms of arms.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results/inference", help="the folder of the JSONs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    judge = load_judge(args.data_dir, args.num_samples)
    args.results.mkdir(parents=True, exist_ok=True)
    for arm in args.arms:
        study = Study(arm, load_unet(arm, args.seed, args.runs), judge)
        with mock.patch.object(SubsetDenoiser, "withheld_state", ARMS[arm].withheld_state):
            score(args.results / f"{arm}-{args.seed}.json", lambda: {}, study.rows(), args)


if __name__ == "__main__":
    main()
