"""Whether the components of a pipeline fit together."""

import torch


def check_components(unet, scheduler, vae) -> None:
    """The model knows the spaces, the scheduler the weights: see that they fit, and a VAE (or None) with both.

    Raises:
        TypeError: a model or a scheduler of diffusers, not converted.
        ValueError: settings that contradict each other.
    """
    if not hasattr(unet, "modality_modules"):
        name = type(unet).__name__
        raise TypeError(f"`unet` is a {name}; convert it, as by MultimodalUNet2DModel.from_unet.")
    # not by its class: code that travels with a checkpoint has a class of its own
    if not hasattr(scheduler, "marginal_weight"):
        name = type(scheduler).__name__
        raise TypeError(f"`scheduler` is a {name}; convert it, as by MultimodalDDPMScheduler.from_config(its config).")
    first = torch.zeros(1, dtype=torch.long)
    for name, modality in unet.modality_modules.items():
        scheduler.marginal_weight(name, first)
        aggregation = scheduler.config.aggregation
        aggregation = aggregation[name] if isinstance(aggregation, dict) else aggregation
        if aggregation == "decay" and modality.space == "shared":
            raise ValueError(
                f"`aggregation` is 'decay' for modality {name!r}, which lives in shared space, where its encoding "
                "would stay in the image; use 'bridge', or give the modality `space='own'`."
            )
        if aggregation == "none" and modality.condition_on_noisy:
            raise ValueError(
                f"`aggregation` is 'none' for modality {name!r}, whose channels are then all noise; accepted with its "
                "`condition_on_noisy=True`: 'decay', 'bridge', 'sqrt_bridge'."
            )
    _check_vae(unet, scheduler, vae)


def _check_vae(unet, scheduler, vae) -> None:
    """Latents must not be clipped like pixels, and what is made of pixels, as a masked image, has no latent."""
    if vae is None:
        return
    if scheduler.config.get("clip_sample"):
        raise ValueError("`scheduler` has `clip_sample=True`, which is for pixels; beside a `vae` it must be False.")
    for name, modality in unet.modality_modules.items():
        if modality.from_image or modality.constrains_anchor:
            raise ValueError(
                f"`vae`: modality {name!r} ({type(modality).__name__}) is made of the image's pixels, which have no "
                "place in a latent space; leave out the one or the other."
            )
