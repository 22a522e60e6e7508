"""Score the joint model and its baselines, row by row, into one JSON each; rows that are there already are kept.

    python benchmarks/fashion_mnist/evaluate.py --data_dir data/fashion_mnist --runs runs \\
        --pipeline model_cards/fashion-mnist-joint

All samples are drawn with fixed seeds. The Frechet distance is against all 10,000 test images, on the 64 features of
the independent classifier of `baselines.py`; with 1,000 samples, differences under about 5 % are noise, and the
distance is a little larger than with 2,000.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from baselines import NULL_CLASS, load_arrays, load_baseline
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from metrics import calibration_error, image_scores, mask_iou, read_images, silhouettes

from mmdiff_pipelines import MultimodalDPMSolverMultistepScheduler, MultimodalMultitaskPipeline


BATCH_SIZE = 500
RESULTS = Path(__file__).parent / "results"
CLASSIFIER = Path(__file__).parent / "classifier"  # of the arm `classifier`: the judge of all images
# Ancestral sampling clips its estimate of z_0 and DPM-Solver++ does not, which leaves a tenth of the images speckled;
# `thresholding` clips it alike (`sample_max_value` is 1). Its stochastic variant is scored: the joint chain needs noise
# to mend what it has decided wrongly.
SOLVER = {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "trailing", "thresholding": True}


class Scores:
    """The rows of one model, kept in `results/<name>.json`."""

    def __init__(self, name: str, most: int | None = None):
        self.path, self.most = RESULTS / f"{name}.json", most
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, row: str, compute: Callable[[], dict[str, float]]) -> None:
        if row in self.rows or self.most is not None and len(self.rows) >= self.most:
            return
        self.rows[row] = {name: round(value, 4) for name, value in compute().items()}
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=2) + "\n")
        print(self.path.stem, row, self.rows[row], flush=True)


class Judge:
    """The independent classifier and the real test images."""

    def __init__(self, classifier, test: dict[str, torch.Tensor], num_samples: int):
        self.classifier, self.num_samples = classifier, num_samples
        self.images, self.labels, self.masks = test["image"][:, None].float() / 255, test["label"], test["mask"].long()
        self.features, self.classes = read_images(classifier, self.images)

    def quality(self, images: torch.Tensor) -> dict[str, float]:
        return image_scores(self.classifier, images, self.features)

    def agreement(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """How often the classifier sees the label in the image."""
        return (read_images(self.classifier, images)[1] == labels).float().mean().item()

    def real_accuracy(self) -> float:
        return (self.classes == self.labels).float().mean().item()

    def balanced_labels(self) -> torch.Tensor:
        return torch.arange(self.num_samples) % 10


def batches(num_samples: int, seed: int = 0) -> Iterable[tuple[slice, torch.Generator]]:
    for start in range(0, num_samples, BATCH_SIZE):
        generator = torch.Generator().manual_seed(1000 + start + 1_000_000 * seed)
        yield slice(start, min(start + BATCH_SIZE, num_samples)), generator


@torch.no_grad()
def sample_unet(
    unet, scheduler, num_steps: int, labels: torch.Tensor | None, scale: float, num_samples: int, seed: int = 0
):
    """Images of a plain or class-conditional UNet2DModel, in [0, 1]; guided where `scale` is not 1."""
    done, size = [], unet.config.sample_size
    for rows, generator in batches(num_samples, seed):
        z = torch.randn(rows.stop - rows.start, 1, size, size, generator=generator)
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            if labels is None:
                output = unet(z, t).sample
            else:
                output = unet(z, t, class_labels=labels[rows]).sample
                if scale != 1:
                    free = unet(z, t, class_labels=torch.full_like(labels[rows], NULL_CLASS)).sample
                    output = free + scale * (output - free)
            z = scheduler.step(output.float(), t, z, generator=generator).prev_sample
        done.append((z / 2 + 0.5).clamp(0, 1))
    return torch.cat(done)


def score_ddpm(judge: Judge, runs: Path) -> None:
    unet, scores = load_baseline("ddpm", runs / "ddpm"), Scores("ddpm")

    def quality(scheduler, num_steps: int) -> dict[str, float]:
        return judge.quality(sample_unet(unet, scheduler, num_steps, None, 1.0, judge.num_samples))

    scores.add("50 ancestral", lambda: quality(DDPMScheduler(), 50))
    scores.add("20 SDE-DPM-Solver++", lambda: quality(DPMSolverMultistepScheduler(**SOLVER), 20))


def score_class_conditional(judge: Judge, runs: Path) -> None:
    unet, scores = load_baseline("class_conditional", runs / "class_conditional"), Scores("class_conditional")
    labels = judge.balanced_labels()

    def quality(scale: float) -> dict[str, float]:
        images = sample_unet(unet, DDPMScheduler(), 50, labels, scale, judge.num_samples)
        return judge.quality(images) | {"label_accuracy": judge.agreement(images, labels)}

    for scale in (2.0, 1.0, 3.0, 1.5):
        scores.add(f"50 ancestral, guidance {scale:g}", lambda scale=scale: quality(scale))


def score_specialists(judge: Judge, runs: Path) -> None:
    Scores("classifier").add("test images", lambda: {"label_accuracy": judge.real_accuracy()})
    if (runs / "silhouette_unet" / "model.safetensors").exists():
        unet = load_baseline("silhouette_unet", runs / "silhouette_unet")
        with torch.no_grad():
            masks = torch.cat([unet(batch * 2 - 1, 0).sample.argmax(1) for batch in judge.images.split(BATCH_SIZE)])
        Scores("silhouette_unet").add("test images", lambda: {"mask_iou": mask_iou(masks, judge.masks)})


class JointSampler:
    """Samples of the joint pipeline, all rows put together."""

    def __init__(self, pipeline: MultimodalMultitaskPipeline, num_samples: int, seed: int = 0):
        self.pipeline, self.num_samples, self.seed = pipeline, num_samples, seed

    def __call__(self, given: dict[str, torch.Tensor] | None = None, **arguments) -> dict[str, torch.Tensor]:
        parts: list[dict[str, torch.Tensor]] = []
        total = len(next(iter(given.values()))) if given else self.num_samples
        for rows, generator in batches(total, self.seed):
            known = {name: list(values[rows]) for name, values in (given or {}).items()}
            output = self.pipeline(
                given=known, batch_size=rows.stop - rows.start, generator=generator, output_type="pt", **arguments
            )
            label = output.confidences.get("label", torch.empty(0))
            parts.append({"image": output.images, "label_probabilities": label, **output.modalities})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def score_joint(judge: Judge, folder: Path, name: str, most: int | None) -> None:
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    scores, sample = Scores(name, most), JointSampler(pipeline, judge.num_samples)

    def together(sample: JointSampler = sample, **arguments) -> dict[str, float]:
        samples = sample(**arguments)
        return judge.quality(samples["image"]) | {
            "label_agreement": judge.agreement(samples["image"], samples["label"]),
            "mask_iou": mask_iou(samples["mask"], silhouettes(samples["image"])),
        }

    def of_labels(scale: float) -> dict[str, float]:
        labels = judge.balanced_labels()
        samples = sample({"label": labels}, guidance_scale=scale)
        agreement = judge.agreement(samples["image"], labels)
        return judge.quality(samples["image"]) | {"label_accuracy": agreement}

    def of_masks() -> dict[str, float]:
        masks = judge.masks[: judge.num_samples]
        samples = sample({"mask": masks})
        return judge.quality(samples["image"]) | {"mask_iou": mask_iou(silhouettes(samples["image"]), masks)}

    def of_images() -> dict[str, float]:
        samples = sample({"image": judge.images})
        return {
            "label_accuracy": (samples["label"] == judge.labels).float().mean().item(),
            "calibration_error": calibration_error(samples["label_probabilities"], judge.labels),
            "mask_iou": mask_iou(samples["mask"], judge.masks),
        }

    scores.add("image given", of_images)
    scores.add(
        "joint, 50 ancestral, draw first, guidance 2", lambda: together(discrete="draw_first", guidance_scale=2.0)
    )
    scores.add("label given, 50 ancestral, guidance 2", lambda: of_labels(2.0))
    scores.add("mask given, 50 ancestral", of_masks)
    # the solvers against each other, on half of the samples: 250 steps are five times the work of all else
    half, ancestral = JointSampler(pipeline, judge.num_samples // 2), pipeline.scheduler
    pipeline.scheduler = MultimodalDPMSolverMultistepScheduler.from_config(ancestral.config, **SOLVER)
    row = "joint, 20 SDE-DPM-Solver++, draw first, half of the samples"
    scores.add(row, lambda: together(half, num_inference_steps=20, discrete="draw_first"))
    for scale in (1.0, 1.5, 2.0):
        options = {"num_inference_steps": 20, "discrete": "draw_first", "guidance_scale": scale}
        scores.add(
            f"joint, 20 SDE-DPM-Solver++, draw first, guidance {scale:g}", lambda options=options: together(**options)
        )
    pipeline.scheduler = ancestral
    row = "joint, 250 ancestral, draw first, half of the samples"
    scores.add(row, lambda: together(half, num_inference_steps=250, discrete="draw_first"))
    scores.add("joint, 50 ancestral, draw first", lambda: together(discrete="draw_first"))
    scores.add("label given, 50 ancestral, guidance 1", lambda: of_labels(1.0))
    scores.add("joint, 50 ancestral", together)
    scores.add("joint, 50 ancestral, commit", lambda: together(discrete="commit"))
    scores.add("label given, 50 ancestral, guidance 3", lambda: of_labels(3.0))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="what examples/fashion_mnist/prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the baselines' output folders")
    parser.add_argument("--pipeline", type=Path, help="the joint pipeline to score")
    parser.add_argument("--name", default="joint", help="the name of its rows")
    parser.add_argument("--rows", type=int, help="score only the first rows of the joint pipeline")
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16 is slow on CPUs without it"
    )
    parser.add_argument("--only", nargs="+", default=["specialists", "joint", "ddpm", "class_conditional"])
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    test = load_arrays(args.data_dir, "test")
    judge = Judge(load_baseline("classifier", CLASSIFIER), test, args.num_samples)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
        if "specialists" in args.only:
            score_specialists(judge, args.runs)
        if "joint" in args.only and args.pipeline is not None:
            score_joint(judge, args.pipeline, args.name, args.rows)
        if "ddpm" in args.only:
            score_ddpm(judge, args.runs)
        if "class_conditional" in args.only:
            score_class_conditional(judge, args.runs)


if __name__ == "__main__":
    main()
