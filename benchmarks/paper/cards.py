"""The `evaluation.json` of the checkpoints in `model_cards/`, of which their cards are made, from the benchmark's rows."""

import json
import shutil
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tables import cell, read_runs

from mmdiff_pipelines.pipelines.model_card import write_card
from mmdiff_pipelines.pipelines.records import EVALUATION, TRAINING, read_training

from .arms import TASKS


METHOD = (
    "Seed 0; {num_samples:,} generated samples a row, and all held-out images where the label, mask or embedding of one is "
    "read, in one call; 20 calls of SDE-DPM-Solver++, twice that with guidance. The baselines have the same trunk, steps, "
    "batches and order of data; of several trainings of theirs, their mean. Fréchet distances are on {features}, so they "
    "compare with nothing outside this table; real images are as many of the training set."
)
METHODS = {  # what is to be said besides
    "cifar10-masked": "Reconstructions are of the first 500 held-out images, in as many calls as the line says; in one by "
    "regressions, and by 50 ancestral steps and their jumps by RePaint. All that denoise predict v; the mask-conditioned one "
    "with the weights of v, the plain DDPM with those of the noise, this one with either: v's where a part is given.",
    "cifar10-label": "Generated images are read by a logistic regression on the features. All models that generate "
    "predict v with the weights of the noise; class_conditional at a learning rate of 2e-3, the others at 3e-3.",
    "cifar10-label-27000": "Generated images are read by a logistic regression on the features. All models that generate "
    "predict v with the weights of the noise. This one has had 27,000 steps at a learning rate of 2e-3, as many as ddpm, "
    "class_conditional and classifier together; all others 9,000, class_conditional at 2e-3, the others at 3e-3.",
    "camvid-segmentation": "Masks of generated images are read by segmenter_judge, a wider U-Net.",
    "cifar10-embedding": "The features are those whose embeddings this model learns, which the plain DDPM has not seen.",
    "fashion-mnist-caption": "The caption of an image is of its class, read by that classifier, and of its tone, which goes "
    "by brightness.",
}
DATASETS = {
    "cifar10": {"name": "CIFAR-10", "type": "uoft-cs/cifar10", "split": "test"},
    "camvid": {"name": "CamVid", "type": "camvid", "split": "val"},
    "fashion_mnist": {"name": "Fashion-MNIST", "type": "zalando-datasets/fashion_mnist", "split": "test"},
}
LICENCES = {
    "cifar10": {"dataset": "uoft-cs/cifar10", "data_license": "none stated"},
    "camvid": {"data_license": "for research"},
    "fashion_mnist": {"dataset": "zalando-datasets/fashion_mnist", "data_license": "mit"},
}
DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky, 2009), which was re-coded as JPEG for these figures; it has no licence of its own. No image of it is in this repository.",
    "camvid": "CamVid (Brostow et al., 2008), 367 training scenes at 64x48; for research. No scene of it is in this repository.",
    "fashion_mnist": "Fashion-MNIST (MIT, Zalando SE), padded to 32x32; captions are made of class and brightness.",
}
SMALL = "A small model after a short training: a demonstration of the method, not a source of data."
LIMITS = {
    "cifar10": [SMALL, "Images of 32 x 32 pixels of ten classes; many are not recognisable."],
    "camvid": [SMALL, "It has seen 367 street scenes; its own have their layout, and often a wrong tint."],
    "fashion_mnist": [SMALL, "Grey pictures of ten kinds of clothes, and captions of thirty forms."],
}
SHEET = "samples/samples.png"
CAPTIONS = {
    "cifar10-label": "Given the ten labels, with guidance 1 and 2",
    "cifar10-label-27000": "Given the ten labels, with guidance 1 and 2",
    "cifar10-masked": "Generated, nothing given; half of it hidden; filled in",
    "camvid-segmentation": "Generated images, and their masks",
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
    "memorisation": ("distance_ratio", None),
    "cosine": ("cosine_similarity", True),
    "retrieval": ("accuracy", True),
    "probe_accuracy": ("accuracy", True),
}


Places = dict[str, tuple[str, str, str]]


class Line(NamedTuple):
    """A score on a card.

    Args:
        name: on the card.
        how, score: the row of the joint model, and its score.
        baselines: title -> (arm, row, score) that stand beside it; as a rule of the same row and score.
        references: the same of what is no rival: of real data, of chance, or of a model that is told less.
    """

    name: str
    how: str
    score: str
    baselines: Places = {}
    references: Places = {}
    note: str | None = None


def line(
    name: str, how: str, score: str, *arms: str, references: Places | None = None, note: str | None = None, **rows: str
) -> Line:
    """A line beside which arms stand with the same row, or with another that is named."""
    others = dict.fromkeys(arms, how) | rows
    return Line(name, how, score, {arm: (arm, row, score) for arm, row in others.items()}, references or {}, note)


REGRESSIONS = ("reconstruction_mse", "reconstruction_lpips")
ON_LPIPS = "reconstruction_lpips is trained on LPIPS itself"


def beside_real(arm: str) -> Places:
    return {"real images": (arm, "real training images", "fd")}


REAL, REAL_SCENES, REAL_CLOTHES = map(beside_real, ("ddpm", "segmenter_judge", "fashion_ddpm"))


def masked_lines() -> list[Line]:
    lines = [line("Fréchet distance of images, nothing given", "generation", "fd", "ddpm", references=REAL)]
    for level in ("10%", "25%", "50%", "75%"):
        call, raw, pasted = f"one call, {level} hidden", f"{level} hidden, raw", f"{level} hidden, pasted"
        regressions = dict.fromkeys(REGRESSIONS, f"{call}, pasted")
        lines += [
            line(f"LPIPS, {level} hidden, one call, raw output", f"one call, {raw}", "lpips", "mask_conditioned", *REGRESSIONS),
            line(f"LPIPS, {level} hidden, 20 steps, raw output", f"20 steps, {raw}", "lpips", "mask_conditioned"),
            line(
                f"LPIPS, {level} hidden, 3 steps, known pixels imposed", f"3 steps, imposed, {pasted}", "lpips",
                mask_conditioned=f"3 steps, {pasted}", ddpm=f"RePaint, {pasted}", note=ON_LPIPS, **regressions,
            ),
            line(
                f"LPIPS, {level} hidden, mean of 4 draws", f"20 steps, imposed, mean of 4, {pasted}", "lpips",
                mask_conditioned=f"20 steps, mean of 4, {pasted}",
            ),
        ]  # fmt: skip
    return lines


HEADS = "cifar10-label-heads"


def label_lines(*more: str) -> list[Line]:
    drawn, guided, given = "joint, draw first, guidance 1", "joint, draw first, guidance 2", "label given, guidance 2"
    beside = ("class_conditional", HEADS, *more)
    return [
        line("Fréchet distance of pairs", drawn, "fd", *beside, references=REAL, ddpm="generation"),
        line("Label agreement of pairs", drawn, "label_agreement", *beside),
        line("Fréchet distance of pairs, guidance 2", guided, "fd", *beside, references=REAL),
        line("Label agreement of pairs, guidance 2", guided, "label_agreement", *beside),
        line("Fréchet distance given a label, guidance 2", given, "fd", *beside, references=REAL),
        line("Accuracy given a label, guidance 2", given, "label_accuracy", *beside),
        line("Label accuracy given an image", "image given", "label_accuracy", "classifier", HEADS, *more),
        line("Calibration error of that label", "image given", "calibration_error", "classifier", HEADS, *more),
    ]


LINES: dict[str, list[Line]] = {
    "cifar10-masked": masked_lines(),
    "cifar10-label": label_lines(),
    "cifar10-label-27000": label_lines("cifar10-label"),
    "camvid-segmentation": [
        line("mIoU given an image", "image given", "miou", "segmenter"),
        line("Fréchet distance of joint samples", "joint", "fd", "concatenated", references=REAL_SCENES),
        line("mIoU of generated mask and image", "joint", "mask_agreement", "concatenated"),
        line("Distance to training scenes, in that of held-out ones", "joint", "memorisation", "concatenated"),
        line("Fréchet distance given a mask", "mask given, guidance 1", "fd", "mask_to_image", references=REAL_SCENES),
        line("mIoU of a given mask and its image", "mask given, guidance 1", "mask_agreement", "mask_to_image"),
    ],
    "cifar10-embedding": [
        line("Fréchet distance of joint samples", "joint", "fd", references=REAL, ddpm="generation"),
        line("Cosine of generated embedding and image", "joint", "cosine", references={
            "shuffled": ("cifar10-embedding", "joint", "cosine_shuffled"),
        }),
        line("The same, the embedding read again off the image", "joint, embedding read again", "cosine"),
        Line("Cosine of the embedding of a held-out image", "image given", "cosine", {
            "embedding_regression": ("embedding_regression", "image given", "cosine"),
        }, {
            "shuffled": ("cifar10-embedding", "image given", "cosine_shuffled"),
        }),
        Line("Linear probe on it", "image given", "probe_accuracy", {
            "embedding_regression": ("embedding_regression", "image given", "probe_accuracy"),
        }, {
            "real embeddings": ("cifar10-embedding", "real pairs", "probe_accuracy"),
        }),
        line("Fréchet distance given an embedding, guidance 2", "embedding given, guidance 2", "fd", references=REAL | {
            "ddpm, told nothing": ("ddpm", "generation", "fd"),
        }),
        line("Cosine of a given embedding and its image, guidance 2", "embedding given, guidance 2", "cosine", references={
            "shuffled": ("cifar10-embedding", "embedding given, guidance 2", "cosine_shuffled"),
        }),
        line("Retrieval of a given embedding, guidance 2", "embedding given, guidance 2", "retrieval"),
    ],
    "fashion-mnist-caption": [
        line("Fréchet distance of joint samples", "joint", "fd", references=REAL_CLOTHES, fashion_ddpm="generation"),
        line("Class of caption and image agree", "joint", "label_agreement"),
        line("The same, the caption read again off the image", "joint, caption read again", "label_agreement"),
        line("Caption and image agree, of thirty captions", "joint", "retrieval"),
        line("Cosine of generated embedding and that of the image's caption", "joint", "cosine", references={
            "shuffled": ("fashion-mnist-caption", "joint", "cosine_shuffled"),
        }),
        Line("Class of the caption of a held-out image", "image given", "label_agreement", {
            "fashion_classifier": ("fashion_classifier", "image given", "label_accuracy"),
        }),
        line("Caption of a held-out image, of thirty", "image given", "retrieval", references={
            "the classifier and the rule of tones": ("fashion-mnist-caption", "real pairs", "retrieval"),
        }),
        line("Fréchet distance given a caption, guidance 2", "caption given, guidance 2", "fd", references=REAL_CLOTHES | {
            "fashion_ddpm, told nothing": ("fashion_ddpm", "generation", "fd"),
        }),
        line("Class of a given caption kept, guidance 2", "caption given, guidance 2", "label_agreement", references={
            "the classifier on real images": ("fashion-mnist-caption", "real pairs", "label_agreement"),
        }),
        line("A given caption kept, of thirty, guidance 2", "caption given, guidance 2", "retrieval", references={
            "the classifier and the rule of tones": ("fashion-mnist-caption", "real pairs", "retrieval"),
        }),
    ],
}  # fmt: skip


def evaluation(name: str, data: str, folder: Path) -> dict:
    """Of one joint model; what has not been scored is left out. Of several trainings, baselines have the mean.

    Args:
        name: of the arm, which is the checkpoint's folder too.
        data: the dataset's folder.
        folder: of the benchmark, with `results/` and `pictures/`.

    Raises:
        FileNotFoundError: if the arm itself has not been scored.
    """
    task = next(task for task, names in TASKS.items() if name in names)
    runs = read_runs(folder / "results" / task)
    if name not in runs:
        raise FileNotFoundError(f"{folder / 'results' / task} has no rows of {name}; score it first.")

    def scores(arm: str, how: str, kind: str) -> list[float]:
        """One a seed, the checkpoint's own first."""
        rows = (record["scores"].get(how, {}) for record in runs.get(arm, []))
        return [row[kind] for row in rows if kind in row]

    def beside(places: Places) -> dict[str, float]:
        found = {title: scores(*place) for title, place in places.items()}
        return {title: round(mean(values), 5) for title, values in found.items() if values}

    metrics = []
    for title, how, kind, baselines, references, note in LINES[name]:
        if not (values := scores(name, how, kind)):
            continue
        kind_there, higher_is_better = KINDS[kind]
        rivals, others = beside(baselines), beside(references)
        if any((value > values[0]) != (value > mean(values)) for value in rivals.values()):  # nobody is ahead for sure
            rivals, others = {}, rivals | others
        notes = [*filter(None, [note]), *([f"{cell(values, 3)} over {len(values)} trainings"] if values[1:] else [])]
        optional = {
            "higher_is_better": higher_is_better,
            "references": others or None,
            "note": "; ".join(notes) or None,
        }
        metric = {"name": title, "type": kind_there, "value": values[0], "baselines": rivals}
        metrics.append(metric | {key: item for key, item in optional.items() if item is not None})
    settings = runs[name][0]["settings"]
    method = METHOD.format(num_samples=settings["num_samples"], features=settings["features"])
    return {
        "dataset": DATASETS[data],
        "method": " ".join([method, METHODS[name]]),
        "command": f"python benchmarks/paper_tasks.py --tasks {task} --cards",
        "metrics": metrics,
        "samples": {SHEET: CAPTIONS.get(name, "Generated, nothing given")},
        "limits": LIMITS[data],
        "data": DATA[data],
    }


def write(card: Path, data: str, folder: Path) -> None:
    """The records, the card and the sheet of a checkpoint, in its folder; `folder` is the benchmark's."""
    training = {"license": "apache-2.0"} | LICENCES[data] | read_training(card)
    sheet = folder / "pictures" / f"{card.name}.png"
    if sheet.exists():
        (card / SHEET).parent.mkdir(exist_ok=True)
        shutil.copyfile(sheet, card / SHEET)
    text = json.dumps(evaluation(card.name, data, folder), indent=2, ensure_ascii=False)
    (card / EVALUATION).write_text(text + "\n", encoding="utf-8")
    (card / TRAINING).write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    write_card(card)
