"""Markdown tables of runs that have a JSON for each arm and seed."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path


Runs = dict[str, list[dict]]


def read_runs(folder: Path) -> Runs:
    """Arm -> its records, one a seed, of the files `<arm>-<seed>.json`."""
    runs: Runs = {}
    for path in sorted(folder.glob("*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return runs


def cell(values: list[float], digits: int) -> str:
    """The mean, and the standard deviation where there are several."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ±{statistics.stdev(values):,.{digits}f}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
