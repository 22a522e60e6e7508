"""The image with a part of it hidden, and the map of what is visible: inpainting as a given modality."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn

from .base import Geometry, Modality
from .image import pixels_to_tensor, tensor_to_pixels


class MaskedImageModality(Modality):
    """The visible pixels and their visibility, (C + 1, H, W): pixels in [-1, 1], then visibility, 1 where known.

    E_i is (visible pixels, 2 visibility - 1) in C + 1 own channels; D_i gives the mean of the *whole* image and of the
    visibility, so that the input may carry the hidden pixels too: only the loss sees them.

    Args:
        geometry, space, channels: see [`Modality`]; it lives in C + 1 own channels.
        min_hidden, max_hidden: the share of the image that training hides, in random square blocks.
    """

    spatial = True
    joint = False
    from_image = True
    constrains_anchor = True

    def __init__(
        self,
        geometry: Geometry,
        space: str = "own",
        channels: int | None = None,
        min_hidden: float = 0.1,
        max_hidden: float = 0.75,
    ):
        total = geometry.anchor_channels + 1
        if space != "own" or channels not in (None, total):
            raise ValueError(f"a masked image lives in {total} own channels, the image's and its visibility.")
        if not 0 <= min_hidden <= max_hidden <= 1:
            raise ValueError(
                f"`min_hidden` is {min_hidden} and `max_hidden` {max_hidden}; accepted: shares, in order."
            )
        super().__init__(geometry, (total, geometry.height, geometry.width), space, total)
        self.min_hidden, self.max_hidden = min_hidden, max_hidden
        self.head = nn.Conv2d(geometry.feature_channels, total, 3, padding=1)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels, visibility = inputs[:, :-1], inputs[:, -1:]
        return torch.cat([pixels * visibility, 2 * visibility - 1], dim=1).to(self.head.weight.dtype)

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return (prediction.float() - inputs).square().flatten(1).mean(1)

    def make_inputs(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        visibility = random_visibility(
            len(images), *images.shape[2:], self.min_hidden, self.max_hidden, generator=generator
        )
        return torch.cat([images, visibility.to(images)], dim=1)

    def impose_on_anchor(self, z_0: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Paste the visible pixels."""
        pixels, visibility = inputs[:, :-1], inputs[:, -1:]
        return torch.where(visibility > 0, pixels.to(z_0.dtype), z_0)

    def value_to_tensor(self, value: Any) -> torch.Tensor:
        """A pair (image, visibility), or a dict with these keys; visibility: (H, W), non-zero where known."""
        if isinstance(value, dict):
            if set(value) != {"image", "visibility"}:
                raise ValueError(f"a dict with keys {sorted(value)}; accepted: 'image' and 'visibility'.")
            value = (value["image"], value["visibility"])
        if torch.is_tensor(value) and value.shape == self.input_shape:
            return self._check_tensor(value.float())
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"a value of type {type(value).__name__}; accepted: a pair (image, visibility).")
        image, visibility = value
        channels, height, width = self.input_shape
        pixels = pixels_to_tensor(image, channels - 1, height, width)
        if isinstance(visibility, PIL.Image.Image):
            visibility = visibility.convert("L")
        if not torch.is_tensor(visibility):
            visibility = torch.as_tensor(np.asarray(visibility) != 0)
        if visibility.shape != (height, width):
            shape = tuple(visibility.shape)
            raise ValueError(f"visibility of shape {shape}; accepted: {(height, width)} (height, width).")
        return torch.cat([pixels, (visibility != 0)[None].to(pixels)])

    @staticmethod
    def _check_tensor(value: torch.Tensor) -> torch.Tensor:
        pixels, visibility = value[:-1], value[-1]
        if not (pixels.abs().max() <= 1 + 1e-4 and ((visibility == 0) | (visibility == 1)).all()):
            low, high = value.min().item(), value.max().item()
            raise ValueError(
                f"a tensor from {low:.3g} to {high:.3g}; accepted: pixels in [-1, 1], then a visibility of 0 and 1."
            )
        return value

    def tensor_to_value(self, tensor: torch.Tensor, output_type: str) -> Any:
        visible = tensor[:-1] * tensor[-1:] + (tensor[-1:] - 1)  # hidden pixels black
        return tensor_to_pixels(visible, output_type)


def random_visibility(
    batch_size: int,
    height: int,
    width: int,
    min_hidden: float = 0.1,
    max_hidden: float = 0.75,
    block: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Hide random square blocks: (B, 1, H, W), 1 where visible.

    A share of the blocks, uniform in [min_hidden, max_hidden] and rounded to whole blocks, is hidden in each row.
    `block` is the side of a block in pixels, an eighth of the shorter side if None.
    """
    block = block or max(1, min(height, width) // 8)
    rows, columns = -(-height // block), -(-width // block)
    share = min_hidden + (max_hidden - min_hidden) * torch.rand(batch_size, 1, generator=generator)
    rank = torch.rand(batch_size, rows * columns, generator=generator).argsort(1).argsort(1)
    visible = (rank >= (share * rows * columns).round()).float().view(batch_size, 1, rows, columns)
    return F.interpolate(visible, scale_factor=block, mode="nearest")[..., :height, :width]
