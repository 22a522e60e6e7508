"""Training in the latent space of an autoencoder: every image is encoded once, and its latent cached on disk.

Aligned maps are brought to the height and width of the latents. What moves or is made of pixels at each step has no
place here: the latent of a flipped image is not the flipped latent.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from ..modalities import ANCHOR, Geometry, Modality
from ..pipelines.latent_space import downscale_factor, encode_pixels
from .columns import height_width
from .data import RowReader
from .precompute import precompute, weights_fingerprint


LATENTS = "_latents"  # the column of them
FEATURE = {"latents": datasets.Value("binary"), "size": datasets.List(datasets.Value("int32"))}
VAES = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderTiny)}

Vae = AutoencoderKL | AutoencoderTiny


def load_vae(args: argparse.Namespace) -> Vae | None:
    """--vae, frozen; or None.

    Raises:
        ValueError: if there is no autoencoder that can be used.
    """
    if args.vae is None:
        return None
    try:
        name = AutoencoderKL.load_config(args.vae, subfolder=args.vae_subfolder).get("_class_name")
    except OSError as error:
        raise ValueError(
            f"--vae {args.vae}: no config.json there; --vae_subfolder names the folder in it, as 'vae' in a pipeline."
        ) from error
    if name not in VAES:
        raise ValueError(f"--vae {args.vae} is a {name}; accepted: {', '.join(VAES)}.")
    return VAES[name].from_pretrained(args.vae, subfolder=args.vae_subfolder).eval().requires_grad_(False)


def check_latent_options(args: argparse.Namespace) -> None:
    """Refuse what cached latents cannot do.

    Raises:
        ValueError: naming the option.
    """
    if args.random_flip or args.random_crop:
        option = "--random_flip" if args.random_flip else "--random_crop"
        raise ValueError(
            f"{option}: latents are computed once, and that of a moved image is no moved latent; leave it out, or put "
            "the moved images into the dataset."
        )
    if args.streaming:
        raise ValueError("--streaming: latents are computed once for a whole dataset; leave it out.")
    if args.image_channels is not None:
        raise ValueError("--image_channels: the autoencoder decides; images are converted to what it takes.")


class CachedLatent(Modality):
    """The anchor as it is read from the cache: bytes, of `input_shape` in float32."""

    def value_to_tensor(self, value: Mapping[str, Any]) -> torch.Tensor:
        return torch.frombuffer(bytearray(value["latents"]), dtype=torch.float32).view(self.input_shape)


def encode_images(
    dataset: datasets.Dataset, vae: Vae, size: int | tuple[int, int], folder: Path, device: torch.device | str
) -> tuple[datasets.Dataset, Modality]:
    """The latents of a dataset of one column, its images, as such a dataset too, and what reads them.

    Args:
        size: height and width of the latents.
        folder: of the cache.
        device: to encode on; the autoencoder stays there.
    """
    vae.to(device)
    (column,), factor = dataset.column_names, downscale_factor(vae)
    size = (size, size) if isinstance(size, int) else tuple(size)
    pixel_size = (size[0] * factor, size[1] * factor)
    reader = RowReader({ANCHOR: column}, dataset.features, [], vae.config.in_channels, pixel_size)

    @torch.no_grad()
    def compute(values: list[Any]) -> list[dict[str, Any]]:
        pixels = reader([{column: value} for value in values])["inputs"][ANCHOR]
        latents = encode_pixels(vae, pixels.to(device)).float().cpu().numpy()
        return [
            {"latents": latent.tobytes(), "size": height_width(value)}
            for latent, value in zip(latents, values, strict=True)
        ]

    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    identity = (type(vae).__name__, config, weights_fingerprint(vae), pixel_size, diffusers.__version__)
    latents = precompute(dataset, column, compute, (LATENTS, FEATURE), folder, identity, "Encoding images")
    geometry = Geometry(vae.config.latent_channels, *size, feature_channels=1, pooled_channels=1, embedding_dim=1)
    return latents, CachedLatent(geometry, (vae.config.latent_channels, *size))
