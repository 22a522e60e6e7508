"""Scores of generated Fashion-MNIST, by the features of an independent classifier.

Images are (n, 1, 32, 32) in [0, 1], as pipelines put them out; features are the classifier's 64 pooled ones. The Frechet
distance and precision/recall are torch-fidelity's, IoU and calibration torchmetrics'.
"""

import torch
from baselines import Classifier
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.segmentation import mean_iou


SILHOUETTE_THRESHOLD = 0.2


@torch.no_grad()
def read_images(classifier: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 64) and classes (n,) that the independent classifier sees."""
    features = torch.cat([classifier.features(batch * 2 - 1) for batch in images.float().split(500)])
    return features, classifier.head(features).argmax(1)


def frechet_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    statistics = [fid_features_to_statistics(values.double()) for values in (features, real_features)]
    return next(iter(fid_statistics_to_metric(*statistics, verbose=False).values()))


def precision_recall(features: torch.Tensor, real_features: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), k = 3, against as many real images."""
    scores = prc_features_to_metric(
        features,
        real_features[: len(features)],
        prc_neighborhood=3,
        prc_batch_size=2000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(scores["precision"]), float(scores["recall"])


def silhouettes(images: torch.Tensor) -> torch.Tensor:
    """(n, 32, 32) class indices: the rule that made the masks."""
    return (images[:, 0] > SILHOUETTE_THRESHOLD).long()


def mask_iou(masks: torch.Tensor, references: torch.Tensor) -> float:
    """IoU of the silhouette class, (n, 32, 32) both, averaged over images; those empty in both do not count."""
    scores = mean_iou(masks, references, num_classes=2, include_background=False, per_class=True, input_format="index")
    return scores[scores >= 0].mean().item()


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error, 15 bins."""
    return multiclass_calibration_error(probabilities, labels, num_classes=probabilities.shape[1]).item()


def image_scores(classifier: Classifier, images: torch.Tensor, real_features: torch.Tensor) -> dict[str, float]:
    """Quality of a set of images on its own."""
    features, _ = read_images(classifier, images)
    precision, recall = precision_recall(features, real_features)
    distance = frechet_distance(features, real_features)
    return {"frechet_distance": distance, "precision": precision, "recall": recall}
