"""Fine-tuning by LoRA: the pretrained weights stay, small adapters of the trunk's layers learn. Needs PEFT.

Modalities that the pretrained model does not have are trained whole, with whatever else is new: an adapter of random
weights could not learn them.
"""

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from ..modalities import ANCHOR
from ..models import MultimodalUNet2DModel
from ..models.lora import LORA_WEIGHT_NAME
from ..pipelines import MultimodalMultitaskPipeline


TRUNK = ("down_blocks", "mid_block", "up_blocks")
# the attention and the ResNet blocks
TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj"]


def add_lora(unet: MultimodalUNet2DModel, args: argparse.Namespace, new_modalities: Collection[str]) -> None:
    """Freeze the model but for an adapter "default" and the parts of new modalities.

    Args:
        unet: pretrained.
        args: of `parse_args`; `lora_rank`, `lora_alpha` and `lora_target_modules` are read.
        new_modalities: names of those that are not pretrained.

    Raises:
        ValueError: if a target module is no linear layer or convolution of the trunk.
    """
    from peft import LoraConfig  # only who trains LoRA needs it

    trained = [parameter for parameter in _new_parameters(unet, new_modalities) if parameter.requires_grad]
    unet.add_adapter(
        LoraConfig(
            r=args.lora_rank,
            lora_alpha=args.lora_alpha or args.lora_rank,
            target_modules=_target_modules(unet, args.lora_target_modules),
        )
    )
    for parameter in trained:  # PEFT has frozen all but the adapter
        parameter.requires_grad_(True)


def _new_parameters(unet: MultimodalUNet2DModel, new_modalities: Collection[str]) -> list[nn.Parameter]:
    containers = (unet.modality_modules, unet.conv_condition, unet.presence_embedding)
    parts = [container[name] for container in containers for name in new_modalities if name in container]
    if any(unet.modality_modules[name].space == "own" for name in new_modalities):
        parts.append(unet.conv_reserved)  # one convolution for all reserved channels
    if new_modalities and len(new_modalities) == len(unet.modality_modules):
        parts.append(unet.presence_embedding[ANCHOR])
    return [parameter for part in parts for parameter in part.parameters()]


def _target_modules(unet: MultimodalUNet2DModel, names: list[str] | None) -> list[str]:
    """The full names of the layers that the last parts of their names, or the defaults, mean."""
    layers = [
        name
        for name, module in unet.named_modules()
        if name.startswith(TRUNK) and isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    for name in names or []:
        if not any(layer.endswith(f".{name}") for layer in layers):
            accepted = sorted({re.split(r"\.(?!\d+$)", layer)[-1] for layer in layers})
            raise ValueError(
                f"--lora_target_modules has {name!r}, which is no layer of the trunk; accepted: ends of the names of "
                f"its linear layers and convolutions, as {', '.join(accepted)}."
            )
    return [layer for layer in layers if layer.endswith(tuple(f".{name}" for name in names or TARGET_MODULES))]


def save_lora(pipeline: MultimodalMultitaskPipeline, args: argparse.Namespace) -> None:
    """Save the adapter in --output_dir, and beside it, if there is no such pipeline yet, the one that it is for."""
    pipeline.unet.save_lora_adapter(args.output_dir)
    if args.pretrained_model_name_or_path is None or _trains_more(pipeline.unet):
        pipeline.unet.unload_lora()
        pipeline.save_pretrained(args.output_dir)


def _trains_more(unet: MultimodalUNet2DModel) -> bool:
    return any(p.requires_grad and ".lora_" not in name for name, p in unet.named_parameters())


def describe_lora(args: argparse.Namespace) -> str | None:
    """The options of the adapter, which a resumed run must share."""
    if args.lora_rank is None:
        return None
    return f"rank {args.lora_rank}, alpha {args.lora_alpha or args.lora_rank}, of {args.lora_target_modules or 'all'}"


def adapter_record(args: argparse.Namespace, unet: MultimodalUNet2DModel) -> dict[str, Any] | None:
    """What the model card says of the adapter: the pipeline that it is for, unless that lies beside it."""
    if args.lora_rank is None:
        return None
    if Path(args.output_dir, "model_index.json").exists():
        return {"weights": LORA_WEIGHT_NAME}
    names = ("sample_size", "in_channels", "modalities")
    unet_config = {name: unet.config[name] for name in names}
    return {"weights": LORA_WEIGHT_NAME, "base": args.pretrained_model_name_or_path, "unet": unet_config}
