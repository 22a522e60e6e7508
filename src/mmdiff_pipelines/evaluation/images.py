"""How good images are: as a set (Frechet distance, precision, recall) and against a reference (LPIPS, PSNR)."""

from pathlib import Path

import torch
from torch import nn


NEIGHBOURHOOD = 3  # of precision and recall


def _check_features(features: torch.Tensor, real_features: torch.Tensor, at_least: int) -> None:
    for name, values in {"features": features, "real_features": real_features}.items():
        if values.ndim != 2:
            raise ValueError(f"`{name}` has the shape {tuple(values.shape)}; accepted: (n, D).")
        if len(values) < at_least:
            raise ValueError(f"`{name}` are of {len(values)} images; this score needs {at_least} or more.")
    if features.shape[1] != real_features.shape[1]:
        raise ValueError(f"{features.shape[1]} and {real_features.shape[1]} features; they are of two networks.")


def frechet_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """Frechet distance of two sets of features, (n, D) and (m, D), by torch-fidelity in float64.

    It falls with n: compare only distances of equally many samples. With n < D it is defined, but rough.

    Raises:
        ValueError: for fewer than two images, or features of two networks.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    _check_features(features, real_features, at_least=2)
    statistics = [fid_features_to_statistics(values.double()) for values in (features, real_features)]
    return next(iter(fid_statistics_to_metric(*statistics, verbose=False).values()))


def precision_recall(features: torch.Tensor, real_features: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), k = 3, against the first of the real images, as many (or
    all, where there are fewer).

    Raises:
        ValueError: for no more images than neighbours, or features of two networks.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_features(features, real_features, at_least=NEIGHBOURHOOD + 1)
    scores = prc_features_to_metric(
        features,
        real_features[: len(features)],
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=2000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(scores["precision"]), float(scores["recall"])


def nearest_neighbours(features: torch.Tensor, real_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance (n,) of each image to the nearest real one, and its index (n,): memorisation is near 0.

    Raises:
        ValueError: for no images, or features of two networks.
    """
    _check_features(features, real_features, at_least=1)
    return tuple(torch.cdist(features.double(), real_features.double()).min(1))


class LearnedSimilarity(nn.Module):
    """LPIPS (Zhang et al. 2018) with AlexNet: (n, 3, H, W) in [0, 1], twice -> (n,). Differentiable.

    Args:
        weights: a safetensors file of AlexNet's convolutions (`features.N.weight`, `features.N.bias`), for work offline;
            torchvision's are downloaded if None.

    Raises:
        FileNotFoundError: if there is no such file, or none can be downloaded.
        ValueError: if weights are missing in it.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        import lpips

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"there are no AlexNet weights at {weights}.")
        try:
            self.network = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=weights is not None, verbose=False)
        except OSError as error:
            raise FileNotFoundError(f"AlexNet's weights could not be downloaded ({error}); give a file.") from error
        if weights is not None:
            self._load_backbone(Path(weights))
        self.eval().requires_grad_(False)

    def _load_backbone(self, path: Path) -> None:
        from safetensors.torch import load_file

        stored = {name.removeprefix("features."): values for name, values in load_file(path).items()}
        for name, parameter in self.network.net.named_parameters():
            key = name.partition(".")[2]  # slice2.3.weight -> 3.weight
            if key not in stored or stored[key].shape != parameter.shape:
                raise ValueError(f"{path} has no features.{key} of the shape {tuple(parameter.shape)}.")
            parameter.data.copy_(stored[key])

    def forward(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        _check_pairs(images, references)
        return self.network(images * 2 - 1, references * 2 - 1).flatten()


def _check_pairs(images: torch.Tensor, references: torch.Tensor) -> None:
    if images.shape != references.shape:
        raise ValueError(f"images {tuple(images.shape)} and references {tuple(references.shape)} differ in shape.")


def peak_signal_to_noise(images: torch.Tensor, references: torch.Tensor) -> float:
    """PSNR in dB of images (n, C, H, W) in [0, 1], a mean over images.

    Raises:
        ValueError: if the shapes differ.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _check_pairs(images, references)
    return peak_signal_noise_ratio(
        images, references, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3)
    ).item()
