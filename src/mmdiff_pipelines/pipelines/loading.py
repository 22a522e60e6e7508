"""What is checked of a checkpoint before its weights are fetched."""

import warnings
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline


def check_index(pipeline_class: type[DiffusionPipeline], source: str, arguments: Mapping[str, Any]) -> None:
    """See that the components listed in a `model_index.json` make a pipeline of this package.

    A class of diffusers cannot be the UNet, whatever pipeline it was saved by; one of another package can.

    Args:
        pipeline_class: the pipeline to be loaded.
        source: a folder or a repo of the Hub.
        arguments: those of `from_pretrained`, components that need not be loaded among them.

    Raises:
        OSError: no such folder, repo, revision or file.
        ValueError: the checkpoint of another pipeline, which the message names.
    """
    with warnings.catch_warnings():
        # diffusers passes it by default (huggingface_hub warns that it means nothing any more)
        warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
        index = pipeline_class.load_config(source, **arguments)
    library, class_name = index.get("unet") or (None, None)
    if "unet" in arguments or library not in (None, "diffusers"):
        return
    raise ValueError(
        f"{source!r} was saved by a {index.get('_class_name')}: its `unet` is {class_name or 'missing'}, where a "
        "MultimodalMultitaskPipeline needs a MultimodalUNet2DModel. Load it by its own class; a UNet2DModel can be "
        "the start of a multimodal one, see MultimodalUNet2DModel.from_unet."
    )
