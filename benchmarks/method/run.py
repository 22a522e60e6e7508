"""Train and score arms of the controlled comparison, one JSON for each arm and seed; what is done already is kept.

    python benchmarks/method/run.py --data_dir data/fashion_mnist --runs runs/method --arms ddpm own_decay_1 --seeds 0 1 2

Fashion-MNIST at 16x16, 3,000 steps of batch 64, about 5 minutes an arm and seed on one core that has bfloat16
instructions. All images are sampled with 20 calls of SDE-DPM-Solver++, which suits specialists and joint models alike
(`inference.py` has the other solvers). The judge of all images is the arm `classifier`, seed 0, which is committed in
`classifier/`. For the scaling study, with results in a folder of their own:

    python benchmarks/method/run.py --data_dir data/fashion_mnist --runs runs/method_750 --steps 750 \\
        --results benchmarks/method/results/steps_750 --arms ddpm own_decay_1
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import torch
from arms import ARMS, LITERAL_STEPS, MAIN_ARMS, SIZE, TRUNK, Joint, mask_channel  # first: it finds the next ones
from baselines import Classifier, Run, load_arrays
from concatenated import decode, sample_concatenated
from diffusers import DPMSolverMultistepScheduler
from evaluate import BATCH_SIZE, SOLVER, JointSampler, Judge, batches, sample_unet
from metrics import calibration_error, mask_iou, silhouettes
from safetensors.torch import load_file
from torch import nn

from mmdiff_pipelines import (
    MultimodalDDPMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
    Presence,
    elbo,
)
from mmdiff_pipelines.pipelines.denoiser import SubsetDenoiser


HERE = Path(__file__).parent
BATCH, NUM_STEPS = 64, 20
SCALES = (1.0, 1.25, 1.5, 2.0)  # of guidance
SCREENED_JOINT, SCREENED_LABELS = (1.0, 1.5), (1.0, 2.0)
LEAK_TIMESTEPS = (50, 200, 500)
BOUND_IMAGES, BOUND_TIMESTEPS = 40, None
CHAINS, CHAIN_IMAGES = 4, 1000  # the rival's label and mask of an image: the mean of so many samples
Scores = dict[str, dict[str, float]]


def small_arrays(data_dir: Path, split: str) -> dict[str, torch.Tensor]:
    """The data at 16x16: means of 2x2 pixels, and the silhouettes of these."""
    arrays = load_arrays(data_dir, split)
    pixels = nn.functional.avg_pool2d(arrays["image"][:, None].float(), 32 // SIZE).round()
    return {
        "image": pixels[:, 0].to(torch.uint8),
        "mask": silhouettes(pixels / 255).to(torch.uint8),
        "label": arrays["label"],
    }


def train(arm: str, seed: int, args: argparse.Namespace, data: Mapping[str, torch.Tensor]) -> nn.Module:
    """The averaged model of an arm; trained, gone on with, or read."""
    folder = args.runs / f"{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = argparse.Namespace(
        arm=arm, seed=seed, output_dir=folder, steps=args.steps, batch_size=BATCH, learning_rate=1e-3, warmup_steps=250,
        checkpointing_steps=500, mixed_precision=args.mixed_precision,
    )  # fmt: skip
    run = Run(settings, ARMS[arm].build, ARMS[arm].loss)
    if run.checkpoint.exists():
        run.resume()
    run.train(data)
    run.finish()
    return run.model.eval().requires_grad_(False)


def load_judge(data_dir: Path, num_samples: int) -> Judge:
    """The committed classifier, and the test images at 16x16."""
    classifier = Classifier(TRUNK)
    classifier.load_state_dict(load_file(HERE / "classifier" / "model.safetensors"))
    return Judge(classifier.eval().requires_grad_(False), small_arrays(data_dir, "test"), num_samples)


def quality_and_agreement(judge: Judge, samples: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return judge.quality(samples["image"]) | {
        "label_agreement": judge.agreement(samples["image"], samples["label"]),
        "mask_agreement": mask_iou(samples["mask"], silhouettes(samples["image"])),
    }


def given_label(judge: Judge, images: torch.Tensor) -> dict[str, float]:
    return judge.quality(images) | {"label_accuracy": judge.agreement(images, judge.balanced_labels())}


def given_mask(judge: Judge, images: torch.Tensor) -> dict[str, float]:
    masks = judge.masks[: judge.num_samples]
    return judge.quality(images) | {"mask_iou": mask_iou(silhouettes(images), masks)}


def leak(unet, scheduler, judge: Judge) -> dict[str, float]:
    """Label accuracy of the head at some timesteps, with the true encoding in z_t, none, and that of another class."""
    labels, scores = judge.labels[:1000], {}
    for t in LEAK_TIMESTEPS:
        generator = torch.Generator().manual_seed(t)
        noise = torch.randn(len(labels), unet.total_channels, SIZE, SIZE, generator=generator)
        timesteps = torch.full_like(labels, t)
        for how, encoded in {"true": labels, "missing": None, "wrong": (labels + 1) % 10}.items():
            encodings = {} if encoded is None else unet.encode({"label": encoded})
            z_t = scheduler.add_noise(judge.images[:1000] * 2 - 1, noise, timesteps, encodings=encodings)
            predictions = unet(z_t, timesteps, states={"mask": torch.full_like(labels, Presence.ABSENT)}).predictions
            scores[f"{how}_{t}"] = (predictions["label"].argmax(1) == labels).float().mean().item()
    return scores


def bits_per_dim(unet, scheduler, judge: Judge) -> dict[str, float]:
    """Of the image alone, the modalities ABSENT: the one bound that all arms have in common."""
    inputs = {"image": judge.images[:BOUND_IMAGES] * 2 - 1}
    with torch.autocast("cpu", enabled=False):
        bound = elbo(unet, scheduler, inputs, torch.Generator().manual_seed(0), BOUND_TIMESTEPS)
    return {"bits_per_dim": bound["bits_per_dim"].mean().item()}


def drawn_labels(judge: Judge, seed: int) -> torch.Tensor:
    """Of an image and a label together: the label is drawn from the data's classes, and the image given it."""
    return torch.randint(0, 10, (judge.num_samples,), generator=torch.Generator().manual_seed(seed))


def agreement_given_labels(judge: Judge, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return judge.quality(images) | {"label_agreement": judge.agreement(images, labels)}


def score_joint(arm: str, model: nn.Module, judge: Judge, seed: int) -> Scores:
    options: Joint = ARMS[arm]
    literal, compared = options.alpha_scaling == "paper", arm in MAIN_ARMS
    scheduler, num_steps = options.scheduler(), LITERAL_STEPS if literal else NUM_STEPS
    pipeline = MultimodalMultitaskPipeline(model.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    if not literal:  # it has no log-SNR, which DPM-Solver++ integrates over
        pipeline.scheduler = MultimodalDPMSolverMultistepScheduler.from_config(scheduler.config, **SOLVER)
    sample_in = JointSampler(pipeline, judge.num_samples, seed)

    def sample(given: Mapping[str, torch.Tensor] | None = None, **arguments) -> dict[str, torch.Tensor]:
        return sample_in(given, num_inference_steps=num_steps, **arguments)

    read = sample({"image": judge.images})
    scores = {
        "image given": {
            "label_accuracy": (read["label"] == judge.labels).float().mean().item(),
            "calibration_error": calibration_error(read["label_probabilities"], judge.labels),
            "mask_iou": mask_iou(read["mask"], judge.masks),
        },
    }
    if options.image_weight == 0:
        return scores
    scores["joint"] = quality_and_agreement(judge, sample())
    for scale in SCALES if compared else SCREENED_JOINT:
        samples = sample(discrete="draw_first", guidance_scale=scale)
        scores[f"joint, draw first, guidance {scale:g}"] = quality_and_agreement(judge, samples)
    for scale in SCALES if compared else SCREENED_LABELS:
        images = sample({"label": judge.balanced_labels()}, guidance_scale=scale)["image"]
        scores[f"label given, guidance {scale:g}"] = given_label(judge, images)
    scores["mask given"] = given_mask(judge, sample({"mask": judge.masks[: judge.num_samples]})["image"])
    if compared:
        images = sample({"mask": judge.masks[: judge.num_samples]}, discrete="draw_first", guidance_scale=1.5)["image"]
        scores["mask given, guidance 1.5"] = given_mask(judge, images)
    if not literal:
        scores["leak"] = leak(model.unet, scheduler, judge)
    if compared and not literal:
        scores["likelihood"] = bits_per_dim(model.unet, scheduler, judge)
    return scores


def score_concatenated(model: nn.Module, judge: Judge, seed: int) -> Scores:
    def sample(given: Mapping[str, torch.Tensor], scale: float = 1.0, offset: int = 0) -> torch.Tensor:
        total = len(next(iter(given.values()))) if given else judge.num_samples
        parts = []
        for rows, generator in batches(total, seed + offset):
            known = {name: values[rows] for name, values in given.items()}
            parts.append(sample_concatenated(model, known, rows.stop - rows.start, NUM_STEPS, scale, generator))
        return torch.cat(parts)

    def images(given: Mapping[str, torch.Tensor], scale: float) -> torch.Tensor:
        return decode(model, sample(given, scale))["image"]

    rows = slice(0, CHAIN_IMAGES)
    chains = [sample({"image": judge.images[rows] * 2 - 1}, offset=chain) for chain in range(CHAINS)]
    read = decode(model, torch.stack(chains).mean(0))
    scores = {
        "image given": {
            "label_accuracy": (read["label"] == judge.labels[rows]).float().mean().item(),
            "mask_iou": mask_iou(read["mask"], judge.masks[rows]),
        },
        "joint": quality_and_agreement(judge, decode(model, sample({}))),
    }
    labels = drawn_labels(judge, seed)
    for scale in SCALES:
        drawn = agreement_given_labels(judge, images({"label": labels}, scale), labels)
        scores[f"joint, draw first, guidance {scale:g}"] = drawn
    for scale in SCALES:
        scores[f"label given, guidance {scale:g}"] = given_label(
            judge, images({"label": judge.balanced_labels()}, scale)
        )
    scores["mask given"] = given_mask(judge, images({"mask": judge.masks[: judge.num_samples]}, 1.0))
    return scores


def sample_specialist(
    unet: nn.Module, labels: torch.Tensor | None, scale: float, num_samples: int, seed: int
) -> torch.Tensor:
    scheduler = DPMSolverMultistepScheduler(**SOLVER)
    return sample_unet(unet, scheduler, NUM_STEPS, labels, scale, num_samples, seed)


def score_ddpm(unet: nn.Module, judge: Judge, seed: int) -> Scores:
    alone = MultimodalUNet2DModel.from_unet(unet).eval()
    return {
        "joint": judge.quality(sample_specialist(unet, None, 1.0, judge.num_samples, seed)),
        "likelihood": bits_per_dim(alone, MultimodalDDPMScheduler(prediction_type="epsilon"), judge),
    }


def score_class_conditional(unet: nn.Module, judge: Judge, seed: int) -> Scores:
    scores, drawn = {}, drawn_labels(judge, seed)
    for scale in SCALES:
        images = sample_specialist(unet, drawn, scale, judge.num_samples, seed)
        scores[f"joint, draw first, guidance {scale:g}"] = agreement_given_labels(judge, images, drawn)
    for scale in SCALES:
        images = sample_specialist(unet, judge.balanced_labels(), scale, judge.num_samples, seed)
        scores[f"label given, guidance {scale:g}"] = given_label(judge, images)
    return scores


class WithMask(nn.Module):
    """A mask-conditioned UNet as a plain one, its masks those of the rows of each batch in turn."""

    def __init__(self, unet: nn.Module, masks: torch.Tensor):
        super().__init__()
        self.unet, self.config, self.masks, self.calls = unet, unet.config, masks.split(BATCH_SIZE), 0

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor):
        masks = self.masks[self.calls // NUM_STEPS]
        self.calls += 1
        return self.unet(torch.cat([sample, mask_channel(masks)], dim=1), timestep)


def score_mask_conditioned(unet: nn.Module, judge: Judge, seed: int) -> Scores:
    masks = judge.masks[: judge.num_samples]
    return {"mask given": given_mask(judge, sample_specialist(WithMask(unet, masks), None, 1.0, len(masks), seed))}


def score_silhouette_unet(unet: nn.Module, judge: Judge, seed: int) -> Scores:
    masks = torch.cat([unet(batch * 2 - 1, 0).sample.argmax(1) for batch in judge.images.split(BATCH_SIZE)])
    return {"image given": {"mask_iou": mask_iou(masks, judge.masks)}}


def score_classifier(model: nn.Module, judge: Judge, seed: int) -> Scores:
    probabilities = torch.cat([model(batch).float().softmax(1) for batch in (judge.images * 2 - 1).split(BATCH_SIZE)])
    accuracy = (probabilities.argmax(1) == judge.labels).float().mean().item()
    return {
        "image given": {
            "label_accuracy": accuracy,
            "calibration_error": calibration_error(probabilities, judge.labels),
        }
    }


SCORERS: dict[str, Callable[[nn.Module, Judge, int], Scores]] = {
    "classifier": score_classifier,
    "ddpm": score_ddpm,
    "class_conditional": score_class_conditional,
    "silhouette_unet": score_silhouette_unet,
    "mask_conditioned": score_mask_conditioned,
    "concatenated": score_concatenated,
    "concatenated_tuned": score_concatenated,
}


@torch.no_grad()
def score(arm: str, model: nn.Module, judge: Judge, seed: int) -> Scores:
    if isinstance(ARMS[arm], Joint):
        with mock.patch.object(SubsetDenoiser, "withheld_state", ARMS[arm].withheld_state):
            scores = score_joint(arm, model, judge, seed)
    else:
        scores = SCORERS[arm](model, judge, seed)
    return {how: {name: round(value, 4) for name, value in row.items()} for how, row in scores.items()}


def score_real_images(data: Mapping[str, torch.Tensor], judge: Judge, seed: int) -> Scores:
    """As many training images as are sampled: what the best of samples would have."""
    rows = torch.randperm(len(data["label"]), generator=torch.Generator().manual_seed(seed))[: judge.num_samples]
    images, labels = data["image"][rows][:, None].float() / 255, data["label"][rows]
    return {"joint": agreement_given_labels(judge, images, labels)}


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that training and the inference study share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="what examples/fashion_mnist/prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="weights and checkpoints of the arms")
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16 is slow on CPUs without it"
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=1, help="a factor of the trunk's channels")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder of the JSONs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    data, judge = small_arrays(args.data_dir, "train"), load_judge(args.data_dir, args.num_samples)
    TRUNK["block_out_channels"] = tuple(args.width * channels for channels in TRUNK["block_out_channels"])
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        reference = args.results / f"real_images-{seed}.json"
        if not reference.exists():
            reference.write_text(json.dumps({"scores": score_real_images(data, judge, seed)}, indent=2) + "\n")
        for arm in args.arms:
            path = args.results / f"{arm}-{seed}.json"
            if path.exists():
                continue
            model = train(arm, seed, args, data)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                scores = score(arm, model, judge, seed)
            training = json.loads((args.runs / f"{arm}-{seed}" / "training.json").read_text())
            path.write_text(json.dumps({"training": training, "scores": scores}, indent=2) + "\n")
            print(arm, seed, json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
