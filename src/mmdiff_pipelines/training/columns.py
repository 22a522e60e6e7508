"""Values as `datasets` gives them, made ready for `Modality.to_tensor`: dtype and size, image and map alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps

from ..modalities.image import deep_pixels, is_deep


CHANNELS_OF_MODES = {"1": 1, "L": 1, "F": 1, "RGBA": 4, "PA": 4, "LA": 4}
MODES_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def num_channels(value: Any, feature: Any) -> int:
    """The channels of an image: by the mode of a PIL image, or the last axis of an array (H, W[, C])."""
    if isinstance(value, PIL.Image.Image):
        return 1 if is_deep(value) else CHANNELS_OF_MODES.get(value.mode, 3)
    array = np.asarray(value, dtype=array_dtype(feature))
    return array.shape[2] if array.ndim == 3 else 1


def array_dtype(feature: Any) -> str | None:
    """The dtype of an array column; lists of Python numbers have lost it."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", None) if not isinstance(feature, datasets.Image) else None


def label_of(value: Any, feature: Any, class_names: Sequence[str] | None) -> Any:
    """A class as the dataset writes it -> a name or an index of the modality's.

    An index into a [`ClassLabel`] whose names are the modality's, in whatever order, becomes the name.
    """
    if isinstance(feature, datasets.ClassLabel) and not set(feature.names).isdisjoint(class_names or ()):
        return feature.int2str(int(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)  # csv files with missing labels hold floats
    return value


def array_of(value: Any, feature: Any, channels: int) -> np.ndarray:
    """An image -> floats, 0..1."""
    if isinstance(value, PIL.Image.Image):
        if is_deep(value):
            return deep_pixels(value)
        return np.asarray(value.convert(MODES_OF_CHANNELS[channels])) / 255
    array = np.asarray(value, dtype=array_dtype(feature))
    return array / 255 if array.dtype == np.uint8 else array


def height_width(value: Any) -> tuple[int, int]:
    """The size of a map as it is stored, or of the image that a cached latent was made of."""
    if isinstance(value, Mapping):
        return tuple(value["size"])
    return value.size[::-1] if isinstance(value, PIL.Image.Image) else np.shape(value)[:2]


def aligned(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two maps have the same aspect, so that the same part of both is kept: within a pixel of the larger."""
    (height, width), (other_height, other_width) = size, other
    return abs(height * other_width - other_height * width) <= max(height, width, other_height, other_width)


def fit_map(value: Any, feature: Any, size: tuple[int, int], discrete: bool, channels: int | None) -> Any:
    """Scale a map to cover `size`, keep its aspect, and cut out the middle.

    Args:
        value: a PIL image, or an array (H, W[, C]) or nested lists of one.
        feature: its column's.
        size: height and width.
        discrete: class indices, which must not be mixed.
        channels: of a continuous map.

    Returns:
        A PIL image or an array, of that size.

    Raises:
        ValueError: for what is no map.
    """
    if isinstance(value, PIL.Image.Image):
        if not discrete and is_deep(value):
            return _fit_array(deep_pixels(value), size, discrete)
        if not discrete and channels in MODES_OF_CHANNELS:
            value = value.convert(MODES_OF_CHANNELS[channels])
        return value if value.size == size[::-1] else _fit_image(value, size, discrete)
    array = np.asarray(value, dtype=array_dtype(feature))
    if array.ndim not in (2, 3):
        raise ValueError(f"a value of shape {array.shape}; accepted: a picture, or an array (H, W) or (H, W, C).")
    return _fit_array(array, size, discrete)


def _fit_image(image: PIL.Image.Image, size: tuple[int, int], discrete: bool) -> PIL.Image.Image:
    method = PIL.Image.Resampling.NEAREST if discrete else PIL.Image.Resampling.BILINEAR
    return PIL.ImageOps.fit(image, size[::-1], method)


def _fit_array(array: np.ndarray, size: tuple[int, int], discrete: bool) -> np.ndarray:
    if array.shape[:2] == tuple(size):
        return array
    planes = np.moveaxis(array[..., None] if array.ndim == 2 else array, -1, 0).astype(np.float32)
    fitted = np.stack([_fit_image(PIL.Image.fromarray(plane), size, discrete) for plane in planes], axis=-1)
    fitted = np.rint(fitted) if np.issubdtype(array.dtype, np.integer) else fitted
    return fitted.astype(array.dtype).reshape(*size, *array.shape[2:])
