"""A modality: how one kind of data enters the diffusion space, and how it is recovered from it.

A modality is everything the library knows of one kind of data, in one class: the encoder E_i (input -> encoding), the
decoder head D_i (features -> prediction), its loss L2_i = -log p(x_i | z_t), the expected encoding E[e_i | z_t] that
sampling needs, and the conversion between users' values and tensors. To add one, subclass `Modality` and put it into
`MODALITY_TYPES`.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


ANCHOR = "image"  # the reserved name of the anchor modality z_0


class Presence(enum.IntEnum):
    """What becomes of a modality in one row of a batch."""

    JOINT = 0  # in z, and recovered: it has a loss
    GIVEN = 1  # told to the network, clean in its own channels: no loss
    QUERIED = 2  # not in z, and recovered: perception
    ABSENT = 3  # not in z, no loss; also rows whose data lack it


class Geometry(NamedTuple):
    """The model around a modality."""

    anchor_channels: int
    height: int
    width: int
    feature_channels: int
    pooled_channels: int
    embedding_dim: int


class Features(NamedTuple):
    """What the heads read: `map` (B, feature_channels, H, W), the UNet's last features, and `pooled`
    (B, pooled_channels), the spatial means of its bottleneck and of `map`.
    """

    map: torch.Tensor
    pooled: torch.Tensor


class Modality(nn.Module):
    """Base class of all modalities.

    Args:
        geometry: the model around it.
        input_shape: the shape of one input tensor, without the batch axis.
        space: "own" (channels reserved for it, on which z_0 is zero) or "shared" (the anchor's channels).
        channels: how many channels it reserves; of no meaning in shared space.
        condition_on_noisy: whether `condition` reads the noisy channels of a joint modality too, and not only what is
            given; for own channels. Where the loss of the modality is light, nothing else does (docs/method.md).

    A subclass sets `self.head` (or overrides `predict`) and implements `encode` and `loss`; the rest has defaults.
    """

    discrete = False  # a prediction is a distribution over classes: it can be committed to, or drawn
    spatial = False  # an input is a map aligned with the image: augmentations move both
    joint = True  # may be noised and recovered along with the image; else only given or absent
    from_image = False  # training inputs are made of the image, by `make_inputs`, and need no column
    constrains_anchor = False  # a given input fixes parts of z_0 itself: see `impose_on_anchor`
    input_dtype = torch.float32

    def __init__(
        self,
        geometry: Geometry,
        input_shape: Sequence[int],
        space: str = "own",
        channels: int = 1,
        condition_on_noisy: bool = False,
    ):
        super().__init__()
        if space not in ("own", "shared"):
            raise ValueError(f"`space` is {space!r}; accepted: 'own', 'shared'.")
        if channels < 1:
            raise ValueError(f"`channels` is {channels}; a modality in its own space needs at least 1.")
        if not isinstance(condition_on_noisy, bool):
            raise ValueError(f"`condition_on_noisy` is {condition_on_noisy!r}; accepted: True, False.")
        if condition_on_noisy and (space != "own" or not self.joint or type(self).condition is Modality.condition):
            raise ValueError(
                f"`condition_on_noisy` is True and `space` {space!r}; accepted: with 'own', for a modality that can be "
                "joint and has a `condition`."
            )
        self.geometry = geometry
        self.input_shape = tuple(input_shape)
        self.space = space
        self.channels = geometry.anchor_channels if space == "shared" else channels
        self.condition_on_noisy = condition_on_noisy

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """E_i: (B, *input_shape) -> (B, channels, H, W), of unit RMS by a constant of the encoder."""
        raise NotImplementedError

    def predict(self, features: Features) -> torch.Tensor:
        """D_i: features -> the parameters of p(x_i | z_t): logits, or the mean of a Gaussian."""
        return self.head(features.map if self.spatial else features.pooled)

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """L2_i, up to constants: (B,), a mean over the input's elements so that sizes do not set the balance."""
        raise NotImplementedError

    def nll(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """-log p(x_i | z_t) in nats: (B,). Default: a Gaussian of unit variance about the prediction."""
        squared_error = (prediction.float() - inputs).square().flatten(1).sum(1)
        return 0.5 * (squared_error + math.log(2 * math.pi) * inputs[0].numel())

    def expected_encoding(self, prediction: torch.Tensor) -> torch.Tensor:
        """E[e_i | z_t], (B, channels, H, W): exact where E_i is linear; else the encoding of the mean prediction."""
        return self.encode(prediction)

    def condition(self, encoding: torch.Tensor) -> torch.Tensor | None:
        """A given encoding (B, channels, H, W) -> what it adds to the time embedding, (B, embedding_dim), or None."""
        return None

    def impose_on_anchor(self, z_0: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """What a given input says of z_0 itself: (B, C, H, W) and (B, *input_shape) -> (B, C, H, W)."""
        return z_0

    def estimate(self, prediction: torch.Tensor) -> torch.Tensor:
        """The most likely input, (B, *input_shape)."""
        return prediction

    def sample(self, prediction: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor | None:
        """A draw of p(x_i | z_t), (B, *input_shape), or None where one draw of the head is no draw of the modality."""
        return None

    def confidence(self, prediction: torch.Tensor) -> torch.Tensor | None:
        """(B,) in [0, 1], how sure the prediction is, or None."""
        return None

    def probabilities(self, prediction: torch.Tensor) -> torch.Tensor | None:
        """(B, K, ...) class probabilities, or None."""
        return None

    def make_inputs(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Training inputs made of images (B, C, H, W) in [-1, 1], where `from_image`; the generator is on CPU."""
        raise NotImplementedError

    def placeholder(self, batch_size: int) -> torch.Tensor:
        """A valid input for rows whose data lack this modality."""
        return torch.zeros(batch_size, *self.input_shape, dtype=self.input_dtype)

    def value_to_tensor(self, value: Any) -> torch.Tensor:
        """One value as users write it -> one input tensor, of `input_shape`."""
        if torch.is_tensor(value):  # of any device and dtype, bfloat16 too
            return value.detach().to(self.input_dtype)
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a value of type {type(value).__name__}; accepted: numbers, as an array, tensor or list.")
        return torch.as_tensor(array, dtype=self.input_dtype)

    def tensor_to_value(self, tensor: torch.Tensor, output_type: str) -> Any:
        """One input tensor -> a value as users read it; `output_type` "pil" or "np"."""
        return tensor.float().cpu().numpy()

    def to_tensor(self, values: Sequence[Any] | torch.Tensor) -> torch.Tensor:
        """A batch of users' values -> (B, *input_shape).

        Raises:
            TypeError: a value of a kind that this modality does not read.
            ValueError: a value of a wrong shape or range.
        """
        batch = torch.stack([self.value_to_tensor(value) for value in values])
        if batch.shape[1:] != self.input_shape:
            raise ValueError(f"shape {tuple(batch.shape[1:])} of a value; accepted: {self.input_shape}.")
        if batch.is_floating_point() and not batch.isfinite().all():
            raise ValueError("a value has NaN or infinite entries.")
        return batch

    def to_values(self, inputs: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list:
        """(B, *input_shape) -> users' values: a tensor ("pt"), an array ("np") or a list ("pil")."""
        if output_type == "pt":
            return inputs
        values = [self.tensor_to_value(tensor, output_type) for tensor in inputs]
        return np.stack(values) if isinstance(values[0], np.ndarray) else values


def orthogonal(rows: int, columns: int) -> torch.Tensor:
    """A fixed (rows, columns) matrix with orthonormal rows or columns, whichever are fewer.

    Models are built in the dtype that they are loaded in, and half precision has no QR decomposition.
    """
    matrix = torch.empty(rows, columns, dtype=torch.float32)
    nn.init.orthogonal_(matrix, generator=torch.Generator().manual_seed(0))
    return matrix.to(torch.get_default_dtype())


def unit_rms(table: torch.Tensor) -> torch.Tensor:
    """Scale a whole table by one constant to a root mean square of 1."""
    return table / table.square().mean().sqrt()


def resize_map(maps: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Spread a coarse (B, c, g, g) map over the diffusion space, piecewise constant: (B, c, H, W)."""
    return F.interpolate(maps, size=(geometry.height, geometry.width), mode="nearest")
