"""The latents of an autoencoder as the anchor z_0: pixels in, about unit variance out, and back.

The only place that knows of `scaling_factor` and `shift_factor`; training and the pipeline both go through it.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


def downscale_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """How many pixels one latent is high and wide."""
    levels = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    return 2 ** (len(levels) - 1)


def encode_pixels(vae: AutoencoderKL | AutoencoderTiny, pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] -> z_0, (B, C_latent, H / factor, W / factor); of a distribution, its mode."""
    encoded = vae.encode(pixels.to(vae.dtype))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """z_0 -> pixels (B, C, H, W), about [-1, 1]."""
    return vae.decode((latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)).sample


def _shift(vae: AutoencoderKL | AutoencoderTiny) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
