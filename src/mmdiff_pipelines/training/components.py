"""What a run is made of, built from its options: data, model, scheduler."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DModel
from diffusers.utils import logging

from ..modalities import ANCHOR
from ..models import MultimodalUNet2DModel
from ..pipelines import MultimodalMultitaskPipeline
from ..schedulers import MultimodalDDPMScheduler
from .columns import num_channels
from .data import (
    HubDataset,
    RowReader,
    example_rows,
    load_training_data,
    select_columns,
    select_rows,
)
from .lora import add_lora
from .modality_options import ModalityOption, adopt_pretrained, complete_option, scheduler_arguments


logger = logging.get_logger(__name__)

DEFAULT_RESOLUTION = 64


@dataclass
class Components:
    """The parts of a run.

    Args:
        dataset: rows, as `datasets` gives them.
        reader: makes batches of them.
        options: of the modalities, complete.
        unet, scheduler: what is trained.
    """

    dataset: HubDataset
    reader: RowReader
    options: list[ModalityOption]
    unet: MultimodalUNet2DModel
    scheduler: MultimodalDDPMScheduler

    @property
    def size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.unet.total_channels, *self.size


def build_components(args: argparse.Namespace) -> Components:
    """Load the data, see what they are, and build a model for them.

    Raises:
        ValueError: for options that do not fit the data or the pretrained model.
    """
    pretrained = load_pipeline(args)
    options = (
        adopt_pretrained(args.modalities, pretrained.unet.config.modalities or {}) if pretrained else args.modalities
    )
    dataset = select_columns(load_training_data(args), args.image_column, options)
    rows = example_rows(dataset)
    dataset = select_rows(dataset, args)
    if not rows:
        raise ValueError("the dataset has no rows.")
    _check_masked_images(options, args.image_column)
    if pretrained is None:
        options = [complete_option(option, dataset.features, rows, dataset) for option in options]
        unet = build_unet(args, options, _image_channels(args, rows, dataset.features))
        scheduler = build_scheduler(args, options)
    else:
        unet, scheduler = pretrained.unet, MultimodalDDPMScheduler.from_config(pretrained.scheduler.config)
    MultimodalMultitaskPipeline(unet, scheduler)  # checks that the weights fit the spaces
    reader = build_reader(args, options, unet, dataset.features)
    _check_names(args, options)
    if args.lora_rank is not None:
        known = pretrained.unet.config.modalities or {} if pretrained else {}
        add_lora(unet, args, [option.name for option in options if option.name not in known])
    return Components(dataset, reader, options, unet, scheduler)


def load_pipeline(args: argparse.Namespace) -> MultimodalMultitaskPipeline | None:
    if args.pretrained_model_name_or_path is None:
        return None
    pipeline = MultimodalMultitaskPipeline.from_pretrained(args.pretrained_model_name_or_path)
    if pipeline.vae is not None:
        raise ValueError("--pretrained_model_name_or_path: the pipeline has a VAE; training is in pixels only.")
    size = pipeline.unet.config.sample_size
    if args.resolution is not None and set(args.resolution) != set([size] if isinstance(size, int) else size):
        raise ValueError(f"--resolution is {args.resolution}; the pretrained pipeline fixes it as {size}.")
    return pipeline


def build_unet(
    args: argparse.Namespace, options: Sequence[ModalityOption], image_channels: int
) -> MultimodalUNet2DModel:
    """A new UNet, or one that starts from the weights of a UNet2DModel."""
    modalities = {option.name: option.spec for option in options}
    if args.pretrained_unet is not None:
        unet = _load_unet(args.pretrained_unet)
        if unet.config.in_channels != image_channels:
            raise ValueError(
                f"--pretrained_unet has {unet.config.in_channels} channels, the images {image_channels}; "
                "--image_channels converts them."
            )
        unet.register_to_config(sample_size=_sample_size(args, unet.config))
        return MultimodalUNet2DModel.from_unet(unet, modalities)
    config = _unet_config(args)
    config |= {"in_channels": image_channels, "out_channels": image_channels, "modalities": modalities}
    return MultimodalUNet2DModel(**config)


def _load_unet(path: str) -> UNet2DModel:
    """From a folder or a repo, or the `unet` folder of a pipeline in it."""
    try:
        return UNet2DModel.from_pretrained(path)
    except OSError:
        return UNet2DModel.from_pretrained(path, subfolder="unet")


def _unet_config(args: argparse.Namespace) -> dict[str, Any]:
    if args.model_config_name_or_path is not None:
        loaded = UNet2DModel.load_config(args.model_config_name_or_path)
        config = {name: value for name, value in loaded.items() if not name.startswith("_")}
        return config | {"sample_size": _sample_size(args, config)}
    down_block_types = args.down_block_types or _default_blocks(len(args.block_out_channels))
    return {
        "sample_size": _sample_size(args, {"block_out_channels": args.block_out_channels}),
        "block_out_channels": tuple(args.block_out_channels),
        "layers_per_block": args.layers_per_block,
        "down_block_types": tuple(down_block_types),
        "up_block_types": tuple(args.up_block_types or mirrored(down_block_types)),
        "norm_num_groups": args.norm_num_groups,
        "attention_head_dim": args.attention_head_dim,
        "dropout": args.dropout,
    }


def _default_blocks(levels: int) -> list[str]:
    return ["DownBlock2D" if level < (levels + 1) // 2 else "AttnDownBlock2D" for level in range(levels)]


def mirrored(down_block_types: Sequence[str]) -> list[str]:
    return [block.replace("Down", "Up").replace("down", "up") for block in reversed(down_block_types)]


def _sample_size(args: argparse.Namespace, config: Mapping[str, Any]) -> int | list[int]:
    """--resolution, or that of the given configuration.

    Raises:
        ValueError: for a size that the UNet cannot halve as often as it has levels.
    """
    resolution = args.resolution or config.get("sample_size") or DEFAULT_RESOLUTION
    sizes = [resolution] if isinstance(resolution, int) else list(resolution)
    levels = len(config.get("block_out_channels", ())) or 1
    if any(size % 2 ** (levels - 1) for size in sizes):
        raise ValueError(
            f"--resolution is {sizes}; with {levels} levels it must be a multiple of {2 ** (levels - 1)}."
        )
    return sizes[0] if len(set(sizes)) == 1 else sizes


def build_scheduler(args: argparse.Namespace, options: Sequence[ModalityOption]) -> MultimodalDDPMScheduler:
    return MultimodalDDPMScheduler(
        num_train_timesteps=args.num_train_timesteps,
        beta_schedule=args.beta_schedule,
        rescale_betas_zero_snr=args.rescale_betas_zero_snr,
        prediction_type=args.prediction_type,
        **scheduler_arguments(options),
    )


def build_reader(
    args: argparse.Namespace,
    options: Sequence[ModalityOption],
    unet: MultimodalUNet2DModel,
    features: Mapping[str, Any],
) -> RowReader:
    """Reads maps at the resolution, and the margin of --random_crop more."""
    columns = {ANCHOR: args.image_column} | {option.name: option.column for option in options}
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    margin = args.random_crop
    return RowReader(columns, features, options, unet.config.in_channels, (height + margin, width + margin))


def _image_channels(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> int:
    return args.image_channels or num_channels(rows[0][args.image_column], features[args.image_column])


def _check_masked_images(options: Sequence[ModalityOption], image_column: str) -> None:
    for option in options:
        if option.from_image and option.column not in (option.name, image_column):
            raise ValueError(
                f"--modality {option.name}: column={option.column}; a masked image is made of the image at each step, "
                f"so accepted: column={image_column}."
            )


def _check_names(args: argparse.Namespace, options: Sequence[ModalityOption]) -> None:
    if args.task_weights == "uncertainty":
        return
    names = [ANCHOR, *(option.name for option in options)]
    if unknown := set(args.task_weights) - set(names):
        raise ValueError(f"--task_weights: {sorted(unknown)} are no tasks; accepted: {', '.join(names)}.")


def task_weights(args: argparse.Namespace, options: Sequence[ModalityOption]) -> dict[str, float] | str:
    """lambda of each task: --task_weights, or `task_weight` of the modality."""
    if args.task_weights == "uncertainty":
        return args.task_weights
    own = {option.name: option.task_weight for option in options if option.task_weight is not None}
    return own | args.task_weights
