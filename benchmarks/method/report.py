"""Rebuild the tables and plots of the controlled comparison from the JSONs in `results/`.

    python benchmarks/method/report.py > benchmarks/method/RESULTS.md

Where an arm has several seeds: the mean, and the standard deviation over seeds behind it. The bound of the likelihood is in
the JSONs only: with own channels it counts their soft edges against a variance of 1e-4, which swamps the image's bits.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


RESULTS = Path(__file__).parent / "results"
Runs = dict[str, list[dict]]

# title, ways of sampling in order of preference, score, digits
MAIN_COLUMNS = [
    ("FD joint, draw first", ["joint, draw first, guidance 1", "joint", "image"], "frechet_distance", 2),
    ("guided", ["joint, draw first, guidance 2"], "frechet_distance", 2),
    ("label agrees", ["joint, draw first, guidance 1", "joint"], "label_agreement", 3),
    ("guided", ["joint, draw first, guidance 2"], "label_agreement", 3),
    ("FD of labels ×2", ["label given, guidance 2"], "frechet_distance", 2),
    ("accuracy of labels", ["label given, guidance 1"], "label_accuracy", 3),
    ("×2", ["label given, guidance 2"], "label_accuracy", 3),
    ("FD of masks", ["mask given"], "frechet_distance", 2),
    ("mask kept", ["mask given"], "mask_iou", 3),
    ("label read", ["image given"], "label_accuracy", 3),
    ("mask read", ["image given"], "mask_iou", 3),
]
INFERENCE_COLUMNS = [
    ("expected", ["joint", "image"], "frechet_distance", 2),
    ("agrees", ["joint"], "label_agreement", 3),
    ("draw first", ["joint, draw first, guidance 1"], "frechet_distance", 2),
    ("agrees", ["joint, draw first, guidance 1"], "label_agreement", 3),
    (
        "20 SDE-DPM-Solver++",
        ["joint, draw first, 20 SDE-DPM-Solver++", "image, 20 SDE-DPM-Solver++"],
        "frechet_distance",
        2,
    ),
    ("agrees", ["joint, draw first, 20 SDE-DPM-Solver++"], "label_agreement", 3),
]
LEAK_COLUMNS = [
    (f"{how}, t = {t}", ["leak"], f"{how}_{t}", 3) for t in (50, 200, 500) for how in ("true", "missing", "wrong")
]
COST_COLUMNS = [("parameters", "parameters"), ("training seconds", "training_seconds"), ("images", "images_seen")]


def read_runs() -> Runs:
    """Arm -> its runs, one a seed."""
    runs: Runs = {}
    for path in sorted(RESULTS.glob("*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return runs


def cell(runs: list[dict], ways: list[str], score: str, digits: int) -> str:
    rows = [next((run["scores"][way] for way in ways if way in run["scores"]), {}) for run in runs]
    values = [row[score] for row in rows if score in row]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ±{statistics.stdev(values):.{digits}f}"


def table(runs: Runs, columns: list[tuple]) -> str:
    lines = [f"| arm | seeds | {' | '.join(title for title, *_ in columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for arm, arm_runs in runs.items():
        cells = [cell(arm_runs, *column[1:]) for column in columns]
        if any(cells):
            lines.append(f"| {arm} | {len(arm_runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(runs: Runs) -> str:
    lines = [f"| arm | {' | '.join(title for title, _ in COST_COLUMNS)} |", f"|{'---|' * (len(COST_COLUMNS) + 1)}"]
    for arm, arm_runs in runs.items():
        cells = [f"{statistics.mean(run['training'][key] for run in arm_runs):,.0f}" for _, key in COST_COLUMNS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: Runs, path: Path) -> None:
    """Image quality against agreement of the joint samples, an arm a point."""
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    for arm, arm_runs in runs.items():
        rows = [run["scores"].get("joint, draw first, guidance 1") for run in arm_runs]
        if rows[0] is None:
            continue
        x = statistics.mean(row["frechet_distance"] for row in rows)
        y = statistics.mean(row["label_agreement"] for row in rows)
        axes.scatter(x, y)
        axes.annotate(arm, (x, y), fontsize=8)
    axes.set_xlabel("Fréchet distance of joint samples (lower is better)")
    axes.set_ylabel("label agreement (higher is better)")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="also draw quality against agreement into this file")
    args = parser.parse_args()
    runs = read_runs()
    if args.plot is not None:
        plot(runs, args.plot)
    print(f"# The method, arm by arm\n\n{table(runs, MAIN_COLUMNS)}")
    print(f"\n## Inference\n\n{table(runs, INFERENCE_COLUMNS)}")
    print(f"\n## Leaks: accuracy of the label head\n\n{table(runs, LEAK_COLUMNS)}")
    print(f"\n## Cost\n\n{cost_table(runs)}")


if __name__ == "__main__":
    main()
