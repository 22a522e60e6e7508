"""Makes diffusers know this package as a library of models and schedulers (huggingface/diffusers#5728).

So `model_index.json` names the package, not a module of it, and components load from the Hub.
"""

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES


LOADABLE_CLASSES["mmdiff_pipelines"] = {
    "ModelMixin": ["save_pretrained", "from_pretrained"],
    "SchedulerMixin": ["save_pretrained", "from_pretrained"],
}
