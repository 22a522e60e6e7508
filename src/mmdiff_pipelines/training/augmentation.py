"""Paired augmentation: an image and the maps aligned with it are flipped and cut alike, by draws that are given."""

from collections.abc import Mapping

import torch

from ..modalities import ANCHOR, CategoricalModality, Modality


def forbidden_flips(
    text: str | None, modalities: Mapping[str, Modality]
) -> tuple[str, torch.Tensor] | tuple[None, None]:
    """`--no_flip_labels` -> the modality and its classes that are not to be flipped: `3,Sandal`, or `label=3,Sandal`.

    Raises:
        ValueError: for a class that does not exist, or if it is not clear which modality is meant.
    """
    if not text:
        return None, None
    labels = [name for name, modality in modalities.items() if isinstance(modality, CategoricalModality)]
    name, equals, classes = text.rpartition("=")
    if not equals and len(labels) == 1:
        name = labels[0]
    if name not in labels:
        raise ValueError(f"--no_flip_labels {text}: accepted: NAME=3,7 with NAME one of {labels}.")
    values = [int(value) if value.isdigit() else value for value in classes.split(",")]
    try:
        return name, modalities[name].to_tensor(values)
    except ValueError as error:
        raise ValueError(f"--no_flip_labels {text}: {error}") from error


def may_flip(
    inputs: Mapping[str, torch.Tensor],
    available: Mapping[str, torch.Tensor],
    name: str | None,
    classes: torch.Tensor | None,
) -> torch.Tensor:
    """(B,) bool: False for rows of the classes that are not to be flipped, and where the label is not known."""
    if name is None:
        return torch.ones(len(inputs[ANCHOR]), dtype=torch.bool, device=inputs[ANCHOR].device)
    return available[name] & ~torch.isin(inputs[name], classes.to(inputs[name].device))


def flip_rows(maps: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Flip the last axis of (B, ..., W) where (B,) `flipped`."""
    return torch.where(flipped.view(-1, *[1] * (maps.ndim - 1)), maps.flip(-1), maps)


def crop_rows(maps: torch.Tensor, draws: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A window of `size` of each row of (B, ..., H, W), placed by (B, 2) draws in [0, 1)."""
    height, width = size
    margins = torch.tensor([maps.shape[-2] - height, maps.shape[-1] - width])
    places = (draws.cpu() * (margins + 1)).long().tolist()
    return torch.stack(
        [row[..., y : y + height, x : x + width] for row, (y, x) in zip(maps, places, strict=True)]
    ).contiguous()
