"""What it costs to load a checkpoint and to import the package, against diffusers' own classes.

    python benchmarks/loading.py --output benchmarks/loading.json

Loading: the committed checkpoint by `MultimodalMultitaskPipeline.from_pretrained`, against a `DDPMPipeline` whose UNet
has the same trunk, in turns in one process. The trunk is almost all of the weights; its other layers are the modalities.

Import: after `import torch, diffusers`, the time that `import mmdiff_pipelines` takes, in fresh processes; then that of the
first use of its classes, beside the classes of diffusers that they are built on. Both packages import a class when it is
first touched, so whoever loads any pipeline pays for the latter.

Seconds are of wall clock and of CPU, the latter for a machine that does something else besides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging

from mmdiff_pipelines import MultimodalMultitaskPipeline


CHECKPOINT = Path(__file__).parents[1] / "model_cards" / "fashion-mnist-joint"
IMPORT = """
import json, time, torch, diffusers
clocks = lambda: {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
times = [clocks()]
import mmdiff_pipelines
times.append(clocks())
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers import DPMSolverMultistepScheduler, ModelMixin, SchedulerMixin, UNet2DModel
times.append(clocks())
from mmdiff_pipelines import *
times.append(clocks())
parts = "import mmdiff_pipelines", "first use: the classes of diffusers", "first use: those of mmdiff_pipelines"
print(json.dumps({
    part: {clock: after[clock] - before[clock] for clock in before}
    for part, before, after in zip(parts, times[:-1], times[1:])
}))
"""


def save_plain(folder: str) -> None:
    """A DDPM pipeline with the trunk of the checkpoint."""
    config = dict(MultimodalMultitaskPipeline.from_pretrained(CHECKPOINT).unet.config)
    trunk = {name: value for name, value in config.items() if name != "modalities" and not name.startswith("_")}
    DDPMPipeline(UNet2DModel(**trunk), DDPMScheduler()).save_pretrained(folder)


def clock(run: Callable[[], object]) -> dict[str, float]:
    started, cpu_started = time.perf_counter(), time.process_time()
    run()
    return {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {clock: statistics.median(row[clock] for row in rows) for clock in rows[0]}


def compare_loading(repeats: int) -> dict[str, dict[str, float]]:
    """Medians of both, and their ratio; one turn of each is thrown away first."""
    with tempfile.TemporaryDirectory() as folder:
        save_plain(folder)
        runs = {
            "DDPMPipeline": lambda: DDPMPipeline.from_pretrained(folder),
            "MultimodalMultitaskPipeline": lambda: MultimodalMultitaskPipeline.from_pretrained(CHECKPOINT),
        }
        turns = [{name: clock(run) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    theirs, ours = (medians([turn[name] for turn in turns]) for name in runs)
    return dict(zip(runs, (theirs, ours), strict=True)) | {"ratio": {name: ours[name] / theirs[name] for name in ours}}


def measure_import(repeats: int) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-c", IMPORT]
    processes = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
    return {part: medians([process[part] for process in processes]) for part in processes[0]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a JSON to write")
    parser.add_argument("--loads", type=int, default=30, help="turns of loading")
    parser.add_argument("--imports", type=int, default=5, help="processes that import")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    results = {}
    for part, measure, repeats in (
        ("loading", compare_loading, args.loads),
        ("import", measure_import, args.imports),
    ):
        results[part] = measure(repeats)
        for name, row in results[part].items():
            print(f"{part}: {name}", {clock: round(value, 4) for clock, value in row.items()}, flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
