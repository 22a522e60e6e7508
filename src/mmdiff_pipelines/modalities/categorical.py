"""A class label: one of K classes per row."""

import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import Features, Geometry, Modality, orthogonal, resize_map, unit_rms


class CategoricalModality(Modality):
    """One of K classes. E_i paints one of K orthogonal coarse patterns; D_i gives logits.

    Args:
        geometry, space, channels, condition_on_noisy: see [`Modality`].
        num_classes: K >= 2.
        class_names: K names that users may write for the indices, optional.
        grid: side of the coarse patterns, in cells; with `channels * grid**2 >= K` they are exactly orthogonal.
        learn_encoder: train the patterns along with the model; else they stay as drawn.
    """

    discrete = True
    input_dtype = torch.long

    def __init__(
        self,
        geometry: Geometry,
        num_classes: int,
        class_names: list[str] | None = None,
        space: str = "own",
        channels: int = 1,
        grid: int = 4,
        learn_encoder: bool = False,
        condition_on_noisy: bool = False,
    ):
        super().__init__(geometry, (), space, channels, condition_on_noisy)
        if num_classes < 2:
            raise ValueError(f"`num_classes` is {num_classes}; accepted: 2 or more.")
        if grid < 1:
            raise ValueError(f"`grid` is {grid}; accepted: 1 or more.")
        if class_names is not None and len(set(class_names)) != num_classes:
            raise ValueError(f"`class_names` has {len(set(class_names))} different names for {num_classes} classes.")
        self.num_classes, self.class_names, self.grid = num_classes, class_names, grid
        table = orthogonal(num_classes, self.channels * grid * grid)
        self.table = nn.Parameter(unit_rms(table), requires_grad=learn_encoder)
        self.head = nn.Linear(geometry.pooled_channels, num_classes)
        self.condition_proj = nn.Linear(table.shape[1], geometry.embedding_dim, bias=False)
        nn.init.zeros_(self.condition_proj.weight)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.expected_encoding_of(F.one_hot(inputs, self.num_classes).to(self.table.dtype))

    def expected_encoding_of(self, probabilities: torch.Tensor) -> torch.Tensor:
        """sum_k p_k E_i(k): (B, K) -> (B, channels, H, W)."""
        patterns = probabilities.to(self.table.dtype) @ unit_rms(self.table)
        return resize_map(patterns.unflatten(1, (self.channels, self.grid, self.grid)), self.geometry)

    def expected_encoding(self, prediction: torch.Tensor) -> torch.Tensor:
        return self.expected_encoding_of(self.probabilities(prediction))

    def condition(self, encoding: torch.Tensor) -> torch.Tensor:
        return self.condition_proj(F.adaptive_avg_pool2d(encoding, self.grid).flatten(1))

    def predict(self, features: Features) -> torch.Tensor:
        return self.head(features.pooled)

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(prediction.float(), inputs, reduction="none")

    def nll(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return self.loss(prediction, inputs)

    def probabilities(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.float().softmax(1)

    def confidence(self, prediction: torch.Tensor) -> torch.Tensor:
        return self.probabilities(prediction).amax(1)

    def estimate(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.argmax(1)

    def sample(self, prediction: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        probabilities = self.probabilities(prediction)
        device = generator.device if generator is not None else probabilities.device
        return torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0].to(prediction.device)

    def value_to_tensor(self, value: Any) -> torch.Tensor:
        names = self.class_names or []
        if isinstance(value, str) and value in names:
            return torch.tensor(names.index(value))
        integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if torch.is_tensor(value) and value.ndim == 0 and not value.is_floating_point():
            value, integral = value.item(), True
        if integral and 0 <= value < self.num_classes:
            return torch.tensor(int(value))
        accepted = f"an index from 0 to {self.num_classes - 1}" + (f" or one of {names}" if names else "")
        error = ValueError if integral or isinstance(value, str) else TypeError
        raise error(f"{value!r} is no class; accepted: {accepted}.")

    def tensor_to_value(self, tensor: torch.Tensor, output_type: str) -> Any:
        return self.class_names[int(tensor)] if self.class_names and output_type == "pil" else int(tensor)

    def to_values(self, inputs: torch.Tensor, output_type: str) -> torch.Tensor | Any:
        return inputs.cpu().numpy() if output_type == "np" else super().to_values(inputs, output_type)
