from diffusers import ModelMixin

from .. import loadable  # noqa: F401
from .unet_multimodal import MultimodalUNet2DModel, MultimodalUNet2DOutput


__all__ = ["ModelMixin", "MultimodalUNet2DModel", "MultimodalUNet2DOutput"]
