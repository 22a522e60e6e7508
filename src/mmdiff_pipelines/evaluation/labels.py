"""How right labels are, and how far their probabilities can be trusted."""

import torch


def accuracy(labels: torch.Tensor, references: torch.Tensor) -> float:
    """How often two lists of classes, (n,) both, are equal: label accuracy, or agreement with another reader.

    Raises:
        ValueError: if the shapes differ, or there are no labels.
    """
    if labels.shape != references.shape or not labels.numel():
        raise ValueError(
            f"labels {tuple(labels.shape)} and references {tuple(references.shape)}; accepted: (n,) both."
        )
    return (labels == references).float().mean().item()


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error of (n, K) probabilities, 15 bins, by torchmetrics.

    Raises:
        ValueError: if the shapes do not fit.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)}; accepted: (n, K) and (n,)."
        )
    return multiclass_calibration_error(probabilities, labels, num_classes=probabilities.shape[1]).item()
