"""Rebuild the tables and plots of the controlled comparison from the JSONs in `results/`.

    python benchmarks/method/report.py --plots benchmarks/method > benchmarks/method/RESULTS.md

Where an arm has several seeds: the mean, and the standard deviation over seeds behind it; seeds vary the training and the
samples. The last line of a table is the noise of its columns, the standard deviation over seeds pooled over arms, for a
Frechet distance in parts of itself. A difference of two single seeds says something beyond about three times that, of two
means over three seeds beyond about twice.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from arms import BEST_ARM, MAIN_ARMS  # noqa: E402
from matplotlib import pyplot  # noqa: E402


RESULTS = Path(__file__).parent / "results"
SHOWN_DISTANCE = 20
Runs = dict[str, list[dict]]
Column = tuple[str, list[str], str, int]  # title, ways of sampling in order of preference, score, digits

PLAIN, GUIDED, DRAWN, GIVEN = (
    "joint",
    "joint, draw first, guidance 1.5",
    "joint, draw first, guidance {}",
    "label given, guidance {}",
)
SCALES = ("1", "1.25", "1.5", "2")
FIRST = [DRAWN.format(1), PLAIN]
SCREENING_COLUMNS: list[Column] = [
    ("FD joint", FIRST, "frechet_distance", 2),
    ("×1.5", [GUIDED], "frechet_distance", 2),
    ("label agrees", FIRST, "label_agreement", 3),
    ("×1.5", [GUIDED], "label_agreement", 3),
    ("FD of labels", [GIVEN.format(1)], "frechet_distance", 2),
    ("×2", [GIVEN.format(2)], "frechet_distance", 2),
    ("label kept", [GIVEN.format(1)], "label_accuracy", 3),
    ("×2", [GIVEN.format(2)], "label_accuracy", 3),
    ("FD of masks", ["mask given"], "frechet_distance", 2),
    ("mask kept", ["mask given"], "mask_iou", 3),
    ("label read", ["image given"], "label_accuracy", 3),
    ("mask read", ["image given"], "mask_iou", 3),
]
DETAIL_COLUMNS: list[Column] = [
    ("FD joint, plain chain", [PLAIN], "frechet_distance", 2),
    ("label agrees", [PLAIN], "label_agreement", 3),
    ("mask agrees, draw first", FIRST, "mask_agreement", 3),
    ("precision", FIRST, "precision", 3),
    ("recall", FIRST, "recall", 3),
    ("precision of labels ×2", [GIVEN.format(2)], "precision", 3),
    ("recall", [GIVEN.format(2)], "recall", 3),
    ("calibration error", ["image given"], "calibration_error", 3),
    ("bits/dim", ["likelihood"], "bits_per_dim", 2),
]
LEAK_COLUMNS: list[Column] = [
    (f"{how}, t = {t}", ["leak"], f"{how}_{t}", 3) for t in (50, 200, 500) for how in ("true", "missing", "wrong")
]

# what, the score of both, how ours is sampled, the specialist and how it is, by how much ours may be behind
GOALS: list[tuple[str, str, str, str, str, float]] = [
    ("FD of images made with a label", "frechet_distance", DRAWN, "ddpm", PLAIN, 0.0),
    ("the same", "frechet_distance", DRAWN, "class_conditional", DRAWN, 0.0),
    ("their agreement", "label_agreement", DRAWN, "class_conditional", DRAWN, 0.0),
    ("the same", "label_agreement", DRAWN, "real_images", PLAIN, 0.0),
    ("FD of images of a label", "frechet_distance", GIVEN, "class_conditional", GIVEN, 0.0),
    ("label kept", "label_accuracy", GIVEN, "class_conditional", GIVEN, 0.0),
    ("label kept, guidance 2", "label_accuracy", GIVEN.format(2), "class_conditional", GIVEN.format(2), 0.0),
    ("FD of images of a mask", "frechet_distance", "mask given", "mask_conditioned", "mask given", 0.0),
    ("mask kept", "mask_iou", "mask given", "mask_conditioned", "mask given", 0.0),
    ("mask kept, guidance 1.5", "mask_iou", "mask given, guidance 1.5", "mask_conditioned", "mask given", 0.0),
    ("label read, within a point", "label_accuracy", "image given", "classifier", "image given", 0.01),
    ("mask read, within a point", "mask_iou", "image given", "silhouette_unet", "image given", 0.01),
]


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


def noise(columns: list[list[float]], score: str, digits: int) -> str:
    """The standard deviation over seeds, pooled over arms; of a distance relative to it, which spans decades."""
    repeated = [values for values in columns if len(values) > 1]
    if not repeated:
        return ""
    relative = score == "frechet_distance"
    freedom = sum(len(values) - 1 for values in repeated)
    squares = (
        statistics.variance(values) * (len(values) - 1) / (statistics.mean(values) ** 2 if relative else 1)
        for values in repeated
    )
    deviation = math.sqrt(sum(squares) / freedom)
    return f"{deviation:.0%}" if relative else f"{deviation:.{digits + 1}f}"


def best_scale(runs: list[dict], way: str) -> str | None:
    """The guidance scale with the smallest mean distance, of those that all runs have."""
    distances = {scale: values_of(runs, [way.format(scale)], "frechet_distance") for scale in SCALES}
    means = {
        scale: statistics.mean(values) for scale, values in distances.items() if values and len(values) == len(runs)
    }
    return min(means, key=means.get) if means else None


def table(runs: Runs, columns: list[Column]) -> str:
    lines = [f"| arm | seeds | {' | '.join(title for title, *_ in columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    scores = {
        arm: [values_of(arm_runs, ways, score) for _, ways, score, _ in columns] for arm, arm_runs in runs.items()
    }
    for arm, values in scores.items():
        cells = [cell(v, column[3]) for v, column in zip(values, columns, strict=True)]
        if any(cells):
            lines.append(f"| {arm} | {len(runs[arm])} | {' | '.join(cells)} |")
    spread = [
        noise(list(v), *column[2:]) for v, column in zip(zip(*scores.values(), strict=True), columns, strict=True)
    ]
    if any(spread):
        lines.append(f"| *noise* | | {' | '.join(spread)} |")
    return "\n".join(lines)


def main_columns(arm_runs: list[dict]) -> list[Column]:
    """The main table's columns, an arm's guidance at its own best scale."""
    drawn, given = best_scale(arm_runs, DRAWN), best_scale(arm_runs, GIVEN)
    best_drawn, best_given = [DRAWN.format(drawn)], [GIVEN.format(given)]
    return [
        ("FD joint", FIRST, "frechet_distance", 2),
        ("agrees", FIRST, "label_agreement", 3),
        ("guided", best_drawn, "frechet_distance", 2),
        ("agrees", best_drawn, "label_agreement", 3),
        ("FD of labels", [GIVEN.format(1)], "frechet_distance", 2),
        ("kept", [GIVEN.format(1)], "label_accuracy", 3),
        ("guided", best_given, "frechet_distance", 2),
        ("kept", best_given, "label_accuracy", 3),
        ("kept ×2", [GIVEN.format(2)], "label_accuracy", 3),
        ("FD of masks", ["mask given"], "frechet_distance", 2),
        ("kept", ["mask given"], "mask_iou", 3),
        ("×1.5", ["mask given, guidance 1.5"], "frechet_distance", 2),
        ("kept", ["mask given, guidance 1.5"], "mask_iou", 3),
        ("label read", ["image given"], "label_accuracy", 3),
        ("mask read", ["image given"], "mask_iou", 3),
    ]


def main_table(runs: Runs) -> str:
    titles = [title for title, *_ in main_columns([])]
    lines = [f"| arm | seeds | {' | '.join(titles)} |", f"|{'---|' * (len(titles) + 2)}"]
    columns: list[list[list[float]]] = [[] for _ in titles]
    for arm, arm_runs in runs.items():
        chosen = main_columns(arm_runs)
        values = [values_of(arm_runs, ways, score) for _, ways, score, _ in chosen]
        cells = [cell(v, column[3]) for v, column in zip(values, chosen, strict=True)]
        for place, way in ((2, DRAWN), (6, GIVEN)):
            if cells[place]:
                cells[place] += f" (×{best_scale(arm_runs, way)})"
        lines.append(f"| {arm} | {len(arm_runs)} | {' | '.join(cells)} |")
        for column, v in zip(columns, values, strict=True):
            column.append(v)
    spread = [noise(v, *column[2:]) for v, column in zip(columns, main_columns([]), strict=True)]
    return "\n".join([*lines, f"| *noise* | | {' | '.join(spread)} |"] if any(spread) else lines)


def verdict(ours: list[float], theirs: list[float], score: str, slack: float) -> str:
    """Whether our mean is at least as good, but for the slack; else whether two standard errors could be the reason."""
    behind = statistics.mean(ours) - statistics.mean(theirs)
    behind = (behind if score == "frechet_distance" else -behind) - slack
    if behind <= 0:
        return "met"
    if min(len(ours), len(theirs)) < 2:
        return "missed, single seeds"
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (ours, theirs)))
    return "within noise" if behind < 2 * error else "missed"


def goals_table(runs: Runs) -> str:
    """The best arm beside the specialist of each direction; guided, at the scale of either's smallest distance."""
    lines = [f"| | {BEST_ARM} | specialist | | |", "|---|---|---|---|---|"]
    for title, score, way, arm, their_way, slack in GOALS:
        if not {BEST_ARM, arm} <= runs.keys():
            continue
        found = []
        for name, how in ((BEST_ARM, way), (arm, their_way)):
            how = how.format(best_scale(runs[name], how)) if "{}" in how else how
            found.append(values_of(runs[name], [how], score))
        digits = 2 if score == "frechet_distance" else 3
        cells = [cell(values, digits) for values in found]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {arm} | {verdict(*found, score, slack)} |")
    return "\n".join(lines)


def guidance_table(runs: Runs) -> str:
    """Distance and agreement at every scale, drawn and given labels."""
    ways = [(way, scale) for way in (DRAWN, GIVEN) for scale in SCALES]
    titles = [f"{'drawn' if way is DRAWN else 'given'} ×{scale}" for way, scale in ways]
    lines = [f"| arm | {' | '.join(titles)} |", f"|{'---|' * (len(titles) + 1)}"]
    for arm, arm_runs in runs.items():
        cells = []
        for way, scale in ways:
            distance = values_of(arm_runs, [way.format(scale)], "frechet_distance")
            kept = values_of(arm_runs, [way.format(scale)], "label_agreement" if way is DRAWN else "label_accuracy")
            cells.append(f"{statistics.mean(distance):.2f}, {statistics.mean(kept):.3f}" if distance else "")
        if all(cells):
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings(prefix: str) -> dict[str, Runs]:
    """The runs of each folder in `results/` that is called so, such as "steps_12000"; ascending."""
    folders = [folder for folder in RESULTS.iterdir() if folder.name.startswith(prefix)]
    return {
        folder.name: read_runs(folder)
        for folder in sorted(folders, key=lambda folder: int(folder.name[len(prefix) :]))
    }


def scaling_runs(base: Runs) -> dict[str, Runs]:
    """Setting -> the runs of the arms that the scaling study has; first those of the main setting."""
    scaled = settings("steps_") | settings("width_")
    arms = {arm for runs in scaled.values() for arm in runs}
    return {"steps_3000": {arm: base[arm] for arm in base if arm in arms}} | scaled


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
        if (training := arm_runs[0].get("training")) is None:
            continue
        lines.append(f"| {arm} | {training['parameters']:,} | {training['images_seen']:,} |")
    return "\n".join(lines)


def plot_frontier(runs: Runs, path: Path) -> None:
    """Image quality against agreement of image and label drawn together, an arm a line over its guidance scales."""
    figure, axes = pyplot.subplots(figsize=(9, 7), layout="constrained")
    for arm, arm_runs in runs.items():
        points = []
        for scale in SCALES:
            x = values_of(arm_runs, [DRAWN.format(scale)], "frechet_distance")
            y = values_of(arm_runs, [DRAWN.format(scale)], "label_agreement")
            if x and y:
                points.append((statistics.mean(x), statistics.mean(y)))
        if not points or points[0][0] > SHOWN_DISTANCE:
            continue
        if arm in MAIN_ARMS:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=2, label=arm)
        else:  # the screening, in the background
            axes.plot(*zip(*points, strict=True), color="0.8", linewidth=0.6, zorder=0)
    axes.legend()
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
    main_runs = {arm: runs[arm] for arm in ("real_images", *MAIN_ARMS) if arm in runs}
    print(f"# The method, arm by arm\n\n## Main table\n\n{main_table(main_runs)}")
    print(f"\n## The best arm and the specialists\n\n{goals_table(main_runs)}")
    for setting, setting_runs in settings("samples_").items():
        number = f"{int(setting.partition('_')[2]):,} samples"
        print(f"\n## {number}\n\n{main_table(setting_runs)}\n\n{goals_table(setting_runs)}")
    print(f"\n## Guidance: distance, agreement\n\n{guidance_table(main_runs)}")
    print(f"\n## Screening\n\n{table(runs, SCREENING_COLUMNS)}")
    print(f"\n## More scores\n\n{table(runs, DETAIL_COLUMNS)}")
    print(f"\n## What the label head reads: a true code, none, a wrong one\n\n{table(runs, LEAK_COLUMNS)}")
    scaling = scaling_runs(runs)
    if len(scaling) > 1:
        print("\n## Scaling")
        for setting, setting_runs in scaling.items():
            print(f"\n{setting.replace('_', ' ')}:\n\n{main_table(setting_runs)}")
    for arm, rows in studies.items():
        print(f"\n## Inference: {arm}\n\n{inference_table(rows)}")
    print(f"\n## Cost\n\n{cost_table(runs)}")


if __name__ == "__main__":
    main()
