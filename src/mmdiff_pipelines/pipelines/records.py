"""The records beside a pipeline, of which its card is made: `training.json` and `evaluation.json`.

`training.json` is written by the training loop. All of its keys may be left out:

    {"repo_id": "user/model",                       # what the card tells people to load
     "license": "apache-2.0",                       # of the weights, as the Hub names licences
     "data": "user/data, split 'train'",            # where the rows came from
     "dataset": "user/data",                        # its id, if it is on the Hub
     "data_license": "mit",
     "initial_weights": "user/ddpm",                # what it was fine-tuned from
     "base_model": "user/ddpm",                     # the same, if it is on the Hub
     "adapter": {"weights": "pytorch_lora_weights.safetensors",
                 "base": "user/model",              # the pipeline that it is for, unless that lies in the folder
                 "unet": {...}},                    # and what the card says of its UNet: size, channels, modalities
     "rows": 60000, "parameters": 1038973, "steps": 4000, "batch_size": 64, "images_seen": 256000,
     "minutes": 29.2, "device": "1 x cpu", "precision": "bf16", "ema_decay": 0.999, "versions": "diffusers 0.42.1",
     "command": "accelerate launch ...",
     "losses": {"image": 0.03}, "losses_over": 100} # means over so many steps, the last ones

`evaluation.json` is written by whoever measures. All of its keys may be left out, but metrics need a dataset:

    {"dataset": {"name": "Fashion-MNIST",           # as people call it
                 "type": "user/data",               # its id on the Hub, or a word such as "custom"
                 "split": "test"},                  # optional
     "method": "1,000 samples, 50 steps",           # how it was measured: a paragraph above the scores
     "command": "python evaluate.py ...",
     "metrics": [
         {"name": "Frechet distance, joint samples", "type": "frechet_distance", "value": 3.2,
          # the rest is optional: the direction, the others' scores, scores that are no rivals (of real data, of chance),
          # a remark, the Hub's name of the task
          "higher_is_better": false, "baselines": {"plain DDPM": 3.5}, "references": {"real images": 0.2}, "note": "...",
          "task": "unconditional-image-generation"}],
     "samples": {"samples/joint.png": "Generated jointly"}, # pictures and what they show
     "limits": ["Grey images of 32 x 32 pixels only."],
     "data": "..."}                                 # what the data are, and their licence
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub.utils import HFValidationError, validate_repo_id


CARD_NAME, TRAINING, EVALUATION = "README.md", "training.json", "evaluation.json"


class Kind(NamedTuple):
    """What a value of a record may be."""

    name: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True


def _is_dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(item) for item in value.values())


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_sample(path: str) -> bool:
    """Whether it is in `samples/`, which is uploaded."""
    parts = PurePosixPath(path).parts
    return parts[:1] == ("samples",) and ".." not in parts


TEXT = Kind("a text", lambda value: isinstance(value, str))
NUMBER = Kind("a finite number", _is_number)
WHOLE = Kind("a whole number, 0 or more", lambda value: type(value) is int and value >= 0)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
HUB_ID = Kind("an id such as user/name", _is_id)
NUMBERS = Kind("finite numbers by name", _is_dict_of(_is_number))
TEXTS = Kind("a list of texts", _is_list_of(str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OBJECTS = Kind("a list of objects", _is_list_of(dict))
PICTURES = Kind(
    "captions by path, the paths within samples/",
    lambda value: _is_dict_of(TEXT.fits)(value) and all(_is_sample(path) for path in value),
)

TRAINING_KEYS = {
    "repo_id": TEXT, "license": TEXT, "data": TEXT, "dataset": HUB_ID, "data_license": TEXT,
    "initial_weights": TEXT, "base_model": HUB_ID, "adapter": OBJECT, "rows": WHOLE, "parameters": WHOLE, "steps": WHOLE,
    "batch_size": WHOLE, "images_seen": WHOLE, "minutes": NUMBER, "device": TEXT, "precision": TEXT,
    "ema_decay": NUMBER, "versions": TEXT, "command": TEXT, "losses": NUMBERS, "losses_over": WHOLE,
}  # fmt: skip
EVALUATION_KEYS = {
    "dataset": OBJECT, "method": TEXT, "command": TEXT, "metrics": OBJECTS, "samples": PICTURES, "limits": TEXTS,
    "data": TEXT,
}  # fmt: skip
DATASET_KEYS = {"name": TEXT, "type": HUB_ID, "split": TEXT}
METRIC_KEYS = {
    "name": TEXT, "type": TEXT, "value": NUMBER, "higher_is_better": TRUTH, "baselines": NUMBERS,
    "references": NUMBERS, "note": TEXT, "task": TEXT,
}  # fmt: skip


def read_training(folder: Path) -> dict[str, Any]:
    """`training.json` of a folder, {} if it has none.

    Raises:
        ValueError: naming the key, if it is not of the form above.
    """
    record = _read_json(folder / TRAINING)
    _check(record, TRAINING, TRAINING_KEYS)
    return record


def read_evaluation(folder: Path) -> dict[str, Any]:
    """`evaluation.json` of a folder, {} if it has none.

    Raises:
        ValueError: naming the key, if it is not of the form above, or if a picture is not there.
    """
    record = _read_json(folder / EVALUATION)
    _check(record, EVALUATION, EVALUATION_KEYS, required=["dataset"] if record.get("metrics") else [])
    if "dataset" in record:
        _check(record["dataset"], f"{EVALUATION}: dataset", DATASET_KEYS, required=["name", "type"])
    for i, metric in enumerate(record.get("metrics", [])):
        _check(metric, f"{EVALUATION}: metrics[{i}]", METRIC_KEYS, required=["name", "type", "value"])
    for path in record.get("samples", {}):
        if not (folder / path).is_file():
            raise ValueError(f"{EVALUATION}: samples: {path!r} is not there in {folder}.")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; accepted: an object, {{...}}.")
    return record


def _check(
    record: Mapping[str, Any], place: str, accepted: Mapping[str, Kind], required: Collection[str] = ()
) -> None:
    for key in required:
        if key not in record:
            raise ValueError(f"{place}: {key!r} is missing.")
    for key, value in record.items():
        if key not in accepted:
            raise ValueError(f"{place}: {key!r} is unknown; accepted: {', '.join(accepted)}.")
        if not accepted[key].fits(value):
            raise ValueError(f"{place}: {key!r} is {value!r}; accepted: {accepted[key].name}.")
