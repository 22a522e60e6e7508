"""What three modalities cost, against diffusers' own classes with the same trunk: training steps, memory, sampling.

    python benchmarks/overhead.py --output benchmarks/overhead.json

Image + label + mask against image alone, at 32x32, batch 64, float32, two threads. Both sides run in turns in one
process, so that whatever else the machine does hits both; the ratio is that of the medians. Memory is the growth of the
resident set over a few training steps, each side in a process of its own. Trunks: that of the Fashion-MNIST checkpoint,
and one twice as wide, where the heads weigh less.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDDPMScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
    multitask_loss,
)


TRUNK = {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
MODALITIES = {
    "label": {"type": "categorical", "num_classes": 10},
    "mask": {"type": "segmentation", "num_classes": 2},
}
WIDTHS = {"the checkpoint's trunk": (16, 32, 64, 64), "twice as wide": (32, 64, 128, 128)}
BATCH_SIZE = 64
SAMPLING_STEPS = 10


def plain_step() -> Callable[[], None]:
    """One training step of DDPM, as in diffusers' example."""
    unet, scheduler = UNet2DModel(**TRUNK), DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    images = torch.rand(BATCH_SIZE, 1, 32, 32) * 2 - 1

    def step() -> None:
        noise, timesteps = torch.randn_like(images), torch.randint(0, 1000, (BATCH_SIZE,))
        loss = F.mse_loss(unet(scheduler.add_noise(images, noise, timesteps), timesteps).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def multimodal_step() -> Callable[[], None]:
    """One training step with label and mask, their states drawn anew."""
    unet = MultimodalUNet2DModel(**TRUNK, modalities=MODALITIES)
    scheduler = MultimodalDDPMScheduler(aggregation="decay", modality_weights=1.0)
    optimizer = torch.optim.AdamW((p for p in unet.parameters() if p.requires_grad), lr=1e-4)
    inputs = {
        "image": torch.rand(BATCH_SIZE, 1, 32, 32) * 2 - 1,
        "label": torch.randint(0, 10, (BATCH_SIZE,)),
        "mask": torch.randint(0, 2, (BATCH_SIZE, 32, 32)),
    }

    def step() -> None:
        noise, timesteps = torch.randn(BATCH_SIZE, unet.total_channels, 32, 32), torch.randint(0, 1000, (BATCH_SIZE,))
        states = {name: torch.randint(0, 4, (BATCH_SIZE,)) for name in MODALITIES}
        states["image"] = torch.randint(0, 2, (BATCH_SIZE,))
        multitask_loss(unet, scheduler, inputs, timesteps, noise, states).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def samplers(ancestral: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """diffusers' pipeline and ours, everything joint."""
    plain_cls, plain_scheduler = (DDPMPipeline, DDPMScheduler()) if ancestral else (DDIMPipeline, DDIMScheduler())
    plain = plain_cls(unet=UNet2DModel(**TRUNK), scheduler=plain_scheduler)
    scheduler_cls = MultimodalDDPMScheduler if ancestral else MultimodalDDIMScheduler
    unet = MultimodalUNet2DModel(**TRUNK, modalities=MODALITIES)
    ours = MultimodalMultitaskPipeline(unet.eval(), scheduler_cls(aggregation="decay", modality_weights=1.0))
    for pipeline in (plain, ours):
        pipeline.set_progress_bar_config(disable=True)
    arguments = {"batch_size": BATCH_SIZE, "num_inference_steps": SAMPLING_STEPS, "output_type": "np"}
    return lambda: plain(**arguments), lambda: ours(**arguments)


def compare(plain: Callable[[], None], ours: Callable[[], None], repeats: int) -> dict[str, float]:
    """Medians of `repeats` turns, and their ratio; a turn of each is thrown away first."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for turn in range(repeats + 1):
        for name, run in (("plain", plain), ("ours", ours)):
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["ours_seconds"] / medians["plain_seconds"]}


def resident_growth(side: str) -> float:
    """MiB by which the resident set grew at its peak over a few training steps; run in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = {"plain": plain_step, "ours": multimodal_step}[side]()
    for _ in range(4):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare_memory(trunk: str, repeats: int) -> dict[str, float]:
    def measure(side: str) -> float:
        command = [sys.executable, __file__, "--memory_of", side, "--trunk", trunk]
        return statistics.median(float(subprocess.check_output(command, text=True)) for _ in range(repeats))

    plain, ours = measure("plain"), measure("ours")
    return {"plain_mib": plain, "ours_mib": ours, "ratio": ours / plain}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a JSON to write")
    parser.add_argument("--repeats", type=int, default=15, help="training steps of each side; samplings are a third")
    parser.add_argument("--memory_of", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--trunk", choices=WIDTHS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(2)
    if args.memory_of:
        TRUNK["block_out_channels"] = WIDTHS[args.trunk]
        print(resident_growth(args.memory_of))
        return
    results = {}
    for trunk, channels in WIDTHS.items():
        TRUNK["block_out_channels"] = channels
        results |= {
            f"{trunk}: training memory": compare_memory(trunk, 3),  # first: it counts from the peak so far
            f"{trunk}: training step": compare(plain_step(), multimodal_step(), args.repeats),
            f"{trunk}: sampling, ancestral": compare(*samplers(ancestral=True), max(args.repeats // 3, 2)),
            f"{trunk}: sampling, DDIM": compare(*samplers(ancestral=False), max(args.repeats // 3, 2)),
        }
    for name, row in results.items():
        print(name, {key: round(value, 4) for key, value in row.items()})
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
