"""Rebuild the tables and plots of the controlled comparison from the JSONs in `results/`.

    python benchmarks/method/report.py --plots benchmarks/method > benchmarks/method/RESULTS.md

Where an arm has several seeds: the mean, and the standard deviation over seeds behind it; seeds vary the training and the
samples. The last line of a table is the noise of its columns, the standard deviation over seeds pooled over arms, for a
Frechet distance in parts of itself. A difference of two single seeds says something beyond about three times that.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy import stats


matplotlib.use("Agg")
from arms import BEST_ARM, MAIN_ARMS  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from tables import Runs, cell, markdown, read_runs  # noqa: E402


RESULTS = Path(__file__).parent / "results"
SHOWN_DISTANCE = 20
FRECHET = "frechet_distance"
Column = tuple[str, list[str], str, int]  # title, ways of sampling in order of preference, score, digits

PLAIN, GUIDED, DRAWN, GIVEN = (
    "joint",
    "joint, draw first, guidance 1.5",
    "joint, draw first, guidance {}",
    "label given, guidance {}",
)
GUIDED_MASK = "mask given, guidance 1.5"
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


def values_of(runs: Iterable[dict], ways: list[str], score: str) -> list[float]:
    """One number for each run that has the score, of the first way that it was sampled."""
    rows = [next((run["scores"][way] for way in ways if way in run["scores"]), {}) for run in runs]
    return [row[score] for row in rows if score in row]


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
        ("×1.5", [GUIDED_MASK], "frechet_distance", 2),
        ("kept", [GUIDED_MASK], "mask_iou", 3),
        ("label read", ["image given"], "label_accuracy", 3),
        ("mask read", ["image given"], "mask_iou", 3),
    ]


def table(runs: Runs, columns: Callable[[list[dict]], list[Column]]) -> str:
    """A line for each arm that has any of its columns, and one of noise.

    Args:
        columns: (the runs of an arm) -> its columns, which have the same titles for all arms.
    """
    shape = columns([])
    lines, header = [], ["arm", "seeds", *(title for title, *_ in shape)]
    trained: list[list[list[float]]] = []
    for arm, arm_runs in runs.items():
        chosen = columns(arm_runs)
        values = [values_of(arm_runs, ways, score) for _, ways, score, _ in chosen]
        cells = [cell(v, digits) for v, (*_, digits) in zip(values, chosen, strict=True)]
        for place, (title, (way, *_), *_) in enumerate(chosen):
            if title == "guided" and cells[place]:
                cells[place] += f" (×{way.rpartition(' ')[2]})"
        if any(cells):
            lines.append([arm, str(len(arm_runs)), *cells])
        if arm != "real_images":  # no seed of a training
            trained.append(values)
    spread = [noise([values[i] for values in trained], *column[2:]) for i, column in enumerate(shape)]
    return markdown(header, [*lines, ["*noise*", "", *spread]] if any(spread) else lines)


Value = Callable[[dict], float | None]  # one number of a run


def value(run: dict, way: str, score: str) -> float | None:
    return run["scores"].get(way, {}).get(score)


def distance_at(run: dict, way: str, agreement: float) -> float | None:
    """The distance where image and label agree so well, between two guidance scales; None beyond them."""
    score = "label_agreement" if way is DRAWN else "label_accuracy"
    points = [(value(run, way.format(scale), score), value(run, way.format(scale), FRECHET)) for scale in SCALES]
    points = sorted(point for point in points if None not in point)
    if not points or not points[0][0] <= agreement <= points[-1][0]:
        return None
    return float(np.interp(agreement, *zip(*points, strict=True)))


class Goal(NamedTuple):
    """What the best arm is held to: at least as good as a specialist, but for the margin."""

    title: str
    ours: Value
    specialist: str
    theirs: Value
    higher_is_better: bool
    margin: float = 0.0


def goal(title: str, way: str, score: str, specialist: str, their_way: str | None = None, margin: float = 0.0) -> Goal:
    """One score of both, as a rule of the same way of sampling."""
    ours, theirs = (partial(value, way=w, score=score) for w in (way, their_way or way))
    return Goal(title, ours, specialist, theirs, score != FRECHET, margin)


def goal_at_agreement(title: str, way: str) -> Goal:
    """The distance where labels of both agree equally often."""
    of_both = partial(distance_at, way=way, agreement=AGREEMENT)
    return Goal(title, of_both, "class_conditional", of_both, False)


AGREEMENT = 0.93  # within the scales of all arms that are compared
GOALS = [
    goal("FD of images made with a label, unguided", DRAWN.format(1), FRECHET, "ddpm", PLAIN),
    goal_at_agreement(f"FD of pairs, {AGREEMENT:g} of which agree", DRAWN),
    goal_at_agreement(f"FD of images of a label, kept in {AGREEMENT:g}", GIVEN),
    goal("FD of images of a label", GIVEN.format(1), FRECHET, "class_conditional"),
    goal("label kept", GIVEN.format(1), "label_accuracy", "class_conditional"),
    goal("FD of images of a label, guidance 2", GIVEN.format(2), FRECHET, "class_conditional"),
    goal("label kept, guidance 2", GIVEN.format(2), "label_accuracy", "class_conditional"),
    goal("FD of images of a mask", "mask given", FRECHET, "mask_conditioned"),
    goal("mask kept", "mask given", "mask_iou", "mask_conditioned"),
    goal("FD of images of a mask, guidance 1.5", GUIDED_MASK, FRECHET, "mask_conditioned_dropout"),
    goal("mask kept, guidance 1.5", GUIDED_MASK, "mask_iou", "mask_conditioned_dropout"),
    goal("label read, within a point", "image given", "label_accuracy", "classifier", margin=0.01),
    goal("mask read, within a point", "image given", "mask_iou", "silhouette_unet", margin=0.01),
]


def verdict(ours: list[float], theirs: list[float], higher_is_better: bool, margin: float) -> tuple[str, str]:
    """The difference of the means with its 95 % interval (Welch), and what it says.

    Returns:
        the interval, and "better", "met" (no worse than the margin allows), "worse" or "undecided".
    """
    sign = 1 if higher_is_better else -1
    difference = statistics.mean(ours) - statistics.mean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return f"{difference:+.3f}", "undecided, one seed"
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    low, high = sorted((sign * interval.low, sign * interval.high))
    outcome = "better" if low > 0 else "met" if low >= -margin else "worse" if high < -margin else "undecided"
    return f"{difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})", outcome


def goals_table(runs: Runs, arm: str) -> str:
    """An arm beside the specialist of each direction."""
    lines = []
    for held_to in GOALS:
        ours = [v for run in runs.get(arm, []) if (v := held_to.ours(run)) is not None]
        theirs = [v for run in runs.get(held_to.specialist, []) if (v := held_to.theirs(run)) is not None]
        if ours and theirs:
            digits = 3 if held_to.higher_is_better else 2
            cells = [held_to.title, cell(ours, digits), cell(theirs, digits), held_to.specialist]
            lines.append([*cells, *verdict(ours, theirs, held_to.higher_is_better, held_to.margin)])
    return markdown(["", arm, "specialist", "", "difference, 95 %", ""], lines)


def guidance_table(runs: Runs) -> str:
    """Distance and agreement at every scale, drawn and given labels."""
    ways = [(way, scale) for way in (DRAWN, GIVEN) for scale in SCALES]
    titles = [f"{'drawn' if way is DRAWN else 'given'} ×{scale}" for way, scale in ways]
    lines = []
    for arm, arm_runs in runs.items():
        cells = []
        for way, scale in ways:
            distance = values_of(arm_runs, [way.format(scale)], "frechet_distance")
            kept = values_of(arm_runs, [way.format(scale)], "label_agreement" if way is DRAWN else "label_accuracy")
            cells.append(f"{statistics.mean(distance):.2f}, {statistics.mean(kept):.3f}" if distance else "")
        if all(cells):
            lines.append([arm, *cells])
    return markdown(["arm", *titles], lines)


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
    lines = []
    for row, scores in rows.items():
        cells = [
            f"{scores[name]:.{2 if name == 'frechet_distance' else 3}f}" if name in scores else "" for name in names
        ]
        lines.append([row, *cells])
    return markdown(["", *(name.replace("_", " ") for name in names)], lines)


def cost_table(runs: Runs) -> str:
    lines = []
    for arm, arm_runs in runs.items():
        if (training := arm_runs[0].get("training")) is None:
            continue
        lines.append([arm, f"{training['parameters']:,}", f"{training['images_seen']:,}"])
    return markdown(["arm", "parameters", "images"], lines)


def plot_frontier(runs: Runs, path: Path) -> None:
    """Image quality against agreement of image and label drawn together, an arm a line over its guidance scales."""
    figure, axes = pyplot.subplots(figsize=(9, 7), layout="constrained")
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
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
            style, label = ("-", arm) if len(arm_runs) > 1 else (":", f"{arm} (one seed)")
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, linewidth=2, label=label)
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
            if curves:
                axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, help="also draw frontier.png and solvers.png into this folder")
    args = parser.parse_args()
    runs = read_runs(RESULTS)
    studies = {}
    for path in sorted(RESULTS.glob("inference*/*.json")):
        steps = int(path.parent.name.partition("_")[2] or 3000)
        studies[f"{path.stem}, {steps:,} steps"] = json.loads(path.read_text())["scores"]
    if args.plots is not None:
        plot_frontier(runs, args.plots / "frontier.png")
        if studies:
            plot_solvers(studies, args.plots / "solvers.png")
    main_runs = {arm: runs[arm] for arm in ("real_images", *MAIN_ARMS) if arm in runs}
    print(f"# The method, arm by arm\n\n## Main table\n\n{table(main_runs, main_columns)}")
    print(f"\n## The best arm and the specialists\n\n{goals_table(main_runs, BEST_ARM)}")
    for setting, setting_runs in settings("samples_").items():
        number = f"{int(setting.partition('_')[2]):,} samples"
        print(f"\n## {number}\n\n{table(setting_runs, main_columns)}\n\n{goals_table(setting_runs, BEST_ARM)}")
    print(f"\n## Guidance: distance, agreement\n\n{guidance_table(main_runs)}")
    print(f"\n## Screening\n\n{table(runs, lambda _: SCREENING_COLUMNS)}")
    print(f"\n## More scores\n\n{table(runs, lambda _: DETAIL_COLUMNS)}")
    print(f"\n## What the label head reads: a true code, none, a wrong one\n\n{table(runs, lambda _: LEAK_COLUMNS)}")
    scaling = scaling_runs(runs)
    if len(scaling) > 1:
        print("\n## Scaling")
        for setting, setting_runs in scaling.items():
            print(f"\n{setting.replace('_', ' ')}:\n\n{table(setting_runs, main_columns)}")
    for arm, rows in studies.items():
        print(f"\n## Inference: {arm}\n\n{inference_table(rows)}")
    print(f"\n## Cost\n\n{cost_table(runs)}")


if __name__ == "__main__":
    main()
