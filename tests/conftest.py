"""Tiny models of the real classes."""

import pytest
import torch
from diffusers import AutoencoderTiny

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalMultitaskPipeline, MultimodalUNet2DModel

from .hub_server import HubServer, connect


TRUNK = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
ANIMALS = ["cat", "dog", "owl"]
MODALITIES = {
    "label": {"type": "categorical", "num_classes": 3, "class_names": ANIMALS},
    "mask": {"type": "segmentation", "num_classes": 2},
    "depth": {"type": "image", "space": "shared"},
    "hole": {"type": "masked_image"},
    "caption": {"type": "vector", "dim": 12, "condition_on_noisy": True},
}
AGGREGATION = dict.fromkeys(MODALITIES, "decay") | {"depth": "bridge"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build_unet(modalities=None, **trunk):
    """A UNet whose new parts are not zero, as if trained a little."""
    torch.manual_seed(0)
    unet = MultimodalUNet2DModel(**{**TRUNK, **trunk}, modalities=MODALITIES if modalities is None else modalities)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return unet.eval()


def build_pipeline(modalities=None, scheduler=None, **trunk):
    unet = build_unet(modalities, **trunk)
    names = unet.modality_modules
    scheduler = scheduler or MultimodalDDPMScheduler(
        aggregation={name: "bridge" if module.space == "shared" else "decay" for name, module in names.items()},
        modality_weights=dict.fromkeys(names, 1.0),
    )
    pipeline = MultimodalMultitaskPipeline(unet=unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def unet():
    return build_unet()


@pytest.fixture
def pipeline():
    return build_pipeline()


def build_inputs(unet, batch_size=4):
    """A valid random input for the image and every modality."""
    channels, size = unet.config.in_channels, unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.randint(0, 256, (batch_size, channels, height, width)).float() / 127.5 - 1
    inputs = {"image": image}
    for name, modality in unet.modality_modules.items():
        if modality.input_dtype == torch.long:
            inputs[name] = torch.randint(0, modality.num_classes, (batch_size, *modality.input_shape))
        elif modality.from_image:
            inputs[name] = modality.make_inputs(image)
        else:
            inputs[name] = torch.rand(batch_size, *modality.input_shape) * 2 - 1
    return inputs


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """An empty Hub that the client of this process talks to."""
    with HubServer() as server:
        connect(server, tmp_path_factory.mktemp("huggingface"), monkeypatch)
        yield server


def tiny_vae(cls):
    """A random autoencoder of a factor of 2."""
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 4}
    if cls is AutoencoderTiny:
        return cls(
            **channels, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.8,
        )  # fmt: skip
    return cls(
        **channels, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip
