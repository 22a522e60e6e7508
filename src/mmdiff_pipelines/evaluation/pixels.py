"""Images as tensors, (n, C, H, W) in [0, 1]."""

import PIL.Image
import torch


def tensor_to_image(image: torch.Tensor) -> PIL.Image.Image:
    """(3, H, W) in [0, 1] -> a PIL image."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(levels.movedim(0, -1).cpu().numpy())


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """(n, 1 or 3, H, W) -> (n, 3, H, W).

    Raises:
        ValueError: for another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}; accepted: (n, 1 or 3, H, W).")
    return images.expand(-1, 3, -1, -1)
