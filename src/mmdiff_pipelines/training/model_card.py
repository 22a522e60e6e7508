"""The record of a run, of which its model card is made, and the upload."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator, DistributedType

from .. import __version__
from ..modalities import ANCHOR
from ..pipelines.model_card import write_card
from ..pipelines.records import EVALUATION, TRAINING
from ..pipelines.sharing import upload_pipeline
from .arguments import default_model_id
from .checkpoints import Progress
from .components import Components
from .lora import adapter_record


def write_model_card(
    args: argparse.Namespace, components: Components, progress: Progress, accelerator: Accelerator
) -> None:
    """Write training.json and, made of it, README.md into --output_dir."""
    record = training_record(args, components, progress, accelerator)
    text = json.dumps({key: value for key, value in record.items() if value is not None}, indent=2, ensure_ascii=False)
    Path(args.output_dir, TRAINING).write_text(text + "\n", encoding="utf-8")
    write_card(args.output_dir)


def training_record(
    args: argparse.Namespace, components: Components, progress: Progress, accelerator: Accelerator
) -> dict[str, Any]:
    """What training.json holds; None where there is nothing to say. See `pipelines/records.py`."""
    batch = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    start = args.pretrained_model_name_or_path or args.pretrained_unet
    return {
        "repo_id": args.hub_model_id,
        "license": args.license,
        "data": _data_source(args),
        "dataset": _unless_local(args.dataset_name),
        "data_license": args.data_license or components.dataset.info.license or None,
        "initial_weights": start,
        "base_model": _unless_local(start),
        "adapter": adapter_record(args, components.unet),
        "rows": len(components.dataset) if hasattr(components.dataset, "__len__") else None,
        "parameters": sum(parameter.numel() for parameter in components.unet.parameters()),
        "steps": progress.step,
        "batch_size": batch,
        "images_seen": progress.step * batch,
        "minutes": round(progress.seconds / 60, 1),
        "device": f"{accelerator.num_processes} x {accelerator.device.type}",
        "precision": accelerator.mixed_precision,
        "ema_decay": args.ema_max_decay if args.use_ema else None,
        "versions": f"mmdiff_pipelines {__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}",
        "command": launch_command(accelerator),
        "losses": _losses(progress, [ANCHOR, *(option.name for option in components.options)]),
        "losses_over": len(progress.recent),
    }


def refuse_old_scores(output_dir: Path) -> None:
    """Raises ValueError if the scores of other weights lie where new ones will."""
    if (output_dir / EVALUATION).exists():
        raise ValueError(
            f"--output_dir {output_dir} has an {EVALUATION} of earlier weights, which the card of the new ones would "
            "show; move it away, or give another folder."
        )


def _data_source(args: argparse.Namespace) -> str:
    source = args.dataset_name or args.train_data_dir or ", ".join(args.data_files)
    return f"{source}, split {args.split!r}"


def _unless_local(name: str | None) -> str | None:
    """The id on the Hub, or None for a folder."""
    return None if name is None or Path(name).exists() else name


def _losses(progress: Progress, names: list[str]) -> dict[str, float]:
    means = progress.recent_means()
    return {name: round(means[f"{name}_loss"], 6) for name in names if f"{name}_loss" in means}


def launch_command(accelerator: Accelerator) -> str:
    """The command of this run, without the token."""
    processes, arguments = str(accelerator.num_processes), list(sys.argv)
    for i, argument in enumerate(arguments):
        if argument.startswith("--hub_token"):
            del arguments[i : i + (1 if "=" in argument else 2)]
            break
    if accelerator.distributed_type == DistributedType.MULTI_CPU:  # `accelerate launch` would need MPI
        return f"ACCELERATE_USE_CPU=true {shlex.join(['torchrun', '--nproc_per_node', processes, *arguments])}"
    launch = ["accelerate", "launch", "--num_processes", processes, "--mixed_precision", accelerator.mixed_precision]
    return shlex.join([*launch, *(["--cpu"] if accelerator.device.type == "cpu" else []), *arguments])


def push_to_hub(args: argparse.Namespace) -> str:
    """Upload the pipeline, its card, its records and its samples; returns the address."""
    private = args.hub_private_repo or None
    return upload_pipeline(args.output_dir, default_model_id(args), private=private, token=args.hub_token).commit_url
