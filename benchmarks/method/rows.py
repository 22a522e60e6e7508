"""What the arms of the controlled comparison are scored by: each row a way of using a model, computed when it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
from arms import ARMS, LITERAL_STEPS, MAIN_ARMS, SIZE, Joint, mask_channel  # first: it finds the next ones
from concatenated import decode, sample_concatenated
from diffusers import DPMSolverMultistepScheduler
from evaluate import BATCH_SIZE, SOLVER, JointSampler, Judge, batches, sample_unet
from metrics import calibration_error, mask_iou, silhouettes
from torch import nn

from mmdiff_pipelines import (
    MultimodalDDPMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
    Presence,
    elbo,
)


NUM_STEPS = 20
SCALES = (1.0, 1.25, 1.5, 2.0)  # of guidance
SCREENED_JOINT, SCREENED_LABELS = (1.0, 1.5), (1.0, 2.0)
MASK_SCALE = 1.5
LEAK_TIMESTEPS = (50, 200, 500)
BOUND_IMAGES, BOUND_TIMESTEPS = 40, None
CHAINS, CHAIN_IMAGES = 4, 1000  # the rival's label and mask of an image: the mean of so many samples
Score = dict[str, float]
Row = tuple[str, Callable[[], Score]]


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


def joint_sampler(arm: str, model: nn.Module, judge: Judge, seed: int) -> Callable[..., dict[str, torch.Tensor]]:
    """(given=None, **arguments of the pipeline) -> samples, by the solver of all tables."""
    literal = ARMS[arm].alpha_scaling == "paper"
    scheduler = ARMS[arm].scheduler()
    if not literal:  # it has no log-SNR, which DPM-Solver++ integrates over
        scheduler = MultimodalDPMSolverMultistepScheduler.from_config(scheduler.config, **SOLVER)
    pipeline = MultimodalMultitaskPipeline(model.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    num_steps = LITERAL_STEPS if literal else NUM_STEPS
    return partial(JointSampler(pipeline, judge.num_samples, seed), num_inference_steps=num_steps)


def joint_rows(arm: str, model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    options: Joint = ARMS[arm]
    compared, literal = arm in MAIN_ARMS, options.alpha_scaling == "paper"
    sampler = cache(lambda: joint_sampler(arm, model(), judge, seed))

    def read() -> Score:
        samples = sampler()({"image": judge.images})
        return {
            "label_accuracy": (samples["label"] == judge.labels).float().mean().item(),
            "calibration_error": calibration_error(samples["label_probabilities"], judge.labels),
            "mask_iou": mask_iou(samples["mask"], judge.masks),
        }

    def together(**arguments) -> Score:
        return quality_and_agreement(judge, sampler()(**arguments))

    def of_labels(scale: float) -> Score:
        return given_label(judge, sampler()({"label": judge.balanced_labels()}, guidance_scale=scale)["image"])

    def of_masks(**arguments) -> Score:
        return given_mask(judge, sampler()({"mask": judge.masks[: judge.num_samples]}, **arguments)["image"])

    yield "image given", read
    if options.image_weight == 0:
        return
    yield "joint", together
    for scale in SCALES if compared else SCREENED_JOINT:
        yield f"joint, draw first, guidance {scale:g}", partial(together, discrete="draw_first", guidance_scale=scale)
    for scale in SCALES if compared else SCREENED_LABELS:
        yield f"label given, guidance {scale:g}", partial(of_labels, scale)
    yield "mask given", of_masks
    if compared:
        yield f"mask given, guidance {MASK_SCALE:g}", partial(of_masks, guidance_scale={"mask": MASK_SCALE})
    if not literal:
        yield "leak", lambda: leak(model().unet, options.scheduler(), judge)
    if compared and not literal:
        yield "likelihood", lambda: bits_per_dim(model().unet, options.scheduler(), judge)


def concatenated_rows(model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    labels, masks = drawn_labels(judge, seed), judge.masks[: judge.num_samples]

    def sample(given: Mapping[str, torch.Tensor], scale: float = 1.0, noise_seed: int = seed) -> torch.Tensor:
        total = len(next(iter(given.values()))) if given else judge.num_samples
        parts = []
        for rows, generator in batches(total, noise_seed):
            known = {name: values[rows] for name, values in given.items()}
            parts.append(sample_concatenated(model(), known, rows.stop - rows.start, NUM_STEPS, scale, generator))
        return torch.cat(parts)

    def images(given: Mapping[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
        return decode(model(), sample(given, scale))["image"]

    def read() -> Score:
        rows = slice(0, CHAIN_IMAGES)
        known = {"image": judge.images[rows] * 2 - 1}
        chains = [sample(known, noise_seed=seed * CHAINS + chain) for chain in range(CHAINS)]
        found = decode(model(), torch.stack(chains).mean(0))
        return {
            "label_accuracy": (found["label"] == judge.labels[rows]).float().mean().item(),
            "mask_iou": mask_iou(found["mask"], judge.masks[rows]),
        }

    yield "image given", read
    yield "joint", lambda: quality_and_agreement(judge, decode(model(), sample({})))
    yield from rows_of_labels(lambda labels, scale: images({"label": labels}, scale), labels, judge)
    yield "mask given", lambda: given_mask(judge, images({"mask": masks}))


def rows_of_labels(
    sample: Callable[[torch.Tensor, float], torch.Tensor], drawn: torch.Tensor, judge: Judge
) -> Iterator[Row]:
    """Of a model that is told labels: drawn ones, which make pairs, and balanced ones."""

    def of_drawn(scale: float) -> Score:
        return agreement_given_labels(judge, sample(drawn, scale), drawn)

    def of_balanced(scale: float) -> Score:
        return given_label(judge, sample(judge.balanced_labels(), scale))

    for scale in SCALES:
        yield f"joint, draw first, guidance {scale:g}", partial(of_drawn, scale)
    for scale in SCALES:
        yield f"label given, guidance {scale:g}", partial(of_balanced, scale)


def sample_specialist(
    unet: nn.Module, labels: torch.Tensor | None, scale: float, num_samples: int, seed: int
) -> torch.Tensor:
    scheduler = DPMSolverMultistepScheduler(**SOLVER)
    return sample_unet(unet, scheduler, NUM_STEPS, labels, scale, num_samples, seed)


def ddpm_rows(model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    def bound() -> Score:
        alone = MultimodalUNet2DModel.from_unet(model()).eval()
        return bits_per_dim(alone, MultimodalDDPMScheduler(prediction_type="epsilon"), judge)

    yield "joint", lambda: judge.quality(sample_specialist(model(), None, 1.0, judge.num_samples, seed))
    yield "likelihood", bound


def class_conditional_rows(model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    def sample(labels: torch.Tensor, scale: float) -> torch.Tensor:
        return sample_specialist(model(), labels, scale, judge.num_samples, seed)

    return rows_of_labels(sample, drawn_labels(judge, seed), judge)


class WithMask(nn.Module):
    """A mask-conditioned UNet as a plain one, its masks those of the rows of each batch in turn.

    With guidance, against a mask that is withheld, it is called once a step all the same.
    """

    def __init__(self, unet: nn.Module, masks: torch.Tensor, scale: float = 1.0):
        super().__init__()
        self.unet, self.config, self.scale = unet, unet.config, scale
        self.masks, self.calls = masks.split(BATCH_SIZE), 0

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor):
        mask = mask_channel(self.masks[self.calls // NUM_STEPS])
        self.calls += 1
        output = self.unet(torch.cat([sample, mask], dim=1), timestep)
        if self.scale != 1:
            withheld = self.unet(torch.cat([sample, torch.zeros_like(mask)], dim=1), timestep).sample
            output.sample = withheld + self.scale * (output.sample - withheld)
        return output


def mask_conditioned_rows(
    model: Callable[[], nn.Module], judge: Judge, seed: int, scales: tuple[float, ...] = (1.0,)
) -> Iterator[Row]:
    masks = judge.masks[: judge.num_samples]

    def of_masks(scale: float) -> Score:
        images = sample_specialist(WithMask(model(), masks, scale), None, 1.0, len(masks), seed)
        return given_mask(judge, images)

    for scale in scales:
        yield "mask given" if scale == 1 else f"mask given, guidance {scale:g}", partial(of_masks, scale)


def silhouette_unet_rows(model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    def read() -> Score:
        masks = [model()(batch * 2 - 1, 0).sample.argmax(1) for batch in judge.images.split(BATCH_SIZE)]
        return {"mask_iou": mask_iou(torch.cat(masks), judge.masks)}

    yield "image given", read


def classifier_rows(model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    def read() -> Score:
        logits = torch.cat([model()(batch).float() for batch in (judge.images * 2 - 1).split(BATCH_SIZE)])
        return {
            "label_accuracy": (logits.argmax(1) == judge.labels).float().mean().item(),
            "calibration_error": calibration_error(logits.softmax(1), judge.labels),
        }

    yield "image given", read


SPECIALIST_ROWS: dict[str, Callable[[Callable[[], nn.Module], Judge, int], Iterator[Row]]] = {
    "classifier": classifier_rows,
    "ddpm": ddpm_rows,
    "class_conditional": class_conditional_rows,
    "class_conditional_min_snr": class_conditional_rows,
    "class_conditional_few_labels": class_conditional_rows,
    "silhouette_unet": silhouette_unet_rows,
    "mask_conditioned": mask_conditioned_rows,
    "mask_conditioned_min_snr": mask_conditioned_rows,
    "mask_conditioned_dropout": partial(mask_conditioned_rows, scales=(1.0, MASK_SCALE)),
    "concatenated": concatenated_rows,
    "concatenated_tuned": concatenated_rows,
}


def rows_of(arm: str, model: Callable[[], nn.Module], judge: Judge, seed: int) -> Iterator[Row]:
    """All rows of an arm; the model is asked for when the first of them is computed."""
    if isinstance(ARMS[arm], Joint):
        return joint_rows(arm, model, judge, seed)
    return SPECIALIST_ROWS[arm](model, judge, seed)


def real_images_rows(data: Mapping[str, torch.Tensor], judge: Judge, seed: int) -> Iterator[Row]:
    """As many training images as are sampled: what the best of samples would have."""

    def compute() -> Score:
        order = torch.randperm(len(data["label"]), generator=torch.Generator().manual_seed(seed))
        rows = order[: judge.num_samples]
        return agreement_given_labels(judge, data["image"][rows][:, None].float() / 255, data["label"][rows])

    yield "joint", compute
