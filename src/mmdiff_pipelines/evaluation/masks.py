"""How well masks fit."""

import torch


def _check_masks(masks: torch.Tensor, references: torch.Tensor) -> None:
    if masks.shape != references.shape or masks.ndim != 3:
        raise ValueError(f"masks {tuple(masks.shape)} and references {tuple(references.shape)}; accepted: (n, H, W).")


def mean_intersection_over_union(
    masks: torch.Tensor, references: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> float:
    """IoU of each class over all pixels of all images, a mean over the classes that occur; by torchmetrics.

    Args:
        masks, references: (n, H, W) class indices; pixels with `ignore_index` in either do not count.

    Raises:
        ValueError: if the shapes differ, or no pixel is annotated.
    """
    from torchmetrics.functional.classification import multiclass_jaccard_index

    _check_masks(masks, references)
    annotated = (references != ignore_index) & (masks != ignore_index)
    if not annotated.any():
        raise ValueError(f"no pixel of the masks is annotated: all are {ignore_index} in one of them.")
    return multiclass_jaccard_index(masks[annotated], references[annotated], num_classes=num_classes).item()


def silhouette_iou(masks: torch.Tensor, references: torch.Tensor) -> float:
    """IoU of class 1 of two, (n, H, W) both, averaged over images; those empty in both do not count."""
    from torchmetrics.functional.segmentation import mean_iou

    _check_masks(masks, references)
    scores = mean_iou(masks, references, num_classes=2, include_background=False, per_class=True, input_format="index")
    return scores[scores >= 0].mean().item()
