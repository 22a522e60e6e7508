"""A segmentation mask: one of K classes per pixel, aligned with the image."""

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn

from .base import Geometry, Modality, unit_rms


def class_codes(num_classes: int, channels: int) -> torch.Tensor:
    """(K, channels) codes of unit RMS: the first cosines of a DCT over the classes.

    With K - 1 channels they are the vertices of a regular simplex, with fewer its projection: distinct always, and
    +1, -1 for two classes in one channel.
    """
    k = torch.arange(num_classes)[:, None] + 0.5
    j = 1 + torch.arange(channels)[None] % (num_classes - 1)
    return unit_rms(torch.cos(math.pi * j * k / num_classes))


class SegmentationModality(Modality):
    """One of K classes per pixel. E_i paints the code of each pixel's class; D_i gives logits per pixel.

    Args:
        geometry, space, channels: see [`Modality`].
        num_classes: K >= 2.
        class_names: K names, optional, for reading only.
        class_weights: K weights of the classes in the loss, optional.
        ignore_index: the value of pixels without annotation: no loss there, and nothing in the encoding.
        palette: K RGB triples for the PNGs put out, optional; else PIL's web palette.
    """

    discrete = True
    spatial = True
    input_dtype = torch.long

    def __init__(
        self,
        geometry: Geometry,
        num_classes: int,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        ignore_index: int = 255,
        palette: list[list[int]] | None = None,
        space: str = "own",
        channels: int = 1,
    ):
        super().__init__(geometry, (geometry.height, geometry.width), space, channels)
        if num_classes < 2:
            raise ValueError(f"`num_classes` is {num_classes}; accepted: 2 or more.")
        if ignore_index == 255 < num_classes:  # a lower one may be meant: a class "void" of the data
            raise ValueError(f"`ignore_index` is 255, one of {num_classes} classes; accepted: another, as -100.")
        for argument, values in {
            "class_names": class_names,
            "class_weights": class_weights,
            "palette": palette,
        }.items():
            if values is not None and len(values) != num_classes:
                raise ValueError(f"`{argument}` has {len(values)} entries for {num_classes} classes.")
        self.num_classes, self.class_names = num_classes, class_names
        self.ignore_index, self.palette = ignore_index, palette
        self.register_buffer("codes", class_codes(num_classes, self.channels))
        weights = torch.tensor(class_weights or [1.0] * num_classes)
        self.register_buffer("loss_weights", weights, persistent=False)
        self.head = nn.Conv2d(geometry.feature_channels, num_classes, 3, padding=1)

    def placeholder(self, batch_size: int) -> torch.Tensor:
        return torch.full((batch_size, *self.input_shape), self.ignore_index)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        annotated = inputs != self.ignore_index
        codes = F.embedding(torch.where(annotated, inputs, 0), self.codes) * annotated[..., None]
        return codes.movedim(-1, 1).contiguous()

    def expected_encoding(self, prediction: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bkhw,kc->bchw", self.probabilities(prediction).to(self.codes.dtype), self.codes)

    def _pixel_losses(
        self, prediction: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        return F.cross_entropy(
            prediction.float(), inputs, weight=weight, ignore_index=self.ignore_index, reduction="none"
        ).flatten(1)

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        losses = self._pixel_losses(prediction, inputs, self.loss_weights.float())
        annotated = (inputs != self.ignore_index).flatten(1).sum(1)
        return losses.sum(1) / annotated.clamp(min=1)

    def nll(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return self._pixel_losses(prediction, inputs, None).sum(1)

    def probabilities(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.float().softmax(1)

    def confidence(self, prediction: torch.Tensor) -> torch.Tensor:
        """The confidence of the least sure pixel: a mask is committed to as a whole."""
        return self.probabilities(prediction).amax(1).flatten(1).amin(1)

    def estimate(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.argmax(1)

    def value_to_tensor(self, value: Any) -> torch.Tensor:
        """A PIL image (mode P, L or 1: class indices), an array (H, W) or a tensor (H, W) of integers."""
        if isinstance(value, PIL.Image.Image):
            if value.mode not in ("P", "L", "1", "I"):
                raise TypeError(f"a mask of PIL mode {value.mode!r}; accepted: P, L or 1, pixels being class indices.")
        if not torch.is_tensor(value):
            array = np.array(value)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"a mask of type {type(value).__name__}; accepted: PIL image, array, tensor.")
            value = torch.as_tensor(array)
        if value.is_floating_point():
            raise TypeError(f"a mask of dtype {value.dtype}; accepted: integer class indices.")
        mask = value.long()
        if mask.shape != self.input_shape:
            raise ValueError(f"a mask of shape {tuple(mask.shape)}; accepted: {self.input_shape} (height, width).")
        wrong = mask[(mask != self.ignore_index) & ((mask < 0) | (mask >= self.num_classes))]
        if len(wrong):
            accepted = f"0 to {self.num_classes - 1}, and {self.ignore_index} for pixels to ignore"
            raise ValueError(f"a mask with class {wrong[0].item()}; accepted: {accepted}.")
        return mask

    def tensor_to_value(self, tensor: torch.Tensor, output_type: str) -> np.ndarray | PIL.Image.Image:
        array = tensor.cpu().numpy().astype(np.uint8 if self.num_classes <= 256 else np.int64)
        if output_type == "np" or self.num_classes > 256:
            return array
        image = PIL.Image.fromarray(array).convert("P")
        image.putpalette(self._palette())
        image.frombytes(array.tobytes())
        return image

    def _palette(self) -> list[int]:
        """RGB triples in a row: the configured ones, or hues spread over the classes, the first black."""
        if self.palette is not None:
            return [level for color in self.palette for level in color]
        hues = np.linspace(0, 255, self.num_classes, endpoint=False).astype(np.uint8)
        hsv = np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 255)], axis=-1)[None]
        rgb = np.asarray(PIL.Image.fromarray(hsv, mode="HSV").convert("RGB"))[0].copy()
        rgb[0] = 0
        return rgb.flatten().tolist()
