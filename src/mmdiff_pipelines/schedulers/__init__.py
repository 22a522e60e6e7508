from diffusers import SchedulerMixin

from .. import loadable  # noqa: F401
from .scheduling_multimodal import MultimodalSchedulerOutput
from .scheduling_multimodal_ddim import MultimodalDDIMScheduler
from .scheduling_multimodal_ddpm import MultimodalDDPMScheduler
from .scheduling_multimodal_dpmsolver_multistep import MultimodalDPMSolverMultistepScheduler


__all__ = [
    "MultimodalDDIMScheduler",
    "MultimodalDDPMScheduler",
    "MultimodalDPMSolverMultistepScheduler",
    "MultimodalSchedulerOutput",
    "SchedulerMixin",
]
