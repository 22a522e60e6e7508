"""Rebuild the tables and plots of the controlled comparison from the JSONs in `results/`.

    python benchmarks/method/report.py --plots benchmarks/method > benchmarks/method/RESULTS.md

Where an arm has several seeds: the mean, and the standard deviation over seeds behind it. The last line of a table is the
noise of its columns: the standard deviation over seeds, pooled over the arms that have several. A difference of single
seeds says something beyond about three times that, of means over three seeds beyond about twice.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


RESULTS = Path(__file__).parent / "results"
Runs = dict[str, list[dict]]
Column = tuple[str, list[str], str, int]  # title, ways of sampling in order of preference, score, digits

JOINT, GUIDED = ["joint, draw first, guidance 1", "joint"], ["joint, draw first, guidance 1.5"]
MAIN_COLUMNS: list[Column] = [
    ("FD joint", JOINT, "frechet_distance", 2),
    ("×1.5", GUIDED, "frechet_distance", 2),
    ("label agrees", JOINT, "label_agreement", 3),
    ("×1.5", GUIDED, "label_agreement", 3),
    ("FD of labels", ["label given, guidance 1"], "frechet_distance", 2),
    ("×2", ["label given, guidance 2"], "frechet_distance", 2),
    ("label kept", ["label given, guidance 1"], "label_accuracy", 3),
    ("×2", ["label given, guidance 2"], "label_accuracy", 3),
    ("FD of masks", ["mask given"], "frechet_distance", 2),
    ("mask kept", ["mask given"], "mask_iou", 3),
    ("label read", ["image given"], "label_accuracy", 3),
    ("mask read", ["image given"], "mask_iou", 3),
]
DETAIL_COLUMNS: list[Column] = [
    ("FD joint, expected", ["joint"], "frechet_distance", 2),
    ("label agrees, expected", ["joint"], "label_agreement", 3),
    ("mask agrees", JOINT, "mask_agreement", 3),
    ("precision", JOINT, "precision", 3),
    ("recall", JOINT, "recall", 3),
    ("precision of labels ×2", ["label given, guidance 2"], "precision", 3),
    ("recall", ["label given, guidance 2"], "recall", 3),
    ("calibration error", ["image given"], "calibration_error", 3),
    ("bits/dim", ["likelihood"], "bits_per_dim", 2),
]
LEAK_COLUMNS: list[Column] = [
    (f"{how}, t = {t}", ["leak"], f"{how}_{t}", 3) for t in (50, 200, 500) for how in ("true", "missing", "wrong")
]
SCALING_COLUMNS = [column for column in MAIN_COLUMNS if column[0] not in ("mask kept", "×2")]
# the arms of the comparison itself, with three seeds; all others are the screening, with one
MAIN_ARMS = (
    "ddpm", "class_conditional", "mask_conditioned", "classifier", "silhouette_unet", "concatenated",
    "concatenated_tuned", "recovery_only", "paper_literal", "heads_only", "heads_mostly_given", "shared_bridge_0.5",
    "own_decay_1", "own_decay_1_best",
)  # fmt: skip


def read_runs(folder: Path = RESULTS) -> Runs:
    """Arm -> its runs, one a seed."""
    runs: Runs = {}
    for path in sorted(folder.glob("*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return runs


def values_of(runs: Iterable[dict], ways: list[str], score: str) -> list[float]:
    """One number for each run that has the score, of the first way that it was sampled."""
    rows = [next((run["scores"][way] for way in ways if way in run["scores"]), {}) for run in runs]
    return [row[score] for row in rows if score in row]


def cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ±{statistics.stdev(values):.{digits}f}"


def noise(columns: list[list[float]], digits: int) -> str:
    """The standard deviation over seeds, pooled over arms."""
    repeated = [values for values in columns if len(values) > 1]
    if not repeated:
        return ""
    freedom = sum(len(values) - 1 for values in repeated)
    return f"{math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in repeated) / freedom):.{digits + 1}f}"


def table(runs: Runs, columns: list[Column], first: str = "arm") -> str:
    lines = [f"| {first} | seeds | {' | '.join(title for title, *_ in columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    scores = {
        arm: [values_of(arm_runs, ways, score) for _, ways, score, _ in columns] for arm, arm_runs in runs.items()
    }
    digits = [column[3] for column in columns]
    for arm, values in scores.items():
        cells = [cell(v, d) for v, d in zip(values, digits, strict=True)]
        if any(cells):
            lines.append(f"| {arm} | {len(runs[arm])} | {' | '.join(cells)} |")
    spread = [noise(list(column), d) for column, d in zip(zip(*scores.values(), strict=True), digits, strict=True)]
    if any(spread):
        lines.append(f"| *noise* | | {' | '.join(spread)} |")
    return "\n".join(lines)


def tuning_table(runs: Runs) -> str:
    """The class-conditional model at every guidance scale."""
    lines = ["| guidance | FD, labels drawn | label agrees | FD, labels given | label kept |", f"|{'---|' * 5}"]
    arm_runs = runs["class_conditional"]
    for scale in ("1", "1.25", "1.5", "2", "3"):
        drawn, given = f"joint, draw first, guidance {scale}", f"label given, guidance {scale}"
        cells = [
            cell(values_of(arm_runs, [drawn], "frechet_distance"), 2),
            cell(values_of(arm_runs, [drawn], "label_agreement"), 3),
            cell(values_of(arm_runs, [given], "frechet_distance"), 2),
            cell(values_of(arm_runs, [given], "label_accuracy"), 3),
        ]
        lines.append(f"| {scale} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling_runs(base: Runs) -> dict[str, Runs]:
    """Setting -> the runs of the arms that the scaling study has, the main setting in its place."""
    settings = {
        folder.name: read_runs(folder) for folder in RESULTS.iterdir() if folder.name[:6] in ("steps_", "width_")
    }
    arms = {arm for runs in settings.values() for arm in runs}
    settings["steps_3000"] = {arm: base[arm] for arm in base if arm in arms}
    return dict(sorted(settings.items(), key=lambda pair: (pair[0][:5], float(pair[0][6:]))))


def inference_table(rows: dict[str, dict[str, float]]) -> str:
    names = [
        "frechet_distance",
        "precision",
        "recall",
        "label_agreement",
        "label_accuracy",
        "mask_agreement",
        "mask_iou",
    ]
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", f"|{'---|' * (len(names) + 1)}"]
    for row, scores in rows.items():
        cells = [
            f"{scores[name]:.{2 if name == 'frechet_distance' else 3}f}" if name in scores else "" for name in names
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(runs: Runs) -> str:
    lines = ["| arm | parameters | images |", "|---|---|---|"]
    for arm, arm_runs in runs.items():
        training = arm_runs[0]["training"]
        lines.append(f"| {arm} | {training['parameters']:,} | {training['images_seen']:,} |")
    return "\n".join(lines)


def plot_frontier(runs: Runs, path: Path) -> None:
    """Image quality against agreement of image and label drawn together, an arm a line from guidance 1 to 1.5."""
    figure, axes = pyplot.subplots(figsize=(9, 7), layout="constrained")
    for arm, arm_runs in runs.items():
        points = []
        for ways in (JOINT, GUIDED):
            x, y = values_of(arm_runs, ways, "frechet_distance"), values_of(arm_runs, ways, "label_agreement")
            if x and y:
                points.append((statistics.mean(x), statistics.mean(y)))
        if not points:
            continue
        strong = {"linewidth": 2.5} if arm in MAIN_ARMS else {"linewidth": 0.8, "alpha": 0.6}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, **strong)
        axes.annotate(arm, points[-1], fontsize=8 if arm in MAIN_ARMS else 6)
    axes.set_xscale("log")
    axes.set_xlabel("Fréchet distance of joint samples (lower is better)")
    axes.set_ylabel("label agreement (higher is better)")
    figure.savefig(path, dpi=120)


def plot_solvers(studies: dict[str, dict], path: Path) -> None:
    """Distance against calls, a solver a line; one row of axes an arm."""
    figure, grid = pyplot.subplots(
        len(studies), 2, figsize=(10, 4 * len(studies)), layout="constrained", squeeze=False
    )
    for line, (arm, rows) in zip(grid, studies.items(), strict=True):
        for axes, discrete in zip(line, ("draw_first", "expected"), strict=True):
            curves: dict[str, list[tuple[int, float]]] = {}
            for row, scores in rows.items():
                parts = row.split(", ")
                if len(parts) == 3 and parts[2] == discrete:
                    curves.setdefault(parts[0], []).append((int(parts[1]), scores["frechet_distance"]))
            for kind, points in curves.items():
                axes.plot(*zip(*sorted(points), strict=True), marker="o", label=kind)
            axes.set(xscale="log", yscale="log", xlabel="calls", ylabel="Fréchet distance", title=f"{arm}, {discrete}")
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, help="also draw frontier.png and solvers.png into this folder")
    args = parser.parse_args()
    runs = read_runs()
    studies = {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / "inference").glob("*.json"))}
    if args.plots is not None:
        plot_frontier(runs, args.plots / "frontier.png")
        if studies:
            plot_solvers(studies, args.plots / "solvers.png")
    main_runs = {arm: runs[arm] for arm in MAIN_ARMS if arm in runs}
    print(f"# The method, arm by arm\n\n## Main table\n\n{table(main_runs, MAIN_COLUMNS)}")
    print(f"\nThe class-conditional model's guidance:\n\n{tuning_table(runs)}")
    print(f"\n## Screening\n\n{table(runs, MAIN_COLUMNS)}")
    print(f"\n## More scores\n\n{table(runs, DETAIL_COLUMNS)}")
    print(f"\n## Leaks: accuracy of the label head\n\n{table(runs, LEAK_COLUMNS)}")
    scaling = scaling_runs(runs)
    if len(scaling) > 1:
        print("\n## Scaling")
        for setting, setting_runs in scaling.items():
            print(f"\n{setting.replace('_', ' ')}:\n\n{table(setting_runs, SCALING_COLUMNS)}")
    for arm, rows in studies.items():
        print(f"\n## Inference: {arm}\n\n{inference_table(rows)}")
    print(f"\n## Cost\n\n{cost_table(runs)}")


if __name__ == "__main__":
    main()
