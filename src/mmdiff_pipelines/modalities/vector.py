"""A vector: the embedding of the image or of its caption, by any frozen encoder."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .base import Geometry, Modality, orthogonal, resize_map


class VectorModality(Modality):
    """A vector of D numbers. E_i is a fixed orthogonal map onto a coarse grid; D_i gives the mean of a Gaussian.

    Args:
        geometry, space, channels, condition_on_noisy: see [`Modality`].
        dim: D.
        norm: typical L2 norm of the data (1 for normalised embeddings), a constant by which encodings get unit RMS.
    """

    def __init__(
        self,
        geometry: Geometry,
        dim: int,
        norm: float = 1.0,
        space: str = "own",
        channels: int = 1,
        condition_on_noisy: bool = False,
    ):
        super().__init__(geometry, (dim,), space, channels, condition_on_noisy)
        if dim < 1 or not norm > 0:
            raise ValueError(f"`dim` is {dim} and `norm` {norm}; accepted: a positive size and a positive norm.")
        self.dim, self.norm = dim, norm
        self.grid = min(math.ceil(math.sqrt(dim / self.channels)), geometry.height, geometry.width)
        cells = self.channels * self.grid**2
        self.register_buffer("projection", orthogonal(cells, dim) * math.sqrt(max(cells, dim)) / norm)
        self.head = nn.Linear(geometry.pooled_channels, dim)
        self.condition_proj = nn.Linear(cells, geometry.embedding_dim, bias=False)
        nn.init.zeros_(self.condition_proj.weight)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        cells = inputs.to(self.projection.dtype) @ self.projection.T
        return resize_map(cells.unflatten(1, (self.channels, self.grid, self.grid)), self.geometry)

    def condition(self, encoding: torch.Tensor) -> torch.Tensor:
        cells = F.adaptive_avg_pool2d(encoding, self.grid).flatten(1)
        # of norm 1: Adam's steps for hundreds of inputs add up, and would drown the time embedding
        return self.condition_proj(cells / math.sqrt(cells.shape[1]))

    def loss(self, prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return (prediction.float() - inputs).square().sum(1) / self.norm**2
