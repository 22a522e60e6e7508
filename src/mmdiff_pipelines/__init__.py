"""Multimodal, multitask diffusion in the style of diffusers: an image and its aligned data, generated together.

As in diffusers, a name is imported when it is first used: importing the package alone costs next to nothing.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any


__version__ = "0.2.0.dev0"

_ORIGINS = {
    "MODALITY_TYPES": "modalities",
    "Modality": "modalities",
    "ModelMixin": "models",
    "MultimodalDDIMScheduler": "schedulers",
    "MultimodalDDPMScheduler": "schedulers",
    "MultimodalDPMSolverMultistepScheduler": "schedulers",
    "MultimodalMultitaskPipeline": "pipelines",
    "MultimodalMultitaskPipelineOutput": "pipelines",
    "MultimodalSchedulerOutput": "schedulers",
    "MultimodalUNet2DModel": "models",
    "MultimodalUNet2DOutput": "models",
    "MultitaskLossOutput": "objective",
    "Presence": "modalities",
    "SchedulerMixin": "schedulers",
    "UncertaintyWeights": "objective",
    "elbo": "objective",
    "export_standalone": "pipelines",
    "multitask_loss": "objective",
    "push_standalone": "pipelines",
}
__all__ = list(_ORIGINS)

if TYPE_CHECKING:
    from .modalities import MODALITY_TYPES, Modality, Presence
    from .models import ModelMixin, MultimodalUNet2DModel, MultimodalUNet2DOutput
    from .objective import MultitaskLossOutput, UncertaintyWeights, elbo, multitask_loss
    from .pipelines import (
        MultimodalMultitaskPipeline,
        MultimodalMultitaskPipelineOutput,
        export_standalone,
        push_standalone,
    )
    from .schedulers import (
        MultimodalDDIMScheduler,
        MultimodalDDPMScheduler,
        MultimodalDPMSolverMultistepScheduler,
        MultimodalSchedulerOutput,
        SchedulerMixin,
    )


if "diffusers.pipelines.pipeline_loading_utils" in sys.modules:  # else when a class of ours is first used
    from . import loadable  # noqa: F401


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f".{_ORIGINS[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
