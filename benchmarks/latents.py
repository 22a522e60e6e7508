"""What a training step on cached latents costs, against one on pixels with the same UNet at the same size.

    python benchmarks/latents.py --output benchmarks/latents.json

The one reads 32x32 latents of 4 channels, computed once from 256x256 images by an AutoencoderKL with random weights;
the other images of 32x32 with 4 channels. Both read a label and a 32x32 mask beside, and go through the whole step of
the trainer: reading, drawing states, the loss, the optimizer. They run in turns in one process, so that whatever else
the machine does hits both; on a busy one the ratio of CPU times is the steadier figure.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL

from mmdiff_pipelines.training import Trainer, parse_args
from mmdiff_pipelines.training.components import build_components
from mmdiff_pipelines.training.loop import build_accelerator


ROWS, BATCH_SIZE, SIZE, FACTOR = 64, 32, 32, 8
OPTIONS = (
    "--block_out_channels 16 32 64 64 --layers_per_block 1 --norm_num_groups 8 --down_block_types DownBlock2D "
    f"DownBlock2D DownBlock2D DownBlock2D --train_batch_size {BATCH_SIZE} --max_train_steps 1000 --report_to none "
    "--modality label:categorical:num_classes=10 --modality mask:segmentation:num_classes=2"
).split()


def save_rows(folder: Path, size: int, channels: int) -> str:
    """Random images of `size` with label and mask."""
    random = np.random.default_rng(0)
    rows = [
        {
            "image": PIL.Image.fromarray(random.integers(0, 256, (size, size, channels), dtype=np.uint8)),
            "label": i % 10,
            "mask": PIL.Image.fromarray(random.integers(0, 2, (SIZE, SIZE), dtype=np.uint8)),
        }
        for i in range(ROWS)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return str(folder)


def save_vae(folder: Path) -> str:
    AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return str(folder)


def training_steps(folder: Path) -> dict[str, tuple]:
    """Name -> a trainer and its batches, on pixels and on latents."""
    pixels = ["--train_data_dir", save_rows(folder / "pixels", SIZE, 4), "--resolution", str(SIZE)]
    images = ["--train_data_dir", save_rows(folder / "images", SIZE * FACTOR, 3), "--resolution", str(SIZE * FACTOR)]
    images += ["--vae", save_vae(folder / "vae"), "--cache_dir", str(folder / "cache")]
    steps = {}
    for name, options in {"pixels": pixels, "latents": images}.items():
        args = parse_args([*OPTIONS, *options, "--output_dir", str(folder / "run")])
        accelerator = build_accelerator(args)
        components = build_components(args, accelerator.device)
        assert components.latent_shape == (6, SIZE, SIZE)
        trainer = Trainer(args, accelerator, components)
        steps[name] = trainer, trainer.batches()
    return steps


def compare(steps: dict[str, tuple], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of `repeats` turns and their ratio, by the clock and in CPU time; a turn of each is thrown away first."""
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in steps} for clock in clocks}
    for turn in range(repeats + 1):
        for name, (trainer, batches) in steps.items():
            started = {clock: read() for clock, read in clocks.items()}
            trainer.optimization_step(batches)
            for clock, read in clocks.items() if turn else ():
                seconds[clock][name].append(read() - started[clock])
    return {clock: _summary(by_name) for clock, by_name in seconds.items()}


def _summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["latents_seconds"] / medians["pixels_seconds"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a JSON to write")
    parser.add_argument("--repeats", type=int, default=30, help="training steps of each side")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # of more, those that wait would count as CPU time
    with tempfile.TemporaryDirectory() as folder:
        results = compare(training_steps(Path(folder)), args.repeats)
    print(results)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
