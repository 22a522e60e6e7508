"""Runs whose state is spread over processes: FSDP and DeepSpeed."""

import argparse

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..models import MultimodalUNet2DModel
from .objective import MultitaskObjective


def prepare_sharding(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """See that the options need no whole weights in the course of training; tell DeepSpeed the batch size.

    Raises:
        ValueError: naming the option that does.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            raise ValueError("DeepSpeed's `zero_stage` is 3; accepted: 0 to 2, or FSDP, to spread the weights too.")
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = args.train_batch_size
    if accelerator.distributed_type == DistributedType.FSDP:
        for name in ("use_ema", "validation_steps", "lora_rank"):
            if getattr(args, name):
                raise ValueError(f"--{name} needs whole weights in the course of training; leave it out with FSDP.")


def whole_unet(
    accelerator: Accelerator, objective: MultitaskObjective, unet: MultimodalUNet2DModel
) -> MultimodalUNet2DModel:
    """The model with all its weights, in the main process; every process must call this."""
    accelerator.wait_for_everyone()
    if accelerator.distributed_type != DistributedType.FSDP:
        return unet
    weights = accelerator.get_state_dict(objective)
    if not accelerator.is_main_process:
        return unet
    whole = MultimodalUNet2DModel.from_config(unet.config)
    whole.load_state_dict({k.removeprefix("unet."): t for k, t in weights.items() if k.startswith("unet.")})
    return whole
