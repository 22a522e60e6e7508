from .unet_multimodal import MultimodalUNet2DModel, MultimodalUNet2DOutput


__all__ = ["MultimodalUNet2DModel", "MultimodalUNet2DOutput"]
