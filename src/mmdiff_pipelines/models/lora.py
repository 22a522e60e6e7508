"""LoRA weights (Hu et al., arXiv 2106.09685): W + alpha/r B A. Read, and seen to fit, before a model is changed."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, _fetch_state_dict
from torch import nn


LORA_WEIGHT_NAME = LORA_WEIGHT_NAME_SAFE
SHOWN = 3  # misfits in an error

_FETCH_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "metadata", "proxies", "revision", "subfolder", "token",
    "use_safetensors", "weight_name",
)  # fmt: skip


def fetch_lora(
    source: str | Mapping[str, torch.Tensor], prefix: str | None, options: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, dict[str, Any]]:
    """Read LoRA weights from a folder, a file, a repo or a dict, as diffusers does.

    Returns:
        The weights and PEFT's configuration, if it came with them, both without the prefix; and the options left over.
    """
    options = {"weight_name": LORA_WEIGHT_NAME, **options}
    fetching = {name: options.pop(name, None) for name in _FETCH_OPTIONS}
    user_agent = {"file_type": "attn_procs_weights", "framework": "pytorch"}
    weights, metadata = _fetch_state_dict(source, **fetching, user_agent=user_agent, allow_pickle=False)
    return _without_prefix(weights, prefix), metadata and _without_prefix(metadata, prefix), options


def _without_prefix(items: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    if prefix is None:
        return dict(items)
    start = f"{prefix}."
    return {name.removeprefix(start): item for name, item in items.items() if name.startswith(start)}


def check_lora_fits(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """See that every pair of LoRA weights has its layer.

    Raises:
        ValueError: naming what does not fit.
    """
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        path, _, half = key.partition(".lora_")
        pairs.setdefault(path, {})[half] = tensor
    modules = dict(model.named_modules())
    misfits = [f"{path} {misfit}" for path, pair in pairs.items() if (misfit := _misfit(modules.get(path), pair))]
    if not pairs or misfits:
        shown = "; ".join(misfits[:SHOWN]) or "there are none, or none with this `prefix`"
        more = f"; and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
        raise ValueError(
            f"the LoRA weights do not fit this {type(model).__name__}: {shown}{more}. Load them into the model that "
            "they were trained on; this one is unchanged."
        )


def _misfit(layer: nn.Module | None, pair: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with A (r, in, ...) and B (out, r, ...) for a layer of weight (out, in, ...), if anything."""
    if "A.weight" not in pair or "B.weight" not in pair:
        return "has no pair of LoRA weights (keys `....lora_A.weight` and `....lora_B.weight`)"
    layer = getattr(layer, "base_layer", layer)  # under an adapter that is there already
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return "is no linear layer or convolution of the model"
    a, b, weight = pair["A.weight"].shape, pair["B.weight"].shape, layer.weight.shape
    if a[1:] != weight[1:] or b[0] != weight[0] or a[0] != b[1]:
        return f"has the weight {tuple(weight)}, the LoRA {tuple(a)} and {tuple(b)}"
    return None
