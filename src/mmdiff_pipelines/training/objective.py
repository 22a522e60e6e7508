"""What accelerate wraps: the model, the learned task weights and the loss, as one module."""

from collections.abc import Mapping

import torch
from torch import nn

from ..modalities import ANCHOR
from ..models import MultimodalUNet2DModel
from ..objective import UncertaintyWeights, multitask_loss


class MultitaskObjective(nn.Module):
    """`multitask_loss` as a module, so that encoders, heads, trunk and task weights are one model for DDP.

    Losses of rows without one are multiplied by zero rather than skipped, so every parameter always has a gradient.

    Args:
        unet: the model.
        scheduler: a multimodal scheduler.
        task_weights: name -> lambda, or "uncertainty" to learn them.
        snr_gamma, query_weight: see [`multitask_loss`].
    """

    def __init__(
        self,
        unet: MultimodalUNet2DModel,
        scheduler,
        task_weights: Mapping[str, float] | str,
        snr_gamma: float | None = None,
        query_weight: float = 1.0,
    ):
        super().__init__()
        self.unet, self.scheduler, self.snr_gamma, self.query_weight = unet, scheduler, snr_gamma, query_weight
        self.tasks = [ANCHOR, *(name for name, modality in unet.modality_modules.items() if modality.joint)]
        learned = task_weights == "uncertainty"
        self.uncertainty = UncertaintyWeights(self.tasks) if learned else None
        self.task_weights = {} if learned else dict(task_weights)

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        states: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, a scalar, and its terms, name -> (B,). Arguments as [`multitask_loss`]."""
        task_weights = self.task_weights if self.uncertainty is None else self.uncertainty
        output = multitask_loss(
            self.unet,
            self.scheduler,
            inputs,
            timesteps,
            noise,
            states,
            task_weights,
            self.snr_gamma,
            self.query_weight,
        )
        return output.loss, {name: output.terms[name] for name in self.tasks}
