"""Rebuild the tables and the plot of this benchmark from the JSONs in `results/`.

python benchmarks/fashion_mnist/report.py --plot benchmarks/fashion_mnist/results.png > benchmarks/fashion_mnist/RESULTS.md

The tables go to standard output. `results/training/<model>.json` are the `training.json` of the runs. `--card FOLDER`
writes the scores into the `evaluation.json` of a checkpoint, of which its model card is made.
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "frechet_distance": "Fréchet distance ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "label_agreement": "label agreement ↑",
    "label_accuracy": "label accuracy ↑",
    "calibration_error": "calibration error ↓",
    "mask_iou": "mask IoU ↑",
}
MODELS = {
    "joint": "joint (ours)",
    "finetuned": "plain DDPM of 6,500 steps, fine-tuned to joint in 1,500",
    "short": "joint, 1,500 steps from scratch",
    "ddpm": "plain DDPM",
    "class_conditional": "class-conditional DDPM",
    "classifier": "classifier",
    "silhouette_unet": "silhouette U-Net",
}


GUIDED = "joint, 20 SDE-DPM-Solver++, draw first, guidance 2"
CARD_DATASET = {"name": "Fashion-MNIST", "type": "zalando-datasets/fashion_mnist", "split": "test"}
CARD_METHOD = (
    "1,000 samples a row, labels drawn first, 20 steps of SDE-DPM-Solver++ for joint samples and 50 ancestral ones for the "
    "others; the Fréchet distance is on 64 features of an "
    "independent classifier, against all 10,000 test images, so it compares with nothing outside this table. The "
    "baselines have the same trunk, batches, order of data and steps, but for the silhouette U-Net: 1,000 steps."
)
CARD_LIMITS = [
    "Small grey pictures of ten kinds of clothes; a demonstration of the method, not a source of data.",
    "Its training was short and its trunk is small: shapes are right, textures are coarse.",
    "With one seed, and 1,000 samples, differences under about 5 % in the Fréchet distance are noise.",
]
CARD_DATA = "Fashion-MNIST (MIT, Zalando SE), padded to 32x32; masks are the pixels above a fifth of the range."
# name, kind of metric, higher is better, (model, how, score), baseline -> the same
CARD_METRICS = [
    ("Fréchet distance of joint samples, guidance 2", "frechet_distance", False, ("joint", GUIDED, "frechet_distance"), {
        "plain DDPM": ("ddpm", "20 SDE-DPM-Solver++", "frechet_distance"),
        "class-conditional DDPM, guidance 1.5": ("class_conditional", "50 ancestral, guidance 1.5", "frechet_distance"),
        "class-conditional DDPM": ("class_conditional", "50 ancestral, guidance 1", "frechet_distance"),
    }),
    ("Label agreement of joint samples, guidance 2", "accuracy", True, ("joint", GUIDED, "label_agreement"), {
        "classifier, on real images": ("classifier", "test images", "label_accuracy"),
    }),
    ("Accuracy given a label, guidance 3", "accuracy", True,
     ("joint", "label given, 50 ancestral, guidance 3", "label_accuracy"), {
        "class-conditional DDPM, guidance 1.5": ("class_conditional", "50 ancestral, guidance 1.5", "label_accuracy"),
    }),
    ("Label accuracy given an image", "accuracy", True, ("joint", "image given", "label_accuracy"), {
        "classifier": ("classifier", "test images", "label_accuracy"),
    }),
    ("Calibration error of that label", "ece", False, ("joint", "image given", "calibration_error"), {}),
    ("Mask IoU given an image", "mean_iou", True, ("joint", "image given", "mask_iou"), {
        "silhouette U-Net": ("silhouette_unet", "test images", "mask_iou"),
    }),
    ("IoU of a given mask and its image", "mean_iou", True, ("joint", "mask given, 50 ancestral", "mask_iou"), {}),
    ("Fréchet distance with 20 calls of SDE-DPM-Solver++", "frechet_distance", False,
     ("joint", "joint, 20 SDE-DPM-Solver++, draw first, half of the samples", "frechet_distance"), {
        "this model, 250 ancestral": ("joint", "joint, 250 ancestral, draw first, half of the samples", "frechet_distance"),
    }),
]  # fmt: skip


def format_score(column: str, scores: dict[str, float]) -> str:
    if column not in scores:
        return ""
    return f"{scores[column]:.2f}" if column == "frechet_distance" else f"{scores[column]:.3f}"


def read_scores(model: str) -> dict[str, dict[str, float]]:
    """How -> scores of one model; nothing where it has not been scored."""
    path = RESULTS / f"{model}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def read_rows() -> list[tuple[str, str, dict[str, float]]]:
    """(model, how, scores) of everything that has been scored."""
    return [(title, how, scores) for model, title in MODELS.items() for how, scores in read_scores(model).items()]


def table() -> str:
    """One row for each way of sampling each model."""
    lines = [f"| model | how | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    for title, how, scores in read_rows():
        cells = [format_score(column, scores) for column in COLUMNS]
        lines.append(f"| {title} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path: Path) -> None:
    """The Frechet distance of every way of sampling, one bar each."""
    rows = [row for row in read_rows() if "frechet_distance" in row[2]]
    colors = dict(zip(MODELS.values(), pyplot.get_cmap("tab10").colors, strict=False))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.25 * len(rows)), layout="constrained")
    bars = [scores["frechet_distance"] for _, _, scores in rows]
    axes.barh([f"{title}: {how}" for title, how, _ in rows], bars, color=[colors[title] for title, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("Fréchet distance (lower is better)")
    figure.savefig(path, dpi=120)


def trainings() -> str:
    """What each model's training took."""
    lines = ["| model | steps | images seen | parameters | minutes |", "|---|---|---|---|---|"]
    for model, title in MODELS.items():
        path = RESULTS / "training" / f"{model}.json"
        if path.exists():
            record = json.loads(path.read_text())
            minutes = record["training_seconds"] / 60
            lines.append(
                f"| {title} | {record['steps']:,} | {record['images_seen']:,} | {record['parameters']:,} | {minutes:.0f} |"
            )
    return "\n".join(lines)


def evaluation() -> dict:
    """The record of which the checkpoint's card is made; what has not been scored is left out."""
    scores = {(model, how): row for model in MODELS for how, row in read_scores(model).items()}

    def find(place: tuple[str, str, str]) -> float | None:
        return scores.get(place[:2], {}).get(place[2])

    metrics = []
    for name, kind, higher_is_better, place, others in CARD_METRICS:
        if (value := find(place)) is not None:
            baselines = {title: find(other) for title, other in others.items() if find(other) is not None}
            metric = {"name": name, "type": kind, "value": value, "higher_is_better": higher_is_better}
            metrics.append(metric | ({"baselines": baselines} if baselines else {}))
    command = "python benchmarks/fashion_mnist/evaluate.py --data_dir data/fashion_mnist --runs runs"
    return {
        "dataset": CARD_DATASET,
        "method": CARD_METHOD,
        "command": f"{command} --pipeline model_cards/fashion-mnist-joint",
        "metrics": metrics,
        "samples": {"samples/demo.png": "Samples in every direction"},
        "limits": CARD_LIMITS,
        "data": CARD_DATA,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="also draw the Frechet distances into this file")
    parser.add_argument("--card", type=Path, help="also write the evaluation.json of this checkpoint's folder")
    args = parser.parse_args()
    if args.card is not None:
        text = json.dumps(evaluation(), indent=2, ensure_ascii=False)
        (args.card / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(args.plot)
    print(f"# Fashion-MNIST: the joint model and the specialists\n\n{table()}\n\n## Training\n\n{trainings()}")


if __name__ == "__main__":
    main()
