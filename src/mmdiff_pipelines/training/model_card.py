"""The model card of a run, and its upload."""

import argparse
import shlex
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedType
from huggingface_hub import HfApi, ModelCard, ModelCardData

from .arguments import default_model_id
from .checkpoints import Progress
from .components import Components


CARD_NAME = "README.md"
# An allow-list: checkpoints, logs and whatever else lies in the folder stay there.
UPLOADED = [CARD_NAME, "model_index.json", "unet/*", "scheduler/*", "vae/*", "samples/*"]

BODY = """
# {model_id}

A `MultimodalMultitaskPipeline` of `mmdiff_pipelines`: {what}.
{picture}
## Use

```python
from mmdiff_pipelines import MultimodalMultitaskPipeline

pipe = MultimodalMultitaskPipeline.from_pretrained("{model_id}")
output = pipe(batch_size=4)  # .images, and .modalities by name
```

## Training

| | |
|---|---|
| Data | {data} |
| Rows | {rows} |
| Image | {channels} channels, {height}x{width} |
| Modalities | {modalities} |
| Parameters | {parameters:,} |
| Steps | {steps:,}, of {batch} images each |
| Images seen | {seen:,} |
| Time | {time}, on {devices} |
| Mixed precision | {precision} |
| Weights | {weights} |

```bash
{command}
```

Losses, the mean of the last {recent} steps over the rows that carry the term:

| Term | Loss |
|---|---|
{losses}

Not measured: image quality, or the accuracy of the modalities.
"""


def write_model_card(
    args: argparse.Namespace, components: Components, progress: Progress, accelerator: Accelerator
) -> Path:
    """Write README.md into --output_dir."""
    names = [option.name for option in components.options]
    height, width = components.size
    batch = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    samples = sorted(Path(args.output_dir, "samples").glob("*.png"))
    body = BODY.format(
        model_id=default_model_id(args),
        what="images" + (f" generated together with, or given, any of: {', '.join(names)}" if names else ""),
        picture=f"\n![samples](samples/{samples[-1].name})\n" if samples else "",
        data=_data_source(args),
        rows=len(components.dataset) if hasattr(components.dataset, "__len__") else "a stream",
        channels=components.unet.config.in_channels,
        height=height,
        width=width,
        modalities=", ".join(f"{option.name} ({option.type})" for option in components.options) or "none",
        parameters=sum(parameter.numel() for parameter in components.unet.parameters()),
        steps=progress.step,
        batch=batch,
        seen=progress.step * batch,
        time=f"{progress.seconds / 60:.1f} minutes",
        devices=f"{accelerator.num_processes} x {accelerator.device.type}",
        precision=accelerator.mixed_precision,
        weights=f"EMA, decay {args.ema_max_decay}" if args.use_ema else "of the last step",
        command=launch_command(accelerator),
        recent=len(progress.recent),
        losses=_loss_table(progress, ["image", *names]),
    )
    path = Path(args.output_dir, CARD_NAME)
    ModelCard(f"---\n{_metadata(args, names)}\n---\n{body}").save(path)
    return path


def _metadata(args: argparse.Namespace, names: list[str]) -> str:
    data = ModelCardData(
        library_name="mmdiff_pipelines",
        pipeline_tag="unconditional-image-generation",
        tags=["mmdiff_pipelines", "diffusers", "multimodal-diffusion", *names],
        datasets=[args.dataset_name] if args.dataset_name and not Path(args.dataset_name).exists() else None,
    )
    return data.to_yaml()


def _data_source(args: argparse.Namespace) -> str:
    source = args.dataset_name or args.train_data_dir or ", ".join(args.data_files)
    return f"{source}, split {args.split!r}"


def _loss_table(progress: Progress, names: list[str]) -> str:
    means = progress.recent_means()
    return "\n".join(f"| {name} | {means[f'{name}_loss']:.4g} |" for name in names if f"{name}_loss" in means)


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
    """Upload the pipeline, its card and the samples; returns the address."""
    api = HfApi(token=args.hub_token)
    repo_id = api.create_repo(default_model_id(args), private=args.hub_private_repo or None, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=args.output_dir,
        allow_patterns=UPLOADED,
        commit_message="Upload MultimodalMultitaskPipeline",
    )
    return commit.commit_url
