"""The arms of the controlled comparison: what each changes of the package's defaults, and how it is trained.

Every arm has the same trunk, data order, optimiser, averaging and number of steps; all but the classifier have the
same number of parameters within 2 %.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from unittest import mock

import torch
from baselines import TRUNK as TRUNK_32
from baselines import Classifier, ddpm_loss, silhouette_loss, to_pixels
from concatenated import ConcatenatedUNet, concatenated_loss, tuned_loss
from diffusers import UNet2DModel
from torch import nn

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalUNet2DModel, Presence, objective
from mmdiff_pipelines.training.objective import MultitaskObjective
from mmdiff_pipelines.training.states import PresenceShares, assign_states, draw_step


SIZE = 16
TRUNK = TRUNK_32 | {
    "sample_size": SIZE,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3,
}
Loss = Callable[[nn.Module, Mapping[str, torch.Tensor], torch.Generator], torch.Tensor]


class NotToldWhatIsGiven(MultimodalUNet2DModel):
    """What is given is in z_t, as the paper has it, and nowhere else."""

    def impose_given(self, sample, encodings, states):
        return sample

    def _condition(self, hidden, embedding, encodings, states):
        return super()._condition(hidden, embedding, {}, states)


class LiteralScheduler(MultimodalDDPMScheduler):
    """Ancestral sampling of the paper's scaling from where something is left of z_0: alpha_bar is 1e-19 at t = 40."""

    def set_timesteps(self, num_inference_steps=None, device=None):
        super().set_timesteps(self.config.num_train_timesteps, device)
        self.timesteps = self.timesteps[-num_inference_steps:]


def initialise(unet: MultimodalUNet2DModel) -> None:
    """Give what stands beside the trunk, and starts at zero, torch's own initialisation."""
    for module in [*unet.conv_condition.values(), unet.conv_reserved]:
        if module is not None:
            module.reset_parameters()
    for embedding in unet.presence_embedding.values():
        nn.init.normal_(embedding.weight, std=0.3)
    proj = unet.modality_modules["label"].condition_proj
    nn.init.normal_(proj.weight, std=proj.in_features**-0.5)  # of unit variance, as an embedding of the class


@dataclass(frozen=True)
class Joint:
    """A joint model of image, label and silhouette mask.

    Args:
        space, aggregation, weight: of both modalities: own or shared channels, the form of W, and c.
        prediction_type, alpha_scaling: of the scheduler.
        label_weight, mask_weight: lambda of their losses; None learns all of them.
        image_weight: 0 leaves recovery alone.
        presence: whether the network is told the state of every modality.
        given_path: whether it is told what is given, beside z_t.
        learn_encoder: whether the label's patterns are trained.
        snr_gamma: of Min-SNR.
        shares, perception_share: of the presence states.
    """

    space: str = "own"
    aggregation: str = "decay"
    weight: float = 1.0
    prediction_type: str = "total_noise"
    alpha_scaling: str = "schedule"
    label_weight: float | None = 0.1
    mask_weight: float = 0.3
    image_weight: float = 1.0
    presence: bool = True
    given_path: bool = True
    learn_encoder: bool = False
    snr_gamma: float | None = None
    shares: PresenceShares = field(default_factory=PresenceShares)
    perception_share: float = 0.35
    detach_target: bool = True
    query_weight: float = 1.0
    query_absent: float = 0.0
    label_leads: float = 1.0
    one_at_a_time: bool = False
    random_init: bool = False

    def scheduler(self) -> MultimodalDDPMScheduler:
        cls = LiteralScheduler if self.alpha_scaling == "paper" else MultimodalDDPMScheduler
        return cls(
            aggregation={"label": self.aggregation, "mask": self.aggregation},
            modality_weights={"label": self.weight * self.label_leads, "mask": self.weight},
            prediction_type=self.prediction_type,
            alpha_scaling=self.alpha_scaling,
        )

    def build(self) -> nn.Module:
        """The model with its objective."""
        cls = MultimodalUNet2DModel if self.given_path else NotToldWhatIsGiven
        label = {"type": "categorical", "num_classes": 10, "space": self.space, "learn_encoder": self.learn_encoder}
        mask = {"type": "segmentation", "num_classes": 2, "space": self.space}
        unet = cls(**TRUNK, modalities={"label": label, "mask": mask})
        if self.random_init:
            initialise(unet)
        if not self.presence:
            unet.presence_embedding.requires_grad_(False)  # they start at zero
        weights = {"image": self.image_weight, "label": self.label_weight, "mask": self.mask_weight}
        task_weights = "uncertainty" if self.label_weight is None else weights
        return MultitaskObjective(unet, self.scheduler(), task_weights, self.snr_gamma, self.query_weight)

    def loss(self, model: MultitaskObjective, batch: Mapping[str, torch.Tensor], generator: torch.Generator):
        unet = model.unet
        draws = draw_step(generator, len(batch["label"]), (unet.total_channels, SIZE, SIZE), 1000, 2)
        available = {name: torch.ones(len(batch["label"]), dtype=torch.bool) for name in unet.modality_modules}
        recoverable = dict.fromkeys(available, True)
        states = assign_states(draws, available, recoverable, self.perception_share, self.shares)
        if self.one_at_a_time:
            drawn = torch.full_like(draws.timesteps, int(Presence.JOINT))
            drawn[draws.presence[:, 0] >= self.shares.joint] = int(Presence.GIVEN)
            drawn[draws.presence[:, 0] >= self.shares.joint + self.shares.given] = int(Presence.ABSENT)
            for name, chosen in {"label": draws.presence[:, 1] < 0.5, "mask": draws.presence[:, 1] >= 0.5}.items():
                state = torch.where(chosen, drawn, int(Presence.JOINT))
                states[name] = torch.where(states["image"] == Presence.JOINT, state, states[name])
        if self.query_absent:
            drawn = torch.rand(len(batch["label"]), generator=generator) < self.query_absent
            for name in available:
                rows = drawn & (states["image"] == Presence.JOINT) & (states[name] == Presence.ABSENT)
                states[name] = torch.where(rows, int(Presence.QUERIED), states[name])
        inputs = {"image": to_pixels(batch["image"]), "label": batch["label"], "mask": batch["mask"].long()}
        with (
            nullcontext()
            if self.detach_target
            else mock.patch.object(objective, "detached", lambda encodings: encodings)
        ):
            return model(inputs, draws.timesteps, draws.noise, states)[0]


@dataclass(frozen=True)
class Specialist:
    """A model of one direction, or a rival: how it is built, and its loss."""

    build: Callable[[], nn.Module]
    loss: Loss


def classifier_loss(model: nn.Module, batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    return nn.functional.cross_entropy(model(to_pixels(batch["image"])).float(), batch["label"])


def mask_conditioned_loss(
    model: nn.Module, batch: Mapping[str, torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """DDPM of the image, the mask as a second channel of the input."""
    images = to_pixels(batch["image"])
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(images),), generator=generator)
    noisy = MultimodalDDPMScheduler().add_noise(images, noise, timesteps)
    output = model(torch.cat([noisy, mask_channel(batch["mask"])], dim=1), timesteps).sample
    return nn.functional.mse_loss(output.float(), noise)


def mask_channel(masks: torch.Tensor) -> torch.Tensor:
    """(B, H, W) of 0 and 1 -> (B, 1, H, W) of -1 and 1."""
    return masks[:, None].float() * 2 - 1


SHARED = {"space": "shared", "aggregation": "bridge", "weight": 0.5}
ARMS: dict[str, Joint | Specialist] = {
    # specialists and rivals
    "classifier": Specialist(lambda: Classifier(TRUNK), classifier_loss),
    "ddpm": Specialist(lambda: UNet2DModel(**TRUNK), ddpm_loss),
    "class_conditional": Specialist(lambda: UNet2DModel(**TRUNK, num_class_embeds=11), ddpm_loss),
    "silhouette_unet": Specialist(lambda: UNet2DModel(**TRUNK | {"out_channels": 2}), silhouette_loss),
    "mask_conditioned": Specialist(lambda: UNet2DModel(**TRUNK | {"in_channels": 2}), mask_conditioned_loss),
    "concatenated": Specialist(lambda: ConcatenatedUNet(TRUNK), concatenated_loss),
    "concatenated_tuned": Specialist(lambda: ConcatenatedUNet(TRUNK), tuned_loss),
    "recovery_only": Joint(image_weight=0.0, perception_share=1.0),
    # where the modalities are, and when they emerge
    "own_decay_0.3": Joint(weight=0.3),
    "own_decay_1": Joint(),
    "own_decay_3": Joint(weight=3.0),
    "own_bridge_0.3": Joint(aggregation="bridge", weight=0.3),
    "own_bridge_1": Joint(aggregation="bridge"),
    "own_bridge_3": Joint(aggregation="bridge", weight=3.0),
    **{
        f"shared_{aggregation}_{c}": Joint(space="shared", aggregation=aggregation, weight=c)
        for aggregation in ("bridge", "sqrt_bridge")
        for c in (0.1, 0.25, 0.5, 1.0)
    },
    "heads_only": Joint(space="shared", aggregation="none"),
    "heads_mostly_given": Joint(space="shared", aggregation="none", shares=PresenceShares(0.1, 0.7, 0.2)),
    "paper_literal": Joint(
        space="shared",
        aggregation="sqrt_bridge",
        alpha_scaling="paper",
        prediction_type="sample",  # noise cannot be sampled from: alpha_bar underflows to 0, and z_0 with it
        presence=False,
        given_path=False,
        perception_share=0.0,
        shares=PresenceShares(1.0, 0.0, 0.0),
    ),
    # the best arm, one switch off at a time
    "epsilon_target": Joint(**SHARED, prediction_type="epsilon"),
    "v_target": Joint(prediction_type="v_prediction"),
    "z_0_target": Joint(prediction_type="sample"),
    "no_presence": Joint(presence=False),
    "no_given_path": Joint(given_path=False),
    "min_snr": Joint(snr_gamma=5.0),
    "learned_lambda": Joint(label_weight=None),
    "lambda_low": Joint(label_weight=0.01, mask_weight=0.03),
    "lambda_high": Joint(label_weight=1.0, mask_weight=3.0),
    "learned_encoder": Joint(learn_encoder=True),
    "no_perception_rows": Joint(perception_share=0.0),
    "perception_0.2": Joint(perception_share=0.2),
    "perception_0.5": Joint(perception_share=0.5),
    "mostly_joint": Joint(shares=PresenceShares(0.8, 0.1, 0.1)),
    "mostly_given": Joint(shares=PresenceShares(0.3, 0.5, 0.2)),
    "shared_learned_encoder": Joint(**SHARED, learn_encoder=True),
    "shared_attached_target": Joint(**SHARED, learn_encoder=True, detach_target=False),
    # further ideas
    "query_weight_5": Joint(query_weight=5.0),
    "query_weight_25": Joint(query_weight=25.0),
    "given_query_10": Joint(query_weight=10.0, shares=PresenceShares(0.3, 0.5, 0.2)),
    "query_absent": Joint(query_absent=0.5),
    "no_absent": Joint(query_absent=1.0),
    "double_duty": Joint(
        query_absent=1.0, shares=PresenceShares(0.2, 0.45, 0.35), perception_share=0.25, query_weight=3.0
    ),
    "heads_double_duty": Joint(
        space="shared",
        aggregation="none",
        query_absent=1.0,
        shares=PresenceShares(0.0, 0.6, 0.4),
        perception_share=0.25,
        query_weight=3.0,
    ),
    "one_at_a_time": Joint(one_at_a_time=True, shares=PresenceShares(0.3, 0.55, 0.15)),
    "heads_one_at_a_time": Joint(
        space="shared", aggregation="none", one_at_a_time=True, shares=PresenceShares(0.1, 0.75, 0.15)
    ),
    "label_leads": Joint(label_leads=3.0),
    "label_lags": Joint(label_leads=0.3),
    "mask_lags": Joint(weight=0.3, label_leads=1 / 0.3),
    "random_init": Joint(random_init=True),
    "heads_random_init": Joint(
        space="shared", aggregation="none", shares=PresenceShares(0.1, 0.7, 0.2), random_init=True
    ),
}
