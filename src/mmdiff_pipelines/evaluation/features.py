"""Feature networks: modules that take images (B, C, H, W) in [0, 1] and give features (B, D)."""

from pathlib import Path

import torch
from torch import nn

from .efficientnet_lite import EfficientNetLite0
from .pixels import as_rgb, tensor_to_image


class InceptionFeatures(nn.Module):
    """The 2,048 features of torch-fidelity's Inception: with these, and only these, the distance is the FID.

    Args:
        weights: a file of them; downloaded by torch-fidelity if None.

    Raises:
        FileNotFoundError: if there is no such file, or none can be downloaded.
        ValueError: if the file holds the weights of something else.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"there are no Inception weights at {weights}.")
        path = None if weights is None else str(weights)
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], path)
        except OSError as error:
            raise FileNotFoundError(
                f"the Inception weights could not be downloaded ({error}); give a path."
            ) from error
        except RuntimeError as error:
            raise ValueError(f"{weights} holds no Inception of torch-fidelity: {error}") from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (features,) = self.network((as_rgb(images).clamp(0, 1) * 255).round().to(torch.uint8))
        return features


class ClassifierFeatures(nn.Module):
    """The features of a classifier that has `features`: images (B, C, H, W) in [-1, 1] -> (B, D)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier.features(images * 2 - 1)


class TransformersFeatures(nn.Module):
    """The embeddings of an image encoder of transformers, such as CLIP, of L2 norm 1.

    Args:
        source: a repo or a folder.

    Raises:
        ValueError: if there is no such encoder.
    """

    def __init__(self, source: str):
        super().__init__()
        try:
            from ..training.embeddings import FrozenEncoder
        except ImportError as error:
            raise ImportError(f'{error}: an encoder of transformers needs the extra "training" too.') from error

        self.encoder = FrozenEncoder(source, images=True)
        self.model = self.encoder.model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.encoder([tensor_to_image(image) for image in as_rgb(images)]))


def feature_network(name: str, weights: str | Path | None = None) -> nn.Module:
    """A feature network by name: `efficientnet_lite0`, `inception`, or a repo or folder of transformers.

    Args:
        name: of the network.
        weights: a file, for the first two; see their classes for what None means.

    Raises:
        FileNotFoundError, ValueError: if it cannot be loaded.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0.from_weights(weights)
    return InceptionFeatures(weights) if name == "inception" else TransformersFeatures(name)


@torch.no_grad()
def extract_features(network: nn.Module, images: torch.Tensor, batch_size: int = 100) -> torch.Tensor:
    """Features (n, D) of images (n, C, H, W) in [0, 1], batch by batch.

    Raises:
        ValueError: if there are no images, or their range is another one.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images of shape {tuple(images.shape)}; accepted: (n, C, H, W) with n of 1 or more.")
    if not (images.min() >= -1e-4 and images.max() <= 1 + 1e-4):  # NaN fails too
        raise ValueError(f"images from {images.min():.3g} to {images.max():.3g}; accepted: [0, 1], finite.")
    return torch.cat([network(batch) for batch in images.float().split(batch_size)])
