"""Scores of generated Fashion-MNIST, by the features of an independent classifier.

Images are (n, 1, 32, 32) in [0, 1], as pipelines put them out; features are the classifier's 64 pooled ones. The scores
are those of `mmdiff_pipelines.evaluation`.
"""

import torch
from baselines import Classifier

from mmdiff_pipelines.evaluation import calibration_error, frechet_distance, precision_recall
from mmdiff_pipelines.evaluation import silhouette_iou as mask_iou


__all__ = ["calibration_error", "image_scores", "mask_iou", "read_images", "silhouettes"]

SILHOUETTE_THRESHOLD = 0.2


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def read_images(classifier: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 64) and classes (n,) that the independent classifier sees."""
    features = torch.cat([classifier.features(batch * 2 - 1) for batch in images.float().split(500)])
    return features, classifier.head(features).argmax(1)


def silhouettes(images: torch.Tensor) -> torch.Tensor:
    """(n, 32, 32) class indices: the rule that made the masks."""
    return (images[:, 0] > SILHOUETTE_THRESHOLD).long()


def image_scores(classifier: Classifier, images: torch.Tensor, real_features: torch.Tensor) -> dict[str, float]:
    """Quality of a set of images on its own."""
    features, _ = read_images(classifier, images)
    precision, recall = precision_recall(features, real_features)
    distance = frechet_distance(features, real_features)
    return {"frechet_distance": distance, "precision": precision, "recall": recall}
