"""What a user says of a modality on the command line, completed by what the data say."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from ..modalities import ANCHOR, MODALITY_TYPES
from .columns import array_of, num_channels


@dataclass(frozen=True)
class ModalityOption:
    """One `--modality`.

    Args:
        name, type: as in the model's config.
        column: the column of the dataset.
        arguments: of the modality's class; type and these are its entry in the model's config.
        encoder: a repo or folder of transformers, whose embeddings of the column are the data.
        aggregation, weight: of the scheduler; None for the default of the space.
        task_weight: of its loss; None for that of --task_weights.
    """

    name: str
    type: str
    column: str
    encoder: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    aggregation: str | None = None
    weight: float | None = None
    task_weight: float | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """The entry in the model's config."""
        return {"type": self.type, **self.arguments}

    @property
    def from_image(self) -> bool:
        """Not read from the data, but made of the image at each step."""
        return MODALITY_TYPES[self.type].from_image


TRAINING_KEYS = ("column", "encoder", "aggregation", "weight", "task_weight")


def parse_modality(text: str) -> ModalityOption:
    """`NAME:TYPE[:key=value,...]`, lists as `a|b|c`.

    Raises:
        ValueError: naming what is wrong, and what is accepted.
    """
    name, _, rest = text.partition(":")
    modality_type, _, pairs = rest.partition(":")
    if name == ANCHOR or not name.isidentifier():
        raise ValueError(f"{text!r}: the name {name!r} is reserved or no identifier")
    if modality_type not in MODALITY_TYPES:
        raise ValueError(f"{text!r}: the type {modality_type!r} is not known; accepted: {', '.join(MODALITY_TYPES)}")
    values = dict(_parse_pair(text, pair) for pair in pairs.split(",") if pair)
    accepted = [*TRAINING_KEYS, *_model_keys(modality_type)]
    if unknown := set(values) - set(accepted):
        raise ValueError(f"{text!r}: unknown keys {sorted(unknown)}; accepted: {', '.join(accepted)}")
    training = {key: values.pop(key) for key in TRAINING_KEYS if key in values}
    if "encoder" in training and modality_type != "vector":
        raise ValueError(f"{text!r}: encoder makes embeddings; accepted: with the type vector")
    return ModalityOption(name, modality_type, **({"column": name} | training), arguments=values)


def _model_keys(modality_type: str) -> list[str]:
    return [key for key in inspect.signature(MODALITY_TYPES[modality_type]).parameters if key != "geometry"]


def _parse_pair(text: str, pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: {pair!r} is not of the form key=value")
    if key in ("class_names", "column", "encoder"):
        return key, value.split("|") if key == "class_names" else value
    return key, [_parse_value(item) for item in value.split("|")] if "|" in value else _parse_value(value)


def _parse_value(value: str) -> Any:
    try:
        return json.loads(value.lower() if value.lower() in ("true", "false", "none", "null") else value)
    except json.JSONDecodeError:
        return value


def complete_option(
    option: ModalityOption, features: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], dataset: Any
) -> ModalityOption:
    """Add the arguments that the data tell: classes, sizes, scales.

    Args:
        features: the dataset's features.
        rows: some of its rows, as the dataset gives them.
        dataset: asked for the distinct values of a column of strings.

    Raises:
        ValueError: where neither the user nor the data tell.
    """
    if option.from_image:
        return option
    feature = features[option.column]
    values = [row[option.column] for row in rows if row[option.column] is not None]
    if not values:
        raise ValueError(f"--modality {option.name}: column {option.column!r} has no value in {len(rows)} rows.")
    inferred = _INFERENCES.get(option.type, lambda *_: {})(option, feature, values, dataset)
    return replace(option, arguments={**inferred, **option.arguments})


def _infer_classes(option: ModalityOption, feature: Any, values: list, dataset: Any) -> dict[str, Any]:
    """num_classes and class_names from a ClassLabel, or from a column of strings."""
    if "num_classes" in option.arguments:
        return {}
    names = option.arguments.get("class_names")
    feature = getattr(feature, "feature", feature)
    if names is None and isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    if names is None and isinstance(values[0], str) and hasattr(dataset, "unique"):
        names = sorted(name for name in dataset.unique(option.column) if name is not None)
    if names is None:
        raise ValueError(
            f"--modality {option.name}: column {option.column!r} is no ClassLabel, so the data do not tell the number "
            "of classes; add num_classes=... or class_names=a|b|c."
        )
    return {"num_classes": len(names), "class_names": names}


def _infer_pixels(option: ModalityOption, feature: Any, values: list, dataset: Any) -> dict[str, Any]:
    """Channels and the RMS of a map, in [-1, 1]."""
    channels = option.arguments.get("num_channels") or num_channels(values[0], feature)
    squares = [np.square(array_of(value, feature, channels) * 2 - 1).mean() for value in values]
    return {"num_channels": channels, "rms": _round(math.sqrt(np.mean(squares)))}


def _infer_vector(option: ModalityOption, feature: Any, values: list, dataset: Any) -> dict[str, Any]:
    """Length, and the typical L2 norm."""
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1 or len(min(shapes)) != 1 or np.asarray(values[0]).dtype.kind not in "biuf":
        raise ValueError(
            f"--modality {option.name}: column {option.column!r} has values of shape {sorted(shapes)}; accepted: vectors "
            "of numbers, equally long. Texts and pictures need encoder=..."
        )
    arrays = np.asarray(values, dtype=np.float64)
    if not np.isfinite(arrays).all():
        raise ValueError(f"--modality {option.name}: column {option.column!r} has NaN or infinite numbers.")
    return {"dim": arrays.shape[1], "norm": _round(math.sqrt(np.square(arrays).sum(1).mean()))}


def _round(scale: float) -> float:
    """Three digits, and never 0: a scale is divided by."""
    return float(f"{scale:.3g}") or 1.0


_INFERENCES = {
    "categorical": _infer_classes,
    "segmentation": _infer_classes,
    "image": _infer_pixels,
    "vector": _infer_vector,
}


def scheduler_arguments(options: Sequence[ModalityOption]) -> dict[str, dict[str, Any]]:
    """`aggregation` and `modality_weights` of the scheduler, by name.

    By default, in own channels "decay" with c = 1, in shared space "bridge" with c = 0.5: no others that were measured
    are better by more than seeds differ (docs/method.md).
    """
    aggregation, weights = {}, {}
    for option in options:
        shared = option.arguments.get("space") == "shared"
        aggregation[option.name] = option.aggregation or ("bridge" if shared else "decay")
        weights[option.name] = option.weight if option.weight is not None else (0.5 if shared else 1.0)
    return {"aggregation": aggregation, "modality_weights": weights} if options else {}


def adopt_pretrained(options: Sequence[ModalityOption], specs: Mapping[str, dict]) -> list[ModalityOption]:
    """The modalities of a pretrained model, with the columns that the user names (else their own names), and those
    that the user adds to it.

    Raises:
        ValueError: if the user's options contradict the model.
    """
    named = {option.name: option for option in options}
    adopted = []
    for name, spec in specs.items():
        arguments = dict(spec)
        option = named.get(name, ModalityOption(name, spec["type"], column=name))
        fixed = {**option.arguments, "type": option.type}
        if option.aggregation or option.weight is not None or any(spec.get(k, v) != v for k, v in fixed.items()):
            raise ValueError(f"--modality {name}: the pretrained pipeline fixes it as {spec}, and the scheduler.")
        arguments.pop("type")
        adopted.append(replace(option, arguments=arguments))
    return adopted + [option for option in options if option.name not in specs]


def check_classes(option: ModalityOption, dataset: Any) -> None:
    """See to it, before training, that a pretrained model has all the classes of its column; a stream is read later.

    Raises:
        ValueError: naming the classes that it has not.
    """
    names, count = option.arguments.get("class_names"), option.arguments.get("num_classes")
    if count is None or MODALITY_TYPES[option.type].spatial or not hasattr(dataset, "unique"):
        return
    feature = dataset.features[option.column]
    values = [value for value in dataset.unique(option.column) if value is not None]
    if names is not None and isinstance(feature, datasets.ClassLabel):
        values = [feature.int2str(value) for value in values]
    accepted = set(names or ()) if values and isinstance(values[0], str) else set(range(count))
    if unknown := sorted(set(values) - accepted):
        raise ValueError(
            f"--modality {option.name}: column {option.column!r} has the classes {unknown}, which the pretrained model "
            f"has not; accepted: {names or f'0 to {count - 1}'}. Leave out their rows, or train a modality of another "
            f"name on that column (--modality other_name:{option.type}:column={option.column})."
        )
