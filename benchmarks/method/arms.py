"""The arms of the controlled comparison: what each changes of the package's defaults, and how it is trained.

Every arm has the same trunk, data order, optimiser, averaging and number of steps; all but the classifier have the
same number of parameters within 2 %.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch


sys.path[1:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "fashion_mnist")]

from baselines import TRUNK as TRUNK_32  # noqa: E402
from baselines import Classifier, classifier_loss, ddpm_loss, noise_loss, silhouette_loss, to_pixels  # noqa: E402
from concatenated import ConcatenatedUNet, concatenated_loss, tuned_loss  # noqa: E402
from diffusers import DDPMScheduler, UNet2DModel  # noqa: E402
from torch import nn  # noqa: E402

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalUNet2DModel, Presence  # noqa: E402
from mmdiff_pipelines.training.objective import MultitaskObjective  # noqa: E402
from mmdiff_pipelines.training.states import PresenceShares, StepDraws, assign_states, draw_step  # noqa: E402


SIZE = 16
MODALITIES = ("label", "mask")
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

    def _condition(self, hidden, embedding, sample, encodings, states):
        return super()._condition(hidden, embedding, sample, {}, states)


class HiddenAbsence(MultimodalUNet2DModel):
    """The own channels of what is queried or absent are zeros for the network, where z_t has noise."""

    def forward(self, sample, timestep, encodings=None, states=None, return_dict=True):
        sample = sample.clone()
        for name, state in (states or {}).items():
            if name in self.modality_modules and self.modality_modules[name].space == "own":
                unseen = (state == Presence.QUERIED) | (state == Presence.ABSENT)
                sample[:, self.channel_slices[name]].masked_fill_(unseen.view(-1, 1, 1, 1), 0)
        return super().forward(sample, timestep, encodings, states, return_dict)


class LiteralScheduler(MultimodalDDPMScheduler):
    """Ancestral sampling of the paper's scaling from where something is left of z_0: alpha_bar is 1e-19 at t = 40."""

    def set_timesteps(self, num_inference_steps=None, device=None):
        super().set_timesteps(self.config.num_train_timesteps, device)
        self.timesteps = self.timesteps[-num_inference_steps:]


class AttachedScheduler(MultimodalDDPMScheduler):
    """The target's encodings keep their gradient."""

    def add_noise(self, original_samples, noise, timesteps, encodings=None):
        self.attached = encodings
        return super().add_noise(original_samples, noise, timesteps, encodings)

    def get_target(self, original_samples, noise, timesteps, encodings=None):
        return super().get_target(original_samples, noise, timesteps, self.attached)


def initialise(unet: MultimodalUNet2DModel) -> None:
    """Give what stands beside the trunk, and starts at zero, torch's own initialisation."""
    for module in [*unet.conv_condition.values(), unet.conv_reserved]:
        if module is not None:
            module.reset_parameters()
    for embedding in unet.presence_embedding.values():
        nn.init.normal_(embedding.weight, std=0.3)
    proj = unet.modality_modules["label"].condition_proj
    nn.init.normal_(proj.weight, std=proj.in_features**-0.5)  # of unit variance, as an embedding of the class


def one_at_a_time(draws: StepDraws, shares: PresenceShares) -> dict[str, torch.Tensor]:
    """States of rows with a noised image, in which one modality at most is given or absent."""
    state = torch.full_like(draws.timesteps, int(Presence.JOINT))
    state[draws.presence[:, 0] >= shares.joint] = int(Presence.GIVEN)
    state[draws.presence[:, 0] >= shares.joint + shares.given] = int(Presence.ABSENT)
    of_label = draws.presence[:, 1] < 0.5
    joint = torch.full_like(state, int(Presence.JOINT))
    return {"label": torch.where(of_label, state, joint), "mask": torch.where(of_label, joint, state)}


@dataclass(frozen=True)
class Joint:
    """A joint model of image, label and silhouette mask.

    Args:
        space: own or shared channels, of both modalities.
        aggregation, c: the form of W and its scale, of the label and of the mask.
        label_code: channels of the label's patterns, and cells a side; 10 and 1 are one-hot planes.
        prediction_type, alpha_scaling: of the scheduler.
        last_timestep: of training, exclusive.
        label_weight, mask_weight: lambda of their losses; None learns all of them.
        image_weight: 0 leaves recovery alone.
        query_weight: a factor of the losses in rows whose modality is queried.
        presence: whether the network is told the state of every modality.
        given_path: whether it is told what is given, beside z_t.
        hide_absent: whether the network sees zeros, and not noise, in the own channels of what is queried or absent.
        pooled_reading: whether the label's noisy channel is read by the path of a given label too.
        learn_encoder, detach_target: whether the label's patterns are trained, and the target's encodings detached.
        random_init: what is added to the trunk starts at random, as the class embedding of the class-conditional
            model does, and not at zero.
        snr_gamma: of Min-SNR.
        shares, perception_share: of the presence states.
        mask_shares: of the mask, where they are others than the label's.
        one_at_a_time: whether rows with a noised image have one modality at most that is given or absent; else the
            states are drawn independently.
        query_absent: the share of absent modalities, in rows with a noised image, that are queried instead; with 1,
            guidance too is against what is queried.
    """

    space: str = "own"
    aggregation: tuple[str, str] = ("decay", "decay")
    c: tuple[float, float] = (1.0, 1.0)
    label_code: tuple[int, int] = (1, 4)
    prediction_type: str = "total_noise"
    alpha_scaling: str = "schedule"
    last_timestep: int = 1000
    label_weight: float | None = 0.1
    mask_weight: float = 0.3
    image_weight: float = 1.0
    query_weight: float = 1.0
    presence: bool = True
    given_path: bool = True
    hide_absent: bool = False
    pooled_reading: bool = False
    learn_encoder: bool = False
    detach_target: bool = True
    random_init: bool = False
    snr_gamma: float | None = None
    shares: PresenceShares = field(default_factory=PresenceShares)
    mask_shares: PresenceShares | None = None
    perception_share: float = 0.35
    one_at_a_time: bool = False
    query_absent: float = 0.0

    @property
    def withheld_state(self) -> Presence:
        """Of what guidance withholds."""
        return Presence.QUERIED if self.query_absent == 1 else Presence.ABSENT

    def scheduler(self) -> MultimodalDDPMScheduler:
        cls = MultimodalDDPMScheduler if self.detach_target else AttachedScheduler
        cls = LiteralScheduler if self.alpha_scaling == "paper" else cls
        return cls(
            aggregation=dict(zip(MODALITIES, self.aggregation, strict=True)),
            modality_weights=dict(zip(MODALITIES, self.c, strict=True)),
            prediction_type=self.prediction_type,
            alpha_scaling=self.alpha_scaling,
        )

    def build(self) -> nn.Module:
        """The model with its objective."""
        cls = MultimodalUNet2DModel if self.given_path else NotToldWhatIsGiven
        cls = HiddenAbsence if self.hide_absent else cls
        channels, grid = self.label_code
        label = {"type": "categorical", "num_classes": 10, "channels": channels, "grid": grid}
        label |= {"space": self.space, "learn_encoder": self.learn_encoder, "condition_on_noisy": self.pooled_reading}
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
        unet, size = model.unet, len(batch["label"])
        draws = draw_step(generator, size, (unet.total_channels, SIZE, SIZE), self.last_timestep, 2)
        inputs = {"image": to_pixels(batch["image"]), "label": batch["label"], "mask": batch["mask"].long()}
        return model(inputs, draws.timesteps, draws.noise, self._states(draws, generator))[0]

    def _states(self, draws: StepDraws, generator: torch.Generator) -> dict[str, torch.Tensor]:
        available = {name: torch.ones(len(draws.timesteps), dtype=torch.bool) for name in MODALITIES}
        recoverable = dict.fromkeys(available, True)
        states, of_mask = (
            assign_states(draws, available, recoverable, self.perception_share, shares)
            for shares in (self.shares, self.mask_shares or self.shares)
        )
        states["mask"] = of_mask["mask"]
        noised = states["image"] == Presence.JOINT
        if self.one_at_a_time:
            for name, state in one_at_a_time(draws, self.shares).items():
                states[name] = torch.where(noised, state, states[name])
        if self.query_absent:
            drawn = noised & (torch.rand(len(noised), generator=generator) < self.query_absent)
            for name in available:
                absent = states[name] == Presence.ABSENT
                states[name] = torch.where(drawn & absent, int(Presence.QUERIED), states[name])
        return states


@dataclass(frozen=True)
class Specialist:
    """A model of one direction, or a rival: how it is built, and its loss."""

    build: Callable[[], nn.Module]
    loss: Loss


def class_conditional_unet() -> nn.Module:
    return UNet2DModel(**TRUNK, num_class_embeds=11)


def mask_conditioned_unet() -> nn.Module:
    return UNet2DModel(**TRUNK | {"in_channels": 2})


def mask_conditioned_loss(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    generator: torch.Generator,
    dropout: float = 0.0,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """DDPM of the image, the mask as a second channel of the input, which is zero where it is withheld."""
    images = to_pixels(batch["image"])
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(images),), generator=generator)
    scheduler = DDPMScheduler()
    noisy = scheduler.add_noise(images, noise, timesteps)
    masks = mask_channel(batch["mask"])
    if dropout:
        masks = masks * (torch.rand(len(masks), 1, 1, 1, generator=generator) >= dropout)
    noise_pred = model(torch.cat([noisy, masks], dim=1), timesteps).sample
    return noise_loss(noise_pred, noise, timesteps, scheduler, snr_gamma)


def mask_channel(masks: torch.Tensor) -> torch.Tensor:
    """(B, H, W) of 0 and 1 -> (B, 1, H, W) of -1 and 1."""
    return masks[:, None].float() * 2 - 1


BRIDGE = ("bridge",) * 2
MOSTLY_GIVEN = PresenceShares(0.3, 0.5, 0.2)
SHARED = {"space": "shared", "aggregation": BRIDGE, "c": (0.5, 0.5)}
HEADS = {"space": "shared", "aggregation": ("none",) * 2}
LITERAL = {
    "space": "shared",
    "aggregation": ("sqrt_bridge",) * 2,
    "alpha_scaling": "paper",
    "prediction_type": "sample",  # noise cannot be sampled from: alpha_bar underflows to 0, and z_0 with it
    "presence": False,
    "given_path": False,
    "perception_share": 0.0,
    "shares": PresenceShares(1.0, 0.0, 0.0),
}
LITERAL_STEPS = 50
ARMS: dict[str, Joint | Specialist] = {
    # specialists and rivals
    "classifier": Specialist(lambda: Classifier(TRUNK), classifier_loss),
    "ddpm": Specialist(lambda: UNet2DModel(**TRUNK), ddpm_loss),
    "class_conditional": Specialist(class_conditional_unet, ddpm_loss),
    "class_conditional_min_snr": Specialist(class_conditional_unet, partial(ddpm_loss, snr_gamma=5.0)),
    # as many rows with a label as a joint model has with a given one
    "class_conditional_few_labels": Specialist(class_conditional_unet, partial(ddpm_loss, label_dropout=0.79)),
    "silhouette_unet": Specialist(lambda: UNet2DModel(**TRUNK | {"out_channels": 2}), silhouette_loss),
    "mask_conditioned": Specialist(mask_conditioned_unet, mask_conditioned_loss),
    "mask_conditioned_min_snr": Specialist(mask_conditioned_unet, partial(mask_conditioned_loss, snr_gamma=5.0)),
    "mask_conditioned_dropout": Specialist(mask_conditioned_unet, partial(mask_conditioned_loss, dropout=0.1)),
    "concatenated": Specialist(lambda: ConcatenatedUNet(TRUNK), concatenated_loss),
    "concatenated_tuned": Specialist(lambda: ConcatenatedUNet(TRUNK), tuned_loss),
    "recovery_only": Joint(image_weight=0.0, perception_share=1.0),
    # where the modalities are, and when they emerge
    **{
        f"own_{aggregation}_{c:g}": Joint(aggregation=(aggregation,) * 2, c=(c, c))
        for aggregation in ("decay", "bridge")
        for c in (0.3, 1.0, 3.0)
    },
    **{
        f"shared_{aggregation}_{c}": Joint(space="shared", aggregation=(aggregation,) * 2, c=(c, c))
        for aggregation in ("bridge", "sqrt_bridge")
        for c in (0.1, 0.25, 0.5, 1.0)
    },
    "heads_only": Joint(**HEADS),
    "own_none": Joint(aggregation=("none", "none")),  # heads only, and own channels for what is given
    # the paper's scaling: with timesteps of the whole grid, of which one in fifty has anything left of z_0, and of these
    "paper_literal": Joint(**LITERAL),
    "paper_literal_50": Joint(**LITERAL, last_timestep=LITERAL_STEPS),
    # one switch of own_decay_1 at a time; of shared_bridge_0.5, where own channels know no such switch
    "v_target": Joint(prediction_type="v_prediction"),
    "v_target_noise_weighted": Joint(prediction_type="v_prediction", snr_gamma=math.inf),
    "z_0_target": Joint(prediction_type="sample"),
    "shared_epsilon_target": Joint(**SHARED, prediction_type="epsilon"),
    "no_presence": Joint(presence=False),
    "no_given_path": Joint(given_path=False),
    "min_snr": Joint(snr_gamma=5.0),
    "min_snr_1": Joint(snr_gamma=1.0),
    "learned_lambda": Joint(label_weight=None),
    "lambda_low": Joint(label_weight=0.01, mask_weight=0.03),
    "lambda_high": Joint(label_weight=1.0, mask_weight=3.0),
    "learned_encoder": Joint(learn_encoder=True),
    "shared_learned_encoder": Joint(**SHARED, learn_encoder=True),
    "shared_attached_target": Joint(**SHARED, learn_encoder=True, detach_target=False),
    "no_perception_rows": Joint(perception_share=0.0),
    "perception_0.2": Joint(perception_share=0.2),
    "perception_0.5": Joint(perception_share=0.5),
    "mostly_joint": Joint(shares=PresenceShares(0.8, 0.1, 0.1)),
    "mostly_given": Joint(shares=MOSTLY_GIVEN),
    # further ideas
    "hide_absent": Joint(hide_absent=True),
    "query_weight_5": Joint(query_weight=5.0),
    "query_weight_25": Joint(query_weight=25.0),
    "given_query_10": Joint(query_weight=10.0, shares=MOSTLY_GIVEN),
    "given_query_4": Joint(query_weight=4.0, shares=MOSTLY_GIVEN),
    "bridge_given_query_4": Joint(aggregation=BRIDGE, query_weight=4.0, shares=MOSTLY_GIVEN),
    "label_bridge": Joint(aggregation=("bridge", "decay")),
    "label_bridge_given": Joint(aggregation=("bridge", "decay"), shares=MOSTLY_GIVEN),
    "label_bridge_query_4": Joint(aggregation=("bridge", "decay"), query_weight=4.0),
    "label_bridge_query_4_min_snr": Joint(aggregation=("bridge", "decay"), query_weight=4.0, snr_gamma=5.0),
    "label_bridge_query_4_mask_given": Joint(
        aggregation=("bridge", "decay"), query_weight=4.0, mask_shares=MOSTLY_GIVEN
    ),
    "label_bridge_query_4_mask_0.15": Joint(aggregation=("bridge", "decay"), query_weight=4.0, mask_weight=0.15),
    "given_query_4_min_snr": Joint(query_weight=4.0, shares=MOSTLY_GIVEN, snr_gamma=5.0),
    "given_query_4_perception_0.5": Joint(query_weight=4.0, shares=MOSTLY_GIVEN, perception_share=0.5),
    "given_query_10_random_init": Joint(query_weight=10.0, shares=MOSTLY_GIVEN, random_init=True),
    "query_absent": Joint(query_absent=0.5),
    "double_duty": Joint(
        query_absent=1.0, shares=PresenceShares(0.2, 0.45, 0.35), perception_share=0.25, query_weight=3.0
    ),
    "one_at_a_time": Joint(one_at_a_time=True, shares=PresenceShares(0.3, 0.55, 0.15)),
    "heads_one_at_a_time": Joint(**HEADS, one_at_a_time=True, shares=PresenceShares(0.1, 0.75, 0.15)),
    "heads_mostly_given": Joint(**HEADS, shares=MOSTLY_GIVEN),
    "label_leads": Joint(c=(3.0, 1.0)),
    "label_lags": Joint(c=(0.3, 1.0)),
    "mask_lags": Joint(c=(1.0, 0.3)),
    "random_init": Joint(random_init=True),
    "pooled_reading": Joint(pooled_reading=True),
    "given_query_4_pooled": Joint(pooled_reading=True, query_weight=4.0, shares=MOSTLY_GIVEN),
    "given_query_10_pooled": Joint(pooled_reading=True, query_weight=10.0, shares=MOSTLY_GIVEN),
    "label_planes": Joint(label_code=(10, 1), c=(0.3, 1.0)),
}
# the arms that are compared, with several seeds and at every guidance scale; all others are the screening
MAIN_ARMS = (
    "ddpm", "class_conditional", "class_conditional_min_snr", "class_conditional_few_labels", "mask_conditioned",
    "mask_conditioned_min_snr", "mask_conditioned_dropout", "classifier", "silhouette_unet", "concatenated",
    "concatenated_tuned", "recovery_only", "paper_literal_50", "heads_only", "own_none", "heads_one_at_a_time",
    "shared_bridge_0.25", "own_decay_1", "own_bridge_1", "given_query_4", "label_bridge_query_4",
)  # fmt: skip
BEST_ARM = "own_decay_1"
