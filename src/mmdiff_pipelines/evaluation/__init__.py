"""Scores of generated images and of what comes with them. Needs the extra `evaluation`.

The numbers are those of torch-fidelity, torchmetrics, lpips and scikit-learn; what is here names them alike, checks what
goes in, and loads the networks that they look through.
"""

from .efficientnet_lite import EfficientNetLite0
from .embeddings import Projection, cosine_similarity, fit_linear_probe, linear_probe, retrieval_accuracy
from .features import ClassifierFeatures, InceptionFeatures, TransformersFeatures, extract_features, feature_network
from .images import LearnedSimilarity, frechet_distance, nearest_neighbours, peak_signal_to_noise, precision_recall
from .labels import accuracy, calibration_error
from .masks import mean_intersection_over_union, silhouette_iou
from .pixels import as_rgb, tensor_to_image


__all__ = [
    "ClassifierFeatures",
    "EfficientNetLite0",
    "InceptionFeatures",
    "LearnedSimilarity",
    "Projection",
    "TransformersFeatures",
    "accuracy",
    "as_rgb",
    "calibration_error",
    "cosine_similarity",
    "extract_features",
    "feature_network",
    "fit_linear_probe",
    "frechet_distance",
    "linear_probe",
    "mean_intersection_over_union",
    "nearest_neighbours",
    "peak_signal_to_noise",
    "precision_recall",
    "retrieval_accuracy",
    "silhouette_iou",
    "tensor_to_image",
]
