"""Starting from what exists: a pretrained UNet2DModel, or a pipeline, with modalities added to it."""

import argparse
from collections.abc import Sequence

from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging

from ..models import MultimodalUNet2DModel
from ..pipelines import MultimodalMultitaskPipeline
from ..pipelines.latent_space import downscale_factor
from ..schedulers import MultimodalDDPMScheduler
from .modality_options import ModalityOption, scheduler_arguments


logger = logging.get_logger(__name__)

NOISE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")


def load_pipeline(args: argparse.Namespace) -> MultimodalMultitaskPipeline | None:
    """--pretrained_model_name_or_path.

    Raises:
        ValueError: if it is of another --resolution.
    """
    if args.pretrained_model_name_or_path is None:
        return None
    pipeline = MultimodalMultitaskPipeline.from_pretrained(args.pretrained_model_name_or_path)
    if pipeline.vae is not None:
        pipeline.vae.requires_grad_(False)
    factor = downscale_factor(pipeline.vae) if pipeline.vae is not None else 1
    size = pipeline.unet.config.sample_size
    pixels = [side * factor for side in ([size] if isinstance(size, int) else size)]
    if args.resolution is not None and set(args.resolution) != set(pixels):
        raise ValueError(f"--resolution is {args.resolution}; the pretrained pipeline fixes it as {pixels}.")
    return pipeline


def load_unet(path: str) -> UNet2DModel:
    """--pretrained_unet: a folder or a repo, or the `unet` folder of a pipeline in it.

    Raises:
        ValueError: if there is none, or one that cannot be continued.
    """
    subfolder, config = _find_unet(path)
    if config.get("_class_name") != "UNet2DModel":
        hint = "; that goes by --pretrained_model_name_or_path" if "Multimodal" in config["_class_name"] else ""
        raise ValueError(f"--pretrained_unet {path} is a {config['_class_name']}; accepted: UNet2DModel{hint}.")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(
            f"--pretrained_unet {path} is class-conditional: its class embedding has no place in a multimodal model; "
            "accepted: an unconditional one."
        )
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"--pretrained_unet {path} has {config['in_channels']} channels in and {config['out_channels']} out; "
            "accepted: as many out as in (no learned variance)."
        )
    return UNet2DModel.from_pretrained(path, subfolder=subfolder)


def _find_unet(path: str) -> tuple[str | None, dict]:
    for subfolder in (None, "unet"):
        try:
            return subfolder, UNet2DModel.load_config(path, subfolder=subfolder)
        except OSError as error:
            last = error
    raise ValueError(f"--pretrained_unet {path}: neither it nor its folder 'unet' has a config.json.") from last


def warn_of_other_noise(path: str, scheduler: MultimodalDDPMScheduler) -> None:
    """Say so if the pipeline around a pretrained UNet was trained on other noise than `scheduler` makes."""
    try:
        pretrained = DDPMScheduler.from_config(DDPMScheduler.load_config(path, subfolder="scheduler"))
    except OSError:
        return
    theirs, ours = pretrained.config, scheduler.config
    predicts = {"total_noise": "epsilon"}.get(ours.prediction_type, ours.prediction_type)
    differ = [name for name in NOISE if theirs[name] != ours[name]]
    differ += ["prediction_type"] if theirs.prediction_type != predicts else []
    if differ:
        what = ", ".join(f"{name} {theirs[name]!r} (here {ours[name]!r})" for name in differ)
        logger.warning(f"--pretrained_unet {path} was trained with {what}: it will have to learn the difference.")


def extend_pipeline(
    pipeline: MultimodalMultitaskPipeline, added: Sequence[ModalityOption]
) -> tuple[MultimodalUNet2DModel, MultimodalDDPMScheduler]:
    """The UNet and the scheduler of a pretrained pipeline, with modalities added; what they did is unchanged.

    Raises:
        ValueError: if the scheduler's noise depends on the number of modalities.
    """
    unet, config = pipeline.unet, pipeline.scheduler.config
    if not added:
        return unet, MultimodalDDPMScheduler.from_config(config)
    if config.alpha_scaling == "paper":
        raise ValueError(
            f"--modality {added[0].name}: the scheduler of the pretrained pipeline has `alpha_scaling='paper'`, whose "
            "noise depends on the number of modalities: none can be added."
        )
    names = [option.name for option in added]
    logger.warning(f"Added to the pretrained pipeline: {', '.join(names)}.")
    settings = {}
    for argument, new in scheduler_arguments(added).items():
        old = config[argument]
        settings[argument] = (old if isinstance(old, dict) else dict.fromkeys(unet.modality_modules, old)) | new
    for option in added:
        unet = unet.add_modality(option.name, option.spec)
    return unet, MultimodalDDPMScheduler.from_config(config, **settings)
