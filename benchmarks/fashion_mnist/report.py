"""Rebuild the tables and the plot of this benchmark from the JSONs in `results/`.

python benchmarks/fashion_mnist/report.py --plot benchmarks/fashion_mnist/results.png > benchmarks/fashion_mnist/RESULTS.md

The tables go to standard output. `results/training/<model>.json` are the `training.json` of the runs.
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
    "ddpm": "plain DDPM",
    "class_conditional": "class-conditional DDPM",
    "classifier": "classifier",
    "silhouette_unet": "silhouette U-Net",
}


def format_score(column: str, scores: dict[str, float]) -> str:
    if column not in scores:
        return ""
    return f"{scores[column]:.2f}" if column == "frechet_distance" else f"{scores[column]:.3f}"


def read_rows() -> list[tuple[str, str, dict[str, float]]]:
    """(model, how, scores) of everything that has been scored."""
    paths = {title: RESULTS / f"{model}.json" for model, title in MODELS.items()}
    found = {title: json.loads(path.read_text()) for title, path in paths.items() if path.exists()}
    return [(title, how, scores) for title, rows in found.items() for how, scores in rows.items()]


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
    axes.set_xlabel("Fréchet distance on 64 features of the independent classifier (lower is better)")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="also draw the Frechet distances into this file")
    args = parser.parse_args()
    if args.plot is not None:
        plot(args.plot)
    print(f"# Fashion-MNIST: the joint model and the specialists\n\n{table()}\n\n## Training\n\n{trainings()}")


if __name__ == "__main__":
    main()
