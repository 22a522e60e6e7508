"""What a run would train, in words: to be read before hours are spent."""

from collections.abc import Mapping

import torch

from ..modalities import ANCHOR
from ..process import emergence_curve
from .components import Components


READABLE = 3.0  # standard deviations
NUM_PRINTED = 11  # timesteps


def describe(components: Components, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """The columns, shapes and classes as they were read, the model's size, and when each modality emerges.

    Args:
        batch: one, as the reader gives it.
    """
    dataset, unet = components.dataset, components.unet
    rows = f"{len(dataset)} rows" if hasattr(dataset, "__len__") else "a stream"
    lines = [f"Data: {rows}; columns used: {', '.join(dataset.features)}", ""]
    lines += [_describe_input(components, ANCHOR, batch)]
    lines += [_describe_input(components, option.name, batch) for option in components.options]
    lines += ["", f"Diffusion space: {unet.total_channels} channels, {unet.config.in_channels} of them the image's"]
    lines += ["", "Parameters", *_parameter_counts(components)]
    lines += ["", f"Emergence: W_t ||e - e'|| / sigma_t, readable above {READABLE:g}", *_emergence(components, batch)]
    return "\n".join(lines)


def _describe_input(components: Components, name: str, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """One line: the column, the tensor, its range, how many rows have it, the classes."""
    if name not in batch["inputs"]:
        return f"{name}: made of the image at each step\n    {_describe_spec(components.unet.config.modalities[name])}"
    tensor = batch["inputs"][name]
    present = tensor[batch["available"][name]]
    line = (
        f"{name}: column {components.reader.columns[name]!r}, {tuple(tensor.shape[1:])} {tensor.dtype}, "
        + (f"{present.min().item():.4g} to {present.max().item():.4g}, " if len(present) else "")
        + f"in {len(present)} of {len(tensor)} rows"
    )
    spec = (components.unet.config.modalities or {}).get(name)
    return line if spec is None else f"{line}\n    {_describe_spec(spec)}"


def _describe_spec(spec: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.items() if value is not None)


def _parameter_counts(components: Components) -> list[str]:
    unet = components.unet
    modalities = {name: _count(module) for name, module in unet.modality_modules.items()}
    total = _count(unet)
    lines = [f"    {total:,} in all, {total - sum(modalities.values()):,} of them the trunk's"]
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    lines.append(f"    {trained:,} of them are trained")
    return lines + [f"    {name}: {count:,} (encoder and head)" for name, count in modalities.items()]


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _emergence(components: Components, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    """A table of the curves, and from which timestep down each modality can be read."""
    scheduler, unet = components.scheduler, components.unet
    timesteps = torch.arange(scheduler.config.num_train_timesteps)
    printed = torch.linspace(0, len(timesteps) - 1, NUM_PRINTED).round().long()
    lines = ["    " + "t".ljust(12) + "".join(f"{t:>8}" for t in printed.tolist())]
    for name, modality in unet.modality_modules.items():
        if name not in batch["inputs"]:
            lines.append(f"    {name.ljust(12)}    (only given or absent)")
            continue
        present = batch["available"][name]
        encodings = modality.encode(batch["inputs"][name][present])
        spread = 1.0 if modality.space == "shared" else 0.0
        weights = scheduler.marginal_weight(name, timesteps)
        curve = emergence_curve(weights, scheduler.alphas_cumprod, _mean_distance(encodings), spread)
        readable = (curve > READABLE).nonzero()
        verdict = f"readable from t = {readable.max().item()} down" if len(readable) else "never readable"
        values = "".join(f"{value:>8.2f}" for value in curve[printed].tolist())
        lines.append(f"    {name.ljust(12)}{values}   {verdict}")
    return lines


def _mean_distance(encodings: torch.Tensor) -> float:
    """The mean L2 distance of two encodings that differ."""
    distances = torch.pdist(encodings.flatten(1).float())
    distances = distances[distances > 0]
    return distances.mean().item() if len(distances) else 0.0
