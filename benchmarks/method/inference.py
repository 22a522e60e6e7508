"""The inference study: how to sample and to read a trained joint model, one row at a time, kept in one JSON.

    python benchmarks/method/inference.py --data_dir data/fashion_mnist --runs runs/method --arms own_decay_1

Solvers, numbers of steps and eta; expected against drawn encodings of the label, commit and draw first; guidance scales;
perception in one call, by reading the head at a small t over several draws, and by walking the chain with the image
replaced.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from arms import ARMS, SIZE
from run import HERE, SOLVER, JointSampler, Judge, load_judge, quality_and_agreement
from safetensors.torch import load_file

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    Presence,
)


Row = tuple[str, Callable[[], dict[str, float]]]


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
    """Class probabilities off images noised to t, the label queried, averaged over draws: (n, 10)."""
    generator = torch.Generator().manual_seed(t)
    timesteps = torch.full((len(images),), t)
    states = {name: torch.full_like(timesteps, Presence.QUERIED) for name in unet.modality_modules}
    total = 0
    for _ in range(draws):
        noise = torch.randn(len(images), unet.total_channels, SIZE, SIZE, generator=generator)
        z_t = scheduler.add_noise(images * 2 - 1, noise, timesteps)
        total = total + unet(z_t, timesteps, states=states).predictions["label"].float().softmax(1)
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


def rows(arm: str, unet, judge: Judge) -> Iterator[Row]:
    """Everything that is scored, as (name, what computes it)."""
    ancestral = ARMS[arm].scheduler()
    pipeline = MultimodalMultitaskPipeline(unet, ancestral)
    pipeline.set_progress_bar_config(disable=True)
    sample = JointSampler(pipeline, judge.num_samples)

    def together(scheduler=ancestral, **arguments) -> dict[str, float]:
        pipeline.scheduler = scheduler
        return quality_and_agreement(judge, sample(**arguments))

    def drawn() -> dict[str, float]:
        with drawn_encodings(unet):
            return together()

    def accuracy(probabilities: torch.Tensor) -> dict[str, float]:
        hits = probabilities.argmax(1) == judge.labels[: len(probabilities)]
        return {"label_accuracy": hits.float().mean().item()}

    for steps in (10, 20, 50, 100):
        for discrete in ("expected", "draw_first"):
            shared = {"num_inference_steps": steps, "discrete": discrete}
            yield f"ancestral, {steps}, {discrete}", lambda o=shared: together(**o)
            for eta in (0.0, 0.5, 1.0):
                ddim = MultimodalDDIMScheduler.from_config(ancestral.config)
                yield (
                    f"DDIM eta {eta:g}, {steps}, {discrete}",
                    lambda s=ddim, o=shared | {"eta": eta}: together(s, **o),
                )
            if steps <= 50:
                for kind in ("dpmsolver++", "sde-dpmsolver++"):
                    config = SOLVER | {"algorithm_type": kind}
                    solver = MultimodalDPMSolverMultistepScheduler.from_config(ancestral.config, **config)
                    yield f"{kind}, {steps}, {discrete}", lambda s=solver, o=shared: together(s, **o)
    yield "ancestral, 50, drawn encodings", drawn
    for threshold in (0.5, 0.8, 0.95):
        options = {"discrete": "commit", "commit_threshold": threshold}
        yield f"ancestral, 50, commit {threshold:g}", lambda o=options: together(**o)
    for scale in (1.25, 1.5, 2.0, 3.0):
        options = {"discrete": "draw_first", "guidance_scale": scale}
        yield f"ancestral, 50, draw_first, guidance {scale:g}", lambda o=options: together(**o)
    for t in (0, 20, 50, 100):
        for draws in (1, 4, 16):
            yield (
                f"read at t = {t}, {draws} draws",
                lambda t=t, n=draws: accuracy(read_label(unet, ancestral, judge.images[:2000], t, n)),
            )
    yield "walk the chain, 50", lambda: accuracy(walk(unet, ARMS[arm].scheduler(), judge.images[:2000]))


def load_unet(arm: str, seed: int, runs: Path):
    objective = ARMS[arm].build()
    objective.load_state_dict(load_file(runs / f"{arm}-{seed}" / "model.safetensors"))
    return objective.unet.eval().requires_grad_(False)


def score_rows(path: Path, computations: Iterator[Row]) -> None:
    """Those that `path` has not yet, written one by one."""
    done: dict[str, Mapping[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for name, compute in computations:
        if name not in done:
            done[name] = {key: round(value, 4) for key, value in compute().items()}
            path.write_text(json.dumps(done, indent=2) + "\n")
            print(path.stem, name, done[name], flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="what examples/fashion_mnist/prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="the --runs of run.py, which trained the arms")
    parser.add_argument("--arms", nargs="+", default=["own_decay_1"], help="joint arms of arms.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16 is slow on CPUs without it"
    )
    args = parser.parse_args(argv)
    judge = load_judge(args.data_dir, args.num_samples)
    folder = HERE / "results" / "inference"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
        for arm in args.arms:
            unet = load_unet(arm, args.seed, args.runs)
            score_rows(folder / f"{arm}-{args.seed}.json", rows(arm, unet, judge))


if __name__ == "__main__":
    main()
