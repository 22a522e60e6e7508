"""DDIM sampling of the multimodal process: diffusers' DDIM on y_t = z_t - M_t."""

import torch
from diffusers import DDIMScheduler

from ..configuration import inherit_config
from .scheduling_multimodal import MultimodalSchedulerMixin, MultimodalSchedulerOutput


class MultimodalDDIMScheduler(MultimodalSchedulerMixin, DDIMScheduler):
    """diffusers' [`DDIMScheduler`] for the multimodal process; its arguments, and those of
    [`MultimodalDDPMScheduler`]. For many steps call `step` with `use_clipped_model_output=True`, as our pipeline does.
    """

    @inherit_config(DDIMScheduler)
    def __init__(
        self,
        *,
        aggregation: str | dict[str, str] = "bridge",
        modality_weights: float | dict[str, float] = 0.5,
        alpha_scaling: str = "schedule",
        prediction_type: str = "total_noise",
        **parent_arguments,
    ):
        super().__init__(prediction_type=prediction_type, **parent_arguments)
        self._init_process()

    def _rebuild_tables(self) -> None:
        if not self.config.set_alpha_to_one:
            self.final_alpha_cumprod = self.alphas_cumprod[0]

    def _alpha_bars(self, timestep: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        previous = timestep - self.config.num_train_timesteps // self.num_inference_steps
        return (
            self.alphas_cumprod[timestep],
            self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        *,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> MultimodalSchedulerOutput | tuple:
        """One DDIM step; arguments as diffusers' [`DDIMScheduler.step`], and `encodings`: what is (expected to be) in
        z_t, name -> (B, C_z, H, W).
        """
        return self._shifted_step(
            super().step,
            model_output,
            timestep,
            sample,
            encodings,
            return_dict,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
            generator=generator,
            variance_noise=variance_noise,
        )
