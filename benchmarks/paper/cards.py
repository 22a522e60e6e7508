"""The `evaluation.json` of the checkpoints in `model_cards/`, of which their cards are made, from the rows in `results/`."""

import json
from pathlib import Path
from typing import NamedTuple

from mmdiff_pipelines.pipelines.model_card import write_card
from mmdiff_pipelines.pipelines.records import EVALUATION

from .arms import TASKS


METHOD = (
    "Seed 0; 1,000 samples a row (404 scenes), 20 calls of SDE-DPM-Solver++, twice that with guidance. The baselines have "
    "the same trunk, steps, batches and order of data. Fréchet distances are on {features}, so they compare with nothing "
    "outside this table."
)
EFFICIENTNET = "EfficientNet-Lite0 features"
DATASETS = {
    "cifar10": ({"name": "CIFAR-10", "type": "uoft-cs/cifar10", "split": "test"}, EFFICIENTNET),
    "camvid": ({"name": "CamVid", "type": "camvid", "split": "val"}, EFFICIENTNET),
    "fashion_mnist": (
        {"name": "Fashion-MNIST", "type": "zalando-datasets/fashion_mnist", "split": "test"},
        "64 features of an independent classifier",
    ),
}
DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky, 2009), re-coded as JPEG; it has no licence of its own. No image of it is in this repository.",
    "camvid": "CamVid (Brostow et al., 2008), 367 training scenes at 64x48; for research. No scene of it is in this repository.",
    "fashion_mnist": "Fashion-MNIST (MIT, Zalando SE), padded to 32x32; captions are made of class and brightness.",
}
SMALL = "A small model after a short training: a demonstration of the method, not a source of data."
LIMITS = {
    "cifar10": [SMALL, "Images of 32 x 32 pixels of ten classes; many are not recognisable."],
    "camvid": [SMALL, "It has seen 367 street scenes, and may repeat them: see the distance to training scenes."],
    "fashion_mnist": [SMALL, "Grey pictures of ten kinds of clothes, and captions of thirty forms."],
}
KINDS = {
    "fd": ("frechet_distance", False),
    "lpips": ("lpips", False),
    "psnr": ("psnr", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "label_agreement": ("accuracy", True),
    "label_accuracy": ("accuracy", True),
    "calibration_error": ("ece", False),
    "miou": ("mean_iou", True),
    "mask_agreement": ("mean_iou", True),
    "cosine": ("cosine_similarity", True),
    "retrieval": ("accuracy", True),
    "probe_accuracy": ("accuracy", True),
}


class Line(NamedTuple):
    """A score on a card: its name there, the row and score of the joint model, and the rows of others by arm."""

    name: str
    how: str
    score: str
    others: dict[str, str] = {}


def masked_lines() -> list[Line]:
    lines = [Line("Fréchet distance of images, nothing given", "generation", "fd", {"ddpm": "generation"})]
    for level in ("10%", "25%", "50%", "75%"):
        steps = {"mask_conditioned": f"20 steps, {level} hidden"}
        regression = dict.fromkeys(("reconstruction_mse", "reconstruction_lpips"), f"one call, {level} hidden")
        raw = {arm: f"{how}, raw" for arm, how in (steps | regression).items()}
        pasted = {arm: f"{how}, pasted" for arm, how in (steps | regression).items()}
        pasted["ddpm"] = f"RePaint, {level} hidden, pasted"
        lines += [
            Line(f"LPIPS, {level} hidden, raw output", f"20 steps, {level} hidden, raw", "lpips", raw),
            Line(f"LPIPS, {level} hidden, pasted", f"20 steps, imposed, {level} hidden, pasted", "lpips", pasted),
            Line(f"LPIPS, {level} hidden, one call, raw output", f"one call, {level} hidden, raw", "lpips"),
        ]
    return lines


DRAWN, GIVEN = "joint, draw first, guidance 1.5", "label given, guidance 2"
LINES: dict[str, list[Line]] = {
    "cifar10-masked": masked_lines(),
    "cifar10-label": [
        Line(
            "Fréchet distance of joint samples, guidance 1.5",
            DRAWN,
            "fd",
            {"ddpm": "generation", "class_conditional": "label given, guidance 1.5"},
        ),
        Line("Label agreement of joint samples, guidance 1.5", DRAWN, "label_agreement"),
        Line("Fréchet distance given a label, guidance 2", GIVEN, "fd", {"class_conditional": GIVEN}),
        Line("Accuracy given a label, guidance 2", GIVEN, "label_accuracy", {"class_conditional": GIVEN}),
        Line("Label accuracy given an image", "image given", "label_accuracy", {"classifier": "image given"}),
        Line("Calibration error of that label", "image given", "calibration_error", {"classifier": "image given"}),
    ],
    "camvid-segmentation": [
        Line("mIoU given an image", "image given", "miou", {"segmenter": "image given"}),
        Line("Fréchet distance of joint samples", "joint", "fd", {"concatenated": "joint"}),
        Line("mIoU of generated mask and image", "joint", "mask_agreement", {"concatenated": "joint"}),
        Line(
            "Fréchet distance given a mask",
            "mask given, guidance 1",
            "fd",
            {"mask_to_image": "mask given, guidance 1"},
        ),
        Line(
            "mIoU of a given mask and its image",
            "mask given, guidance 1",
            "mask_agreement",
            {"mask_to_image": "mask given, guidance 1"},
        ),
    ],
    "cifar10-embedding": [
        Line("Fréchet distance of joint samples", "joint", "fd", {"ddpm": "generation"}),
        Line("Cosine of generated embedding and image", "joint", "cosine"),
        Line("Cosine of the embedding of a held-out image", "image given", "cosine"),
        Line("Linear probe on it", "image given", "probe_accuracy"),
        Line("Retrieval of a given embedding, guidance 2", "embedding given, guidance 2", "retrieval"),
    ],
    "fashion-mnist-caption": [
        Line("Fréchet distance of joint samples", "joint", "fd"),
        Line("Class of caption and image agree", "joint", "label_agreement"),
        Line("Class of the caption of a held-out image", "image given", "label_accuracy"),
        Line("Class of a given caption kept, guidance 2", "caption given, guidance 2", "label_accuracy"),
    ],
}


def evaluation(name: str, data: str, results: Path) -> dict:
    """Of one joint model; what has not been scored is left out.

    Args:
        name: of the arm, which is the checkpoint's folder too.
        data: the dataset's folder.
        results: the folder of the rows.

    Raises:
        FileNotFoundError: if the arm itself has not been scored.
    """
    task = next(task for task, names in TASKS.items() if name in names)

    def scores(arm: str) -> dict[str, dict[str, float]]:
        return json.loads((results / task / f"{arm}-0.json").read_text())["scores"]

    ours, metrics = scores(name), []
    for line in LINES[name]:
        if line.score not in ours.get(line.how, {}):
            continue
        there = [arm for arm in line.others if (results / task / f"{arm}-0.json").exists()]
        rows = {arm: scores(arm).get(line.others[arm], {}) for arm in there}
        baselines = {arm: row[line.score] for arm, row in rows.items() if line.score in row}
        kind, higher_is_better = KINDS[line.score]
        metric = {"name": line.name, "type": kind, "value": ours[line.how][line.score]}
        metrics.append(metric | {"higher_is_better": higher_is_better, "baselines": baselines})
    dataset, features = DATASETS[data]
    return {
        "dataset": dataset,
        "method": METHOD.format(features=features),
        "command": f"python benchmarks/paper_tasks.py --tasks {task} --cards",
        "metrics": metrics,
        "limits": LIMITS[data],
        "data": DATA[data],
    }


def write(folder: Path, data: str, results: Path) -> None:
    """The record and the card of a checkpoint, in its folder."""
    text = json.dumps(evaluation(folder.name, data, results), indent=2, ensure_ascii=False)
    (folder / EVALUATION).write_text(text + "\n", encoding="utf-8")
    write_card(folder)
