"""All the randomness of a training step, and the presence states that it decides.

Everything is drawn for the *global* batch, on CPU, from a generator seeded by the run's seed and the number of the
step; each process takes its own rows. So the number of processes does not matter, and resuming needs no generator.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..modalities import ANCHOR, Modality, Presence


QUERY_SHARE = 0.9  # of the modalities of a row whose image is given; the others are given too


class PresenceShares(NamedTuple):
    """How often a modality is in each state, in rows whose image is joint; they sum to 1."""

    joint: float = 0.53
    given: float = 0.33
    absent: float = 0.14


def parse_shares(text: str) -> PresenceShares:
    """`joint=0.53,given=0.33,absent=0.14`.

    Raises:
        ValueError: for another form, or shares that do not sum to 1.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    if {name for name, _, _ in pairs} != set(PresenceShares._fields):
        raise ValueError(f"{text!r}: accepted: joint=...,given=...,absent=...")
    try:
        shares = PresenceShares(**{name: float(value) for name, _, value in pairs})
    except ValueError as error:
        raise ValueError(f"{text!r}: accepted: joint=...,given=...,absent=... with numbers") from error
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{text!r}: shares must be at least 0 and sum to 1")
    return shares


class StepDraws(NamedTuple):
    """What is random in one step, one row for each row of the batch; `presence`, ... are uniform in [0, 1)."""

    noise: torch.Tensor  # (B, C_z, H, W)
    timesteps: torch.Tensor  # (B,)
    perception: torch.Tensor  # (B,)
    presence: torch.Tensor  # (B, N), N modalities
    flip: torch.Tensor  # (B,)
    crop: torch.Tensor  # (B, 2)

    def rows(self, start: int, stop: int) -> "StepDraws":
        return StepDraws(*(tensor[start:stop] for tensor in self))


def step_seed(seed: int, micro_step: int) -> int:
    return seed * 1_000_003 + micro_step


def draw_step(
    generator: torch.Generator,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    num_train_timesteps: int,
    num_modalities: int,
) -> StepDraws:
    """Draw the randomness of one step, always in the same order.

    Args:
        generator: on CPU.
        batch_size: B, of the global batch.
        latent_shape: (C_z, H, W).
    """
    return StepDraws(
        noise=torch.randn(batch_size, *latent_shape, generator=generator),
        timesteps=torch.randint(num_train_timesteps, (batch_size,), generator=generator),
        perception=torch.rand(batch_size, generator=generator),
        presence=torch.rand(batch_size, num_modalities, generator=generator),
        flip=torch.rand(batch_size, generator=generator),
        crop=torch.rand(batch_size, 2, generator=generator),
    )


def make_inputs(
    modality: Modality, images: torch.Tensor, start: int, total: int, generator: torch.Generator
) -> torch.Tensor:
    """Inputs that a modality makes of images: drawn for the global batch of `total` rows, `start` being the first."""
    everything = images.new_zeros(total, *images.shape[1:])
    everything[start : start + len(images)] = images
    return modality.make_inputs(everything, generator)[start : start + len(images)]


def assign_states(
    draws: StepDraws,
    available: Mapping[str, torch.Tensor],
    joint: Mapping[str, bool],
    perception_share: float,
    shares: PresenceShares,
) -> dict[str, torch.Tensor]:
    """Turn uniform draws into presence states.

    A share of the rows has the image given: there each modality is queried or given, one at least queried. In the
    other rows each modality is joint, given or absent. What cannot be recovered (a masked image) is only given or
    absent, and absent where the image is given; what a row's data lack is absent.

    Args:
        draws: B rows of `perception` and `presence`.
        available: name -> (B,) bool, in the order of `presence`.
        joint: name -> whether the modality can be recovered.

    Returns:
        name -> (B,) long of [`Presence`], "image" included.
    """
    image = torch.full_like(draws.timesteps, int(Presence.JOINT))
    if not available:
        return {ANCHOR: image}
    present = torch.stack(list(available.values()), dim=1)
    recoverable = torch.tensor([joint[name] for name in available], device=present.device).expand_as(present)
    states = _joint_rows(draws.presence, present, recoverable, shares)
    image_given = (draws.perception < perception_share) & (present & recoverable).any(1)
    states = torch.where(image_given[:, None], _perception_rows(draws.presence, present & recoverable), states)
    image = torch.where(image_given, int(Presence.GIVEN), image)
    return {ANCHOR: image} | {name: states[:, i] for i, name in enumerate(available)}


def _joint_rows(
    presence: torch.Tensor, present: torch.Tensor, recoverable: torch.Tensor, shares: PresenceShares
) -> torch.Tensor:
    """(B, N) uniform draws -> (B, N) states where the image is joint."""
    is_joint = present & recoverable & (presence < shares.joint)
    is_given = present & (presence >= shares.joint) & (presence < shares.joint + shares.given)
    states = torch.full_like(presence, int(Presence.ABSENT), dtype=torch.long)
    return states.masked_fill(is_joint, int(Presence.JOINT)).masked_fill(is_given, int(Presence.GIVEN))


def _perception_rows(presence: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """(B, N) uniform draws -> (B, N) states where the image is given; the lowest draw is queried in any case."""
    lowest = presence.masked_fill(~candidates, 2.0).argmin(1, keepdim=True)
    queried = (presence < QUERY_SHARE).scatter(1, lowest, True)
    states = torch.where(queried, int(Presence.QUERIED), int(Presence.GIVEN))
    return states.masked_fill(~candidates, int(Presence.ABSENT))
