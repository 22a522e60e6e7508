"""A map of real numbers aligned with the image: depth, normals, edges, a second picture."""

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from .base import Geometry, Modality, orthogonal, unit_rms


PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def is_deep(image: PIL.Image.Image) -> bool:
    """16 or 32 bits a pixel: I, I;16, F, which PIL would clip on conversion."""
    return image.mode.startswith("I") or image.mode == "F"


def deep_pixels(image: PIL.Image.Image) -> np.ndarray:
    """A deep image -> (H, W) float32 in [0, 1]; floats are taken as they are."""
    pixels = np.asarray(image, dtype=np.float32)
    return pixels if image.mode == "F" else pixels / 65535


def pixels_to_tensor(value: Any, num_channels: int, height: int, width: int) -> torch.Tensor:
    """A PIL image, an array (H, W[, C]) or a tensor ([C,] H, W) -> (C, H, W) float in [-1, 1].

    PIL images and uint8 data are read as 0..255, 16-bit PIL images as 0..65535; float arrays, tensors and PIL images as
    [0, 1], what the pipeline puts out.

    Raises:
        TypeError: another kind of value, or another dtype.
        ValueError: another size or number of channels, or floats outside [0, 1].
    """
    if isinstance(value, PIL.Image.Image) and is_deep(value):
        value = deep_pixels(value)
    if isinstance(value, PIL.Image.Image):
        if num_channels not in PIL_MODES:
            raise TypeError(f"a PIL image for {num_channels} channels; accepted: an array or a tensor.")
        value = np.asarray(value.convert(PIL_MODES[num_channels]))
    if isinstance(value, np.ndarray):
        value = torch.tensor(value if value.ndim == 3 else value[..., None]).movedim(-1, 0)
    if not torch.is_tensor(value):
        raise TypeError(
            f"a value of type {type(value).__name__}; accepted: PIL image, array (H, W, C), tensor (C, H, W)."
        )
    value = value if value.ndim == 3 else value[None]
    if value.shape != (num_channels, height, width):
        accepted = f"{num_channels} channels of {height}x{width} (height x width)"
        raise ValueError(f"pixels of shape {tuple(value.shape)} (C, H, W); accepted: {accepted}.")
    if value.dtype == torch.uint8:
        return value.float() / 127.5 - 1
    if not value.is_floating_point():
        raise TypeError(f"pixels of dtype {value.dtype}; accepted: uint8 in 0..255, or float in [0, 1].")
    if not (value.min() >= -1e-4 and value.max() <= 1 + 1e-4):  # NaN fails too
        low, high = value.min().item(), value.max().item()
        raise ValueError(f"float pixels from {low:.3g} to {high:.3g}; accepted: [0, 1], finite.")
    return value.float() * 2 - 1


def tensor_to_pixels(tensor: torch.Tensor, output_type: str) -> np.ndarray | PIL.Image.Image:
    """(C, H, W) in [-1, 1] -> a float array (H, W, C) in [0, 1], or a PIL image where there is a mode for it."""
    array = (tensor.float() / 2 + 0.5).clamp(0, 1).cpu().movedim(0, -1).numpy()
    if output_type == "np" or array.shape[-1] not in PIL_MODES:
        return array
    array = (array * 255).round().astype(np.uint8)
    return PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


class ImageModality(Modality):
    """A map (C_x, H, W) in [-1, 1]. E_i mixes its channels by a fixed matrix; D_i gives the mean of a Gaussian.

    Args:
        geometry, space: see [`Modality`].
        num_channels: C_x of the data.
        channels: reserved channels, `num_channels` if None.
        rms: root mean square of the data, a constant by which encodings get unit RMS.
    """

    spatial = True

    def __init__(
        self,
        geometry: Geometry,
        num_channels: int = 1,
        space: str = "own",
        channels: int | None = None,
        rms: float = 0.5,
    ):
        if num_channels < 1 or not rms > 0:
            raise ValueError(f"`num_channels` is {num_channels} and `rms` {rms}; accepted: 1 or more, and above 0.")
        super().__init__(geometry, (num_channels, geometry.height, geometry.width), space, channels or num_channels)
        self.num_channels, self.rms = num_channels, rms
        is_square = self.channels == num_channels
        mixing = torch.eye(num_channels) if is_square else orthogonal(self.channels, num_channels)
        # rows scaled so that unit-variance input channels give unit-variance encodings
        self.register_buffer("mixing", unit_rms(mixing) / math.sqrt(num_channels))
        self.head = nn.Conv2d(geometry.feature_channels, num_channels, 3, padding=1)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ck,bkhw->bchw", self.mixing, inputs.to(self.mixing.dtype)) / self.rms

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return (prediction.float() - inputs).square().flatten(1).mean(1)

    def value_to_tensor(self, value: Any) -> torch.Tensor:
        return pixels_to_tensor(value, self.num_channels, self.geometry.height, self.geometry.width)

    def tensor_to_value(self, tensor: torch.Tensor, output_type: str) -> Any:
        return tensor_to_pixels(tensor, output_type)

    def to_values(self, inputs: torch.Tensor, output_type: str) -> Any:
        return (inputs / 2 + 0.5).clamp(0, 1) if output_type == "pt" else super().to_values(inputs, output_type)
