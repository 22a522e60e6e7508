"""The kinds of data that can join the image. To add yours: one class, one entry in `MODALITY_TYPES`."""

from .base import ANCHOR, Features, Geometry, Modality, Presence
from .categorical import CategoricalModality
from .image import ImageModality
from .masked_image import MaskedImageModality
from .segmentation import SegmentationModality
from .vector import VectorModality


MODALITY_TYPES: dict[str, type[Modality]] = {
    "categorical": CategoricalModality,
    "segmentation": SegmentationModality,
    "image": ImageModality,
    "masked_image": MaskedImageModality,
    "vector": VectorModality,
}

__all__ = [
    "ANCHOR",
    "MODALITY_TYPES",
    "CategoricalModality",
    "Features",
    "Geometry",
    "ImageModality",
    "MaskedImageModality",
    "Modality",
    "Presence",
    "SegmentationModality",
    "VectorModality",
]
