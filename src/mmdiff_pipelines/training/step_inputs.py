"""From a batch of data to the arguments of the objective: draws, augmentation, states."""

import argparse
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from ..modalities import ANCHOR
from .augmentation import crop_rows, flip_rows, forbidden_flips, may_flip
from .components import Components
from .states import StepDraws, assign_states, draw_step, make_inputs, step_seed


Tensors = Mapping[str, torch.Tensor]


class StepInputs:
    """Makes the keyword arguments of [`MultitaskObjective`] for this process's rows of a batch.

    Args:
        args: of `parse_args`.
        components: the model and the scheduler that they are for.
        accelerator: knows which rows of the global batch are this process's.
    """

    def __init__(self, args: argparse.Namespace, components: Components, accelerator: Accelerator):
        self.args, self.components, self.accelerator = args, components, accelerator
        self.modules = components.unet.modality_modules
        self.joint = {name: module.joint for name, module in self.modules.items()}
        self.no_flip, self.no_flip_classes = forbidden_flips(args.no_flip_labels, self.modules)
        self.global_batch_size = args.train_batch_size * accelerator.num_processes
        self.first_row = args.train_batch_size * accelerator.process_index

    def __call__(self, batch: Mapping[str, Tensors], micro_step: int) -> dict:
        """`micro_step` counts the batches of the run, from 0; it decides all randomness."""
        seed = step_seed(self.args.seed, micro_step)
        torch.manual_seed(seed + self.accelerator.process_index)  # dropout
        generator = torch.Generator().manual_seed(seed)
        draws = draw_step(
            generator,
            self.global_batch_size,
            self.components.latent_shape,
            self.components.scheduler.config.num_train_timesteps,
            len(self.modules),
        ).rows(self.first_row, self.first_row + self.args.train_batch_size)
        draws = send_to_device(draws, self.accelerator.device)
        inputs = self.augment(batch["inputs"], batch["available"], draws)
        inputs, available = self._make(inputs, batch["available"], generator)
        states = assign_states(draws, available, self.joint, self.args.perception_share, self.args.state_shares)
        return {"inputs": inputs, "timesteps": draws.timesteps, "noise": draws.noise, "states": states}

    def augment(self, inputs: Tensors, available: Tensors, draws: StepDraws) -> dict[str, torch.Tensor]:
        """Flip and crop the image and all maps alike."""
        inputs = dict(inputs)
        spatial = [name for name in inputs if name == ANCHOR or self.modules[name].spatial]
        if self.args.random_flip:
            flipped = (draws.flip < 0.5) & may_flip(inputs, available, self.no_flip, self.no_flip_classes)
            inputs |= {name: flip_rows(inputs[name], flipped) for name in spatial}
        if self.args.random_crop:
            inputs |= {name: crop_rows(inputs[name], draws.crop, self.components.size) for name in spatial}
        return inputs

    def _make(
        self, inputs: Tensors, available: Tensors, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Add what is made of the image; all modalities in the model's order."""
        made = {
            name: make_inputs(module, inputs[ANCHOR], self.first_row, self.global_batch_size, generator)
            for name, module in self.modules.items()
            if module.from_image
        }
        inputs, available = {**inputs, **made}, {**available, **dict.fromkeys(made, available[ANCHOR])}
        return {n: inputs[n] for n in [ANCHOR, *self.modules]}, {n: available[n] for n in self.modules}
