from .pipeline_multimodal_multitask import MultimodalMultitaskPipeline, MultimodalMultitaskPipelineOutput


__all__ = ["MultimodalMultitaskPipeline", "MultimodalMultitaskPipelineOutput"]
