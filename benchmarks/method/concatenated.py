"""The rival: one DDPM over the concatenated channels, with a timestep of its own for each modality.

That is UniDiffuser's way (Bao et al., arXiv 2303.06555): a clean modality is at timestep 0, an unknown one is noise at
T, and the network, which knows all timesteps, serves every direction. Labels and masks are the same maps as in the joint
model's own channels, and are read back by the nearest code.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from baselines import to_pixels
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from mmdiff_pipelines import Presence
from mmdiff_pipelines.modalities import CategoricalModality, Geometry, SegmentationModality
from mmdiff_pipelines.training.states import PresenceShares, assign_states, draw_step


CHANNELS = {"image": 0, "label": 1, "mask": 2}
TUNED_WEIGHTS = (3.0, 0.3, 0.9)  # of their errors: 1, 0.1 and 0.3 of the image's mean


class ModalityTimes(nn.Module):
    """(B, 2) timesteps of label and mask -> what they add to the time embedding, (B, embedding_dim)."""

    def __init__(self, projected_dim: int, embedding_dim: int):
        super().__init__()
        self.time_proj = Timesteps(projected_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embeddings = nn.ModuleList(TimestepEmbedding(projected_dim, embedding_dim) for _ in range(2))

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        return sum(embed(self.time_proj(t)) for embed, t in zip(self.embeddings, timesteps.T, strict=True))


class ConcatenatedUNet(nn.Module):
    """Noise of all three channels, (B, 3, H, W), from z of the same shape and (B, 3) timesteps."""

    def __init__(self, trunk: Mapping):
        super().__init__()
        self.unet = UNet2DModel(**trunk | {"in_channels": 3, "out_channels": 3})
        embedding_dim = self.unet.time_embedding.linear_2.out_features
        self.unet.class_embedding = ModalityTimes(trunk["block_out_channels"][0], embedding_dim)
        size = trunk["sample_size"]
        geometry = Geometry(1, size, size, trunk["block_out_channels"][0], 1, embedding_dim)
        self.label = CategoricalModality(geometry, 10).requires_grad_(False)
        self.mask = SegmentationModality(geometry, 2).requires_grad_(False)

    def forward(self, z: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.unet(z, timesteps[:, 0], class_labels=timesteps[:, 1:]).sample

    def encode(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """One channel: (B, 1, H, W)."""
        return values if name == "image" else getattr(self, name).encode(values)


def concatenated_loss(model: ConcatenatedUNet, batch: Mapping[str, torch.Tensor], generator: torch.Generator):
    """Timesteps drawn independently, as UniDiffuser does."""
    timesteps = torch.randint(0, 1000, (len(batch["label"]), 3), generator=generator)
    return _noise_loss(model, batch, timesteps, generator)


def tuned_loss(model: ConcatenatedUNet, batch: Mapping[str, torch.Tensor], generator: torch.Generator):
    """Timesteps as they are at inference, in the shares of the joint model's presence states: equal, 0 or T - 1; and the
    joint model's weights of the tasks.
    """
    size = len(batch["label"])
    draws = draw_step(generator, size, (1, 1, 1), 1000, 2)
    available = {name: torch.ones(size, dtype=torch.bool) for name in ("label", "mask")}
    states = assign_states(draws, available, dict.fromkeys(available, True), 0.35, PresenceShares())
    read = states["image"] == Presence.GIVEN
    columns = [torch.where(read, 0, draws.timesteps)]
    for name in available:
        # given the image, what is asked for is at the timestep of a chain of its own
        columns.append(torch.where(states[name] == Presence.GIVEN, 0, draws.timesteps))
        columns[-1] = torch.where(states[name] == Presence.ABSENT, 999, columns[-1])
    return _noise_loss(model, batch, torch.stack(columns, dim=1), generator, TUNED_WEIGHTS)


def _noise_loss(
    model: ConcatenatedUNet,
    batch: Mapping[str, torch.Tensor],
    timesteps: torch.Tensor,
    generator: torch.Generator,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    values = {"image": to_pixels(batch["image"]), "label": batch["label"], "mask": batch["mask"].long()}
    z_0 = torch.cat([model.encode(name, values[name]) for name in CHANNELS], dim=1)
    noise = torch.randn(z_0.shape, generator=generator)
    alpha_bar = DDPMScheduler().alphas_cumprod[timesteps][:, :, None, None]
    output = model(alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise, timesteps).float()
    noised = (timesteps > 0)[:, :, None, None]  # at 0 a channel is taken for clean, and its noise is not asked for
    return ((output - noise).square() * noised * torch.tensor(weights).view(1, 3, 1, 1)).mean()


@torch.no_grad()
def sample_concatenated(
    model: ConcatenatedUNet,
    given: Mapping[str, torch.Tensor],
    batch_size: int,
    num_steps: int,
    scale: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Samples of all channels (B, 3, H, W) by SDE-DPM-Solver++, what is given as it is.

    Guided, where `scale` is not 1, against noise in its place. Each channel's estimate of z_0 is clipped to the range
    that its data have.
    """
    size = model.unet.config.sample_size
    z = torch.randn(batch_size, 3, size, size, generator=generator)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", timestep_spacing="trailing", prediction_type="sample"
    )
    scheduler.set_timesteps(num_steps)
    known = {CHANNELS[name]: model.encode(name, values) for name, values in given.items()}
    limits = torch.tensor([1.0, model.label.table.abs().max(), 1.0]).view(1, 3, 1, 1)
    for t in scheduler.timesteps:
        timesteps = torch.full((batch_size, 3), int(t))
        for channel, encoding in known.items():
            z[:, channel : channel + 1], timesteps[:, channel] = encoding, 0
        output = model(z, timesteps).float()
        if scale != 1:
            unknown, unknown_times = z.clone(), timesteps.clone()
            for channel in known:
                unknown[:, channel] = torch.randn(z[:, channel].shape, generator=generator)
                unknown_times[:, channel] = 999
            free = model(unknown, unknown_times).float()
            output = free + scale * (output - free)
        alpha_bar = scheduler.alphas_cumprod[t]
        z_0 = (z - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
        z = scheduler.step(z_0.clamp(-limits, limits), t, z, generator=generator).prev_sample
    for channel, encoding in known.items():
        z[:, channel : channel + 1] = encoding
    return z


def decode(model: ConcatenatedUNet, z_0: torch.Tensor) -> dict[str, torch.Tensor]:
    """The image in [0, 1], and label and mask of the nearest codes."""
    pooled = F.adaptive_avg_pool2d(z_0[:, 1:2], model.label.grid).flatten(1)
    return {
        "image": (z_0[:, :1] / 2 + 0.5).clamp(0, 1),
        "label": (pooled @ model.label.table.T).argmax(1),
        "mask": (z_0[:, 2] * (model.mask.codes[1] - model.mask.codes[0]) > 0).long(),
    }
