"""Multimodal, multitask diffusion in the style of diffusers: an image and its aligned data, generated together."""

from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .modalities import MODALITY_TYPES, Modality, Presence
from .models import MultimodalUNet2DModel, MultimodalUNet2DOutput
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
)


__version__ = "0.1.0"

# Makes `model_index.json` name this package, and components loadable from the Hub (huggingface/diffusers#5728).
LOADABLE_CLASSES["mmdiff_pipelines"] = {
    "ModelMixin": ["save_pretrained", "from_pretrained"],
    "SchedulerMixin": ["save_pretrained", "from_pretrained"],
}

__all__ = [
    "MODALITY_TYPES",
    "Modality",
    "ModelMixin",
    "MultimodalDDIMScheduler",
    "MultimodalDDPMScheduler",
    "MultimodalDPMSolverMultistepScheduler",
    "MultimodalMultitaskPipeline",
    "MultimodalMultitaskPipelineOutput",
    "MultimodalSchedulerOutput",
    "MultimodalUNet2DModel",
    "MultimodalUNet2DOutput",
    "MultitaskLossOutput",
    "Presence",
    "SchedulerMixin",
    "UncertaintyWeights",
    "elbo",
    "export_standalone",
    "multitask_loss",
    "push_standalone",
]
