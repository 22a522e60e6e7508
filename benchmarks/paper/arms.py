"""The arms: joint models, trained by the launch lines of the examples, and the baselines that they are held against.

All arms on one dataset have the same trunk, steps, batches, order of data, optimiser and averaging. The CIFAR-10 arms
take 9,000 steps of batch 32, those on CamVid 6,000 of batch 16: about 20 minutes on one core that has bfloat16.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from baselines import LABEL_DROPOUT, NULL_CLASS, NUM_CLASSES, Classifier, noise_loss
from baselines import TRUNK as GREY_TRUNK
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from mmdiff_pipelines.evaluation import LearnedSimilarity
from mmdiff_pipelines.modalities.masked_image import random_visibility

from .data import IGNORED, NUM_SCENE_CLASSES, SIZES, Batch, augment_scenes, hole_channels, one_hot_channels, to_pixels


TRUNK = GREY_TRUNK | {"in_channels": 3, "out_channels": 3}
CAPTIONED = GREY_TRUNK | {"block_out_channels": (8, 16, 32, 64), "norm_num_groups": 4}
SCENES = TRUNK | {"sample_size": SIZES["camvid"]}
V = {"prediction_type": "v_prediction"}  # one call at t = T gives an image too
NOISE_WEIGHTED_V = V | {"snr_gamma": math.inf}
Loss = Callable[[nn.Module, Batch, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Joint:
    """A joint model; its launch line, with `--output_dir runs/paper/<the arm's name>-0`, is in the README of an example.

    Args:
        example, data: folders of both.
        variant_of: the arm whose line it shares.
        options: of the command line, which the variant has instead.
        generates: whether it has learned to make an image of nothing.
    """

    example: str
    data: str
    variant_of: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    generates: bool = True


@dataclass(frozen=True)
class Baseline:
    """A model of one direction: how it is built, its loss, what it predicts if it denoises, and how it is trained."""

    build: Callable[[], nn.Module]
    loss: Loss
    data: str = "cifar10"
    steps: int = 9000
    batch_size: int = 32
    prediction_type: str = "epsilon"
    learning_rate: float = 3e-3
    adam_beta2: float = 0.999


def denoising_loss(
    model: nn.Module,
    images: torch.Tensor,
    generator: torch.Generator,
    condition: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    prediction_type: str = "epsilon",
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """DDPM's, with channels to condition on beside z_t, or class labels, and with Min-SNR weights if asked for."""
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(images),), generator=generator)
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    noisy = scheduler.add_noise(images, noise, timesteps)
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(images, noise, timesteps)
    inputs = noisy if condition is None else torch.cat([noisy, condition], dim=1)
    return noise_loss(model(inputs, timesteps, class_labels=labels).sample, target, timesteps, scheduler, snr_gamma)


def ddpm_loss(model: nn.Module, batch: Batch, generator: torch.Generator, **target) -> torch.Tensor:
    return denoising_loss(model, to_pixels(batch["image"]), generator, **target)


def class_conditional_loss(model: nn.Module, batch: Batch, generator: torch.Generator, **target) -> torch.Tensor:
    dropped = torch.rand(len(batch["label"]), generator=generator) < LABEL_DROPOUT
    labels = torch.where(dropped, NULL_CLASS, batch["label"])
    return denoising_loss(model, to_pixels(batch["image"]), generator, labels=labels, **target)


def classifier_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    return F.cross_entropy(model(to_pixels(batch["image"])).float(), batch["label"])


def embedding_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """The joint model's own."""
    embeddings = model(to_pixels(batch["image"])).float()
    return (embeddings - batch["embedding"]).square().sum(1).mean()


def draw_hole(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What a masked image shows, as the joint model draws it in training: (B, C + 1, H, W)."""
    return hole_channels(images, random_visibility(len(images), *images.shape[2:], generator=generator))


def mask_conditioned_loss(model: nn.Module, batch: Batch, generator: torch.Generator, **target) -> torch.Tensor:
    images = to_pixels(batch["image"])
    return denoising_loss(model, images, generator, condition=draw_hole(images, generator), **target)


def reconstruct(model: nn.Module, hole: torch.Tensor) -> torch.Tensor:
    """A masked image (B, C + 1, H, W) -> the whole one (B, C, H, W), by regression."""
    return model(hole, 0).sample.float()


def reconstruction_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    images = to_pixels(batch["image"])
    return F.mse_loss(reconstruct(model, draw_hole(images, generator)), images)


class PerceptualReconstructionLoss:
    """L1 + LPIPS."""

    def __init__(self, weights: Path | None):
        self.weights, self.similarity = weights, None

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if self.similarity is None:
            self.similarity = LearnedSimilarity(self.weights)
        images = to_pixels(batch["image"])
        output = reconstruct(model, draw_hole(images, generator))
        return F.l1_loss(output, images) + self.similarity(output / 2 + 0.5, images / 2 + 0.5).mean()


def segmenter_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    batch = augment_scenes(batch, generator)
    logits = model(to_pixels(batch["image"]), 0).sample.float()
    return F.cross_entropy(logits, batch["mask"], ignore_index=IGNORED)


def mask_to_image_loss(model: nn.Module, batch: Batch, generator: torch.Generator, **target) -> torch.Tensor:
    batch = augment_scenes(batch, generator)
    masks = one_hot_channels(batch["mask"])
    return denoising_loss(model, to_pixels(batch["image"]), generator, condition=masks, **target)


def concatenated_loss(model: nn.Module, batch: Batch, generator: torch.Generator, **target) -> torch.Tensor:
    """One DDPM of RGB and one-hot classes together."""
    batch = augment_scenes(batch, generator)
    joint = torch.cat([to_pixels(batch["image"]), one_hot_channels(batch["mask"])], dim=1)
    return denoising_loss(model, joint, generator, **target)


def denoiser(loss: Loss, target: dict, **trunk) -> Baseline:
    return Baseline(
        lambda: UNet2DModel(**TRUNK | trunk), partial(loss, **target), prediction_type=target["prediction_type"]
    )


def scenes(loss: Loss, steps: int = 6000, **trunk) -> Baseline:
    return Baseline(lambda: UNet2DModel(**SCENES | trunk), loss, "camvid", steps=steps, batch_size=16)


def scene_denoiser(loss: Loss, **trunk) -> Baseline:
    return replace(scenes(partial(loss, **NOISE_WEIGHTED_V), **trunk), prediction_type=V["prediction_type"])


def make_arms(lpips_weights: Path | None = None, embedding_dim: int = 64) -> dict[str, Joint | Baseline]:
    """All arms by name.

    Args:
        lpips_weights: see [`LearnedSimilarity`]; one baseline is trained with it.
        embedding_dim: of the prepared CIFAR-10.
    """
    both = {"in_channels": 3 + NUM_SCENE_CLASSES}
    return {
        # 1. masked pretraining
        "cifar10-masked": Joint("masked_pretraining", "cifar10"),
        "cifar10-masked-always": Joint(  # what sharing costs: it learns to fill in, and not to generate
            "masked_pretraining",
            "cifar10",
            variant_of="cifar10-masked",
            options={"--state_shares": "joint=0,given=1,absent=0"},
            generates=False,
        ),
        "cifar10-masked-18000": Joint(  # with the steps of a model that generates and one that fills in
            "masked_pretraining",
            "cifar10",
            variant_of="cifar10-masked",
            options={"--max_train_steps": "18000"},
        ),
        "reconstruction_mse": Baseline(lambda: UNet2DModel(**TRUNK | {"in_channels": 4}), reconstruction_loss),
        "reconstruction_lpips": Baseline(
            lambda: UNet2DModel(**TRUNK | {"in_channels": 4}), PerceptualReconstructionLoss(lpips_weights)
        ),
        "mask_conditioned": denoiser(mask_conditioned_loss, V, in_channels=7),
        "ddpm": denoiser(ddpm_loss, NOISE_WEIGHTED_V),
        # 2. image and label
        "cifar10-label": Joint("image_and_label", "cifar10"),
        "cifar10-label-heads": Joint(  # the control: the label is recovered, and never in z
            "image_and_label",
            "cifar10",
            variant_of="cifar10-label",
            options={"--modality": "label:categorical:space=shared,aggregation=none"},
        ),
        "cifar10-label-27000": Joint(  # with the steps of the plain DDPM, the class-conditional one and the classifier
            "image_and_label",
            "cifar10",
            variant_of="cifar10-label",
            options={"--max_train_steps": "27000", "--learning_rate": "2e-3"},
        ),
        "ddpm_epsilon": Baseline(lambda: UNet2DModel(**TRUNK), ddpm_loss),
        "class_conditional": replace(  # at the rate of the others its training collapses
            denoiser(class_conditional_loss, NOISE_WEIGHTED_V, num_class_embeds=NUM_CLASSES + 1), learning_rate=2e-3
        ),
        "classifier": Baseline(lambda: Classifier(TRUNK), classifier_loss),
        # 3. image and segmentation mask
        "camvid-segmentation": Joint("image_and_segmentation", "camvid"),
        "segmenter": scenes(segmenter_loss, out_channels=NUM_SCENE_CLASSES),
        "segmenter_judge": scenes(
            segmenter_loss, steps=3000, out_channels=NUM_SCENE_CLASSES, block_out_channels=(24, 48, 72, 72)
        ),
        "mask_to_image": scene_denoiser(mask_to_image_loss, **both),
        "concatenated": replace(  # with the default beta it collapses
            scene_denoiser(concatenated_loss, **both, out_channels=3 + NUM_SCENE_CLASSES), adam_beta2=0.99
        ),
        # 4. image and representation
        "cifar10-embedding": Joint("image_and_representation", "cifar10"),
        "embedding_regression": Baseline(lambda: Classifier(TRUNK, embedding_dim), embedding_loss),
        "fashion-mnist-caption": Joint("image_and_representation", "fashion_mnist"),
        "fashion_ddpm": Baseline(lambda: UNet2DModel(**CAPTIONED), ddpm_loss, "fashion_mnist", steps=7000),
        "fashion_classifier": Baseline(lambda: Classifier(CAPTIONED), classifier_loss, "fashion_mnist", steps=7000),
    }


TASKS = {
    "masked": [
        "cifar10-masked",
        "cifar10-masked-always",
        "cifar10-masked-18000",
        "reconstruction_mse",
        "reconstruction_lpips",
        "mask_conditioned",
        "ddpm",
    ],
    "label": [
        "cifar10-label",
        "cifar10-label-heads",
        "cifar10-label-27000",
        "ddpm",
        "ddpm_epsilon",
        "class_conditional",
        "classifier",
    ],
    "segmentation": ["segmenter_judge", "camvid-segmentation", "segmenter", "mask_to_image", "concatenated"],
    "representation": [
        "cifar10-embedding",
        "embedding_regression",
        "ddpm",
        "fashion-mnist-caption",
        "fashion_ddpm",
        "fashion_classifier",
    ],
}
