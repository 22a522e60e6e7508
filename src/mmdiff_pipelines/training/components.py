"""What a run is made of, built from its options: data, model, scheduler."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel

from ..modalities import ANCHOR, Modality
from ..models import MultimodalUNet2DModel
from ..pipelines import MultimodalMultitaskPipeline
from ..pipelines.latent_space import downscale_factor
from ..schedulers import MultimodalDDPMScheduler
from .columns import num_channels
from .data import (
    HubDataset,
    RowReader,
    example_rows,
    image_columns,
    load_training_data,
    select_columns,
    select_rows,
    shuffle_stream,
)
from .embeddings import add_embeddings
from .latents import LATENTS, Vae, check_latent_options, encode_images, load_vae
from .lora import add_lora
from .modality_options import ModalityOption, adopt_pretrained, check_classes, complete_option, scheduler_arguments
from .precompute import beside, cache_folder
from .pretrained import extend_pipeline, load_pipeline, load_unet, warn_of_other_noise


DEFAULT_RESOLUTION = 64


@dataclass
class Components:
    """The parts of a run.

    Args:
        dataset: rows, as `datasets` gives them.
        reader: makes batches of them.
        options: of the modalities, complete.
        unet, scheduler: what is trained.
        vae: whose latents the images are, if any.
    """

    dataset: HubDataset
    reader: RowReader
    options: list[ModalityOption]
    unet: MultimodalUNet2DModel
    scheduler: MultimodalDDPMScheduler
    vae: Vae | None = None

    @property
    def size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.unet.total_channels, *self.size


def build_components(args: argparse.Namespace, device: torch.device | str = "cpu") -> Components:
    """Load the data, see what they are, and build a model for them.

    Args:
        device: to compute latents and embeddings on, where they are not cached.

    Raises:
        ValueError: for options that do not fit the data or the pretrained model.
    """
    pretrained = load_pipeline(args)
    vae = pretrained.vae if pretrained else load_vae(args)
    if vae is not None:
        check_latent_options(args)
    specs = (pretrained.unet.config.modalities or {}) if pretrained else {}
    loaded = select_rows(load_training_data(args), args)
    options = adopt_pretrained(args.modalities, specs)
    _check_masked_images(options, args.image_column)
    extended, options = add_embeddings(loaded, options, args, device)
    dataset = select_columns(extended, args.image_column, options)
    rows = example_rows(dataset)
    if not rows:
        raise ValueError("the dataset has no rows.")
    for option in options:
        if option.name in specs:
            check_classes(option, dataset)
    dataset = shuffle_stream(dataset, args)
    options = [o if o.name in specs else complete_option(o, dataset.features, rows, dataset) for o in options]
    if pretrained is None:
        channels = _image_channels(args, rows, dataset.features) if vae is None else vae.config.latent_channels
        unet, scheduler = build_unet(args, options, channels, vae), build_scheduler(args, options, vae)
    else:
        unet, scheduler = extend_pipeline(pretrained, [option for option in options if option.name not in specs])
    if args.pretrained_unet is not None:
        warn_of_other_noise(args.pretrained_unet, scheduler)
    MultimodalMultitaskPipeline(unet, scheduler, vae)  # checks that they fit
    _check_names(args, options)
    anchor = None
    if vae is not None:
        images = image_columns(loaded.select_columns([args.image_column]), [args.image_column])
        latents, anchor = encode_images(images, vae, unet.config.sample_size, cache_folder(args), device)
        dataset = beside(dataset.select_columns(list(dict.fromkeys(o.column for o in options))), latents)
    reader = build_reader(args, options, unet, dataset.features, anchor)
    if args.lora_rank is not None:
        add_lora(unet, args, [option.name for option in options if option.name not in specs])
    return Components(dataset, reader, options, unet, scheduler, vae)


def build_unet(
    args: argparse.Namespace, options: Sequence[ModalityOption], image_channels: int, vae: Vae | None
) -> MultimodalUNet2DModel:
    """A new UNet, or one that starts from the weights of a UNet2DModel."""
    factor = downscale_factor(vae) if vae is not None else 1
    modalities = {option.name: option.spec for option in options}
    if args.pretrained_unet is not None:
        unet = load_unet(args.pretrained_unet)
        if unet.config.in_channels != image_channels:
            raise ValueError(
                f"--pretrained_unet has {unet.config.in_channels} channels, the images {image_channels}; "
                + ("--image_channels converts them." if vae is None else "they are the latents of --vae.")
            )
        unet.register_to_config(sample_size=_sample_size(args, unet.config, factor))
        return MultimodalUNet2DModel.from_unet(unet, modalities)
    config = _unet_config(args, factor)
    config |= {"in_channels": image_channels, "out_channels": image_channels, "modalities": modalities}
    return MultimodalUNet2DModel(**config)


def _unet_config(args: argparse.Namespace, factor: int) -> dict[str, Any]:
    if args.model_config_name_or_path is not None:
        loaded = UNet2DModel.load_config(args.model_config_name_or_path)
        config = {name: value for name, value in loaded.items() if not name.startswith("_")}
        return config | {"sample_size": _sample_size(args, config, factor)}
    down_block_types = args.down_block_types or _default_blocks(len(args.block_out_channels))
    return {
        "sample_size": _sample_size(args, {"block_out_channels": args.block_out_channels}, factor),
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


def _sample_size(args: argparse.Namespace, config: Mapping[str, Any], factor: int) -> int | list[int]:
    """--resolution over the `factor` of an autoencoder, or the size in the given configuration.

    Raises:
        ValueError: for a size that the UNet cannot halve as often as it has levels.
    """
    sizes = args.resolution or [DEFAULT_RESOLUTION]
    if args.resolution is None and (size := config.get("sample_size")):
        sizes = [side * factor for side in ([size] if isinstance(size, int) else size)]
    levels = len(config.get("block_out_channels", ())) or 1
    multiple = factor * 2 ** (levels - 1)
    if any(side % multiple for side in sizes):
        autoencoder = f" and an autoencoder that makes {factor} pixels one" if factor > 1 else ""
        raise ValueError(
            f"--resolution is {sizes}; with {levels} levels{autoencoder} it must be a multiple of {multiple}."
        )
    sizes = [side // factor for side in sizes]
    return sizes[0] if len(set(sizes)) == 1 else sizes


def build_scheduler(
    args: argparse.Namespace, options: Sequence[ModalityOption], vae: Vae | None = None
) -> MultimodalDDPMScheduler:
    return MultimodalDDPMScheduler(
        clip_sample=vae is None,
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
    anchor: Modality | None = None,
) -> RowReader:
    """Reads maps at the resolution, and the margin of --random_crop more; latents with `anchor`."""
    columns = {ANCHOR: args.image_column if anchor is None else LATENTS} | {
        option.name: option.column for option in options
    }
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    margin = args.random_crop
    return RowReader(columns, features, options, unet.config.in_channels, (height + margin, width + margin), anchor)


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
