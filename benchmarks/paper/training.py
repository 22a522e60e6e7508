"""Train what is missing, arm by arm; everything goes on from where it was stopped."""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from baselines import Run
from evaluate import SOLVER
from safetensors.torch import load_file
from torch import nn

from mmdiff_pipelines import MultimodalDPMSolverMultistepScheduler, MultimodalMultitaskPipeline

from .arms import Baseline, Joint
from .data import load_training_arrays


ROOT = Path(__file__).parents[2]
TEXT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SCENE_JUDGE = "segmenter_judge"
SHIPPED_JUDGE = Path(__file__).parent / SCENE_JUDGE  # reads everybody's scenes, so that scores compare
QUICK_STEPS, QUICK_BATCH, QUICK_ROWS = 2, 8, 200


def folder_of(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Where an arm's weights are: a run, or for seed 0 a checkpoint of ours."""
    if name == SCENE_JUDGE and seed == 0 and SHIPPED_JUDGE.is_dir():
        return SHIPPED_JUDGE
    card = card_of(name)
    return card if seed == 0 and args.cards and card.is_dir() else args.runs / f"{name}-{seed}"


def card_of(name: str) -> Path:
    """The folder of the checkpoint of an arm, if it has one."""
    return ROOT / "model_cards" / name


def is_trained(arm: Joint | Baseline, folder: Path) -> bool:
    return (folder / ("model_index.json" if isinstance(arm, Joint) else "model.safetensors")).is_file()


def launch_line(arm: Joint, name: str) -> list[str]:
    """The words of the line in the README of the example that trains this arm.

    Raises:
        ValueError: if there is none.
    """
    text = (ROOT / "examples" / arm.example / "README.md").read_text(encoding="utf-8")
    for line in re.findall(r"^accelerate launch .*?(?<!\\)\n", text, re.M | re.S):
        words = shlex.split(line.replace("\\\n", " "))
        if f"runs/paper/{arm.variant_of or name}-0" in words:
            return words
    raise ValueError(f"examples/{arm.example}/README.md has no line that writes runs/paper/{name}-0.")


def with_option(words: list[str], option: str, value: str | int | Path) -> list[str]:
    """Set an option, which may be there already."""
    if option in words:
        place = words.index(option) + 1
        return [*words[:place], str(value), *words[place + 1 :]]
    return [*words, option, str(value)]


def joint_command(arm: Joint, name: str, seed: int, args: argparse.Namespace) -> list[str]:
    """The launch line, for this seed and these folders."""
    words = [word.replace(TEXT_ENCODER, args.text_encoder) for word in launch_line(arm, name)]
    words[words.index("examples/train_multimodal.py")] = os.path.relpath(ROOT / "examples/train_multimodal.py")
    options = {
        **arm.options,
        "--seed": seed,
        "--output_dir": args.runs / f"{name}-{seed}",
        "--train_data_dir": args.data_dir / arm.data,
        "--mixed_precision": args.mixed_precision,
    }
    if args.quick:
        options |= {"--max_train_steps": QUICK_STEPS, "--train_batch_size": QUICK_BATCH, "--num_inference_steps": 2}
    for option, value in options.items():
        words = with_option(words, option, value)
    return [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]


def train_baseline(arm: Baseline, name: str, seed: int, args: argparse.Namespace) -> None:
    folder = args.runs / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = argparse.Namespace(
        arm=name, seed=seed, output_dir=folder, learning_rate=arm.learning_rate, adam_beta2=arm.adam_beta2,
        warmup_steps=250, checkpointing_steps=500,
        steps=QUICK_STEPS if args.quick else arm.steps, batch_size=QUICK_BATCH if args.quick else arm.batch_size,
        mixed_precision=args.mixed_precision,
    )  # fmt: skip
    run = Run(settings, arm.build, arm.loss)
    if run.checkpoint.exists():
        run.resume()
    run.train(load_training_arrays(args.data_dir, arm.data, QUICK_ROWS if args.quick else None))
    run.finish()


def train_arm(arm: Joint | Baseline, name: str, seed: int, args: argparse.Namespace) -> None:
    """Train an arm unless that is done."""
    if is_trained(arm, folder_of(name, seed, args)):
        return
    print(f"training {name}, seed {seed}", flush=True)
    if isinstance(arm, Joint):
        subprocess.run(joint_command(arm, name, seed, args), check=True)
    else:
        train_baseline(arm, name, seed, args)


def load_arm(arm: Joint | Baseline, folder: Path) -> MultimodalMultitaskPipeline | nn.Module:
    """The pipeline, with the solver of all tables, or the averaged model, in evaluation mode."""
    if isinstance(arm, Joint):
        pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
        pipeline.scheduler = MultimodalDPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **SOLVER)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    model = arm.build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.prediction_type = arm.prediction_type
    return model.eval().requires_grad_(False)


def weights_digest(arm: Joint | Baseline, folder: Path) -> str:
    """Of the file of weights."""
    name = "unet/diffusion_pytorch_model.safetensors" if isinstance(arm, Joint) else "model.safetensors"
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]


def training_record(folder: Path) -> dict[str, float]:
    """Images seen, minutes and parameters of a run."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    minutes = record["minutes"] if "minutes" in record else record["training_seconds"] / 60
    return {"images_seen": record["images_seen"], "minutes": round(minutes, 1), "parameters": record["parameters"]}
