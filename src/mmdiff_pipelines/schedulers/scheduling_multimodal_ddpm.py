"""Ancestral sampling of the multimodal process: diffusers' DDPM on y_t = z_t - M_t."""

import torch
from diffusers import DDPMScheduler

from ..configuration import inherit_config
from .scheduling_multimodal import MultimodalSchedulerMixin, MultimodalSchedulerOutput


class MultimodalDDPMScheduler(MultimodalSchedulerMixin, DDPMScheduler):
    """diffusers' [`DDPMScheduler`] for the multimodal process; its arguments, and:

    Args:
        aggregation: how a modality's weight W depends on alpha_bar: "bridge", "sqrt_bridge", "decay" (own channels
            only) or "none"; one value, or a dict by modality name.
        modality_weights: c, the scale of W; one value, or a dict by modality name.
        alpha_scaling: "schedule" (the noise schedule is that of a_t) or "paper" (a_t = alpha_t / (N + 1)).
        prediction_type: "total_noise", "v_prediction", "sample", or "epsilon" (the noise of the y-chain).

    Raises:
        ValueError: an unknown value, or zero terminal SNR with a prediction type that cannot have it.
    """

    @inherit_config(DDPMScheduler)
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

    def _alpha_bars(self, timestep: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        previous = self.previous_timestep(timestep)
        if self.config.alpha_scaling == "paper" and previous >= 0 and self.alphas_cumprod[previous] == 0:
            first = int((self.alphas_cumprod > 0).sum()) - 1
            raise ValueError(
                f"`timestep` is {int(timestep)}: alpha_bar is 0 there and at the step that it goes to, {int(previous)}, "
                f"by `alpha_scaling='paper'`, and their ratio is unknown; start at {first} or below."
            )
        return self.alphas_cumprod[timestep], self.alphas_cumprod[previous] if previous >= 0 else self.one

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        *,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> MultimodalSchedulerOutput | tuple:
        """One ancestral step from z_t to z_{t-1}, by (4).

        Args:
            model_output: (B, C, H, W), the network's prediction on the anchor's channels.
            timestep: the current timestep.
            sample: (B, C_z, H, W), z_t; channels beyond C are reserved, where z_0 = 0.
            encodings: what is (expected to be) in z_t, name -> (B, C_z, H, W).

        Raises:
            ValueError: where the paper's literal scaling has left alpha_bar = 0 on both sides of the step.
        """
        return self._shifted_step(
            super().step, model_output, timestep, sample, encodings, return_dict, generator=generator
        )
