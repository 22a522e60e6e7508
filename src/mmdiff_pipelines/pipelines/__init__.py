from .pipeline_multimodal_multitask import MultimodalMultitaskPipeline, MultimodalMultitaskPipelineOutput
from .standalone import export_standalone, push_standalone


__all__ = [
    "MultimodalMultitaskPipeline",
    "MultimodalMultitaskPipelineOutput",
    "export_standalone",
    "push_standalone",
]
