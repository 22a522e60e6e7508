"""DPM-Solver++ sampling of the multimodal process: diffusers' multistep solver on y_t = z_t - M_t."""

import torch
from diffusers import DPMSolverMultistepScheduler

from ..configuration import inherit_config
from .scheduling_multimodal import MultimodalSchedulerMixin, MultimodalSchedulerOutput


ALGORITHM_TYPES = ("dpmsolver++", "sde-dpmsolver++")


class MultimodalDPMSolverMultistepScheduler(MultimodalSchedulerMixin, DPMSolverMultistepScheduler):
    """diffusers' [`DPMSolverMultistepScheduler`] for the multimodal process; its arguments, and those of
    [`MultimodalDDPMScheduler`]. Its history holds estimates of z_0, which no shift touches, so it stays right when the
    expected encodings change between steps.

    Raises:
        ValueError: an `algorithm_type` that keeps noise estimates ("dpmsolver", "sde-dpmsolver"), flow prediction, or
            a noise schedule that reaches alpha_bar = 0.
    """

    @inherit_config(DPMSolverMultistepScheduler)
    def __init__(
        self,
        *,
        aggregation: str | dict[str, str] = "bridge",
        modality_weights: float | dict[str, float] = 0.5,
        alpha_scaling: str = "schedule",
        prediction_type: str = "total_noise",
        **parent_arguments,
    ):
        algorithm_type = parent_arguments["algorithm_type"]
        if algorithm_type not in ALGORITHM_TYPES:
            raise ValueError(
                f"`algorithm_type` is {algorithm_type!r}: only the data-prediction variants are supported, "
                f"{' and '.join(map(repr, ALGORITHM_TYPES))}."
            )
        if parent_arguments["use_flow_sigmas"]:
            raise ValueError("`use_flow_sigmas` is not supported: the process is variance preserving.")
        super().__init__(prediction_type=prediction_type, **parent_arguments)
        self._init_process()

    def _rebuild_tables(self) -> None:
        if self.alphas_cumprod[-1] == 0:
            raise ValueError(
                "`alpha_scaling='paper'` takes alpha_bar to 0 on this noise schedule, where there is no log-SNR; "
                "use fewer timesteps, or MultimodalDDPMScheduler."
            )
        self.alpha_t = self.alphas_cumprod.sqrt()
        self.sigma_t = (1 - self.alphas_cumprod).sqrt()
        self.lambda_t = self.alpha_t.log() - self.sigma_t.log()
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def _alpha_bars(self, timestep: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.step_index is None:
            self._init_step_index(timestep)
        sigmas = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        return tuple(1 / (sigma**2 + 1) for sigma in sigmas)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        *,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> MultimodalSchedulerOutput | tuple:
        """One multistep update; arguments as diffusers' [`DPMSolverMultistepScheduler.step`], and `encodings`: what is
        (expected to be) in z_t, name -> (B, C_z, H, W).
        """
        return self._shifted_step(
            super().step,
            model_output,
            timestep,
            sample,
            encodings,
            return_dict,
            generator=generator,
            variance_noise=variance_noise,
        )
