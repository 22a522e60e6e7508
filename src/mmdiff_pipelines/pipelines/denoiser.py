"""The network together with what one run knows of every modality: its state, and its value where it is given."""

from collections.abc import Mapping

import torch

from ..modalities import ANCHOR, Presence
from ..models import MultimodalUNet2DModel


class SubsetDenoiser:
    """Denoise given any subset of the modalities, with guidance.

    What is given is carried by the chain like what is joint, and the network overwrites its channels with the clean
    encoding; where a pass of guidance withholds it, its share of M_t is taken out of z_t, so that the network sees
    what it was trained on for absent modalities: noise.

    Args:
        unet, scheduler: those of the pipeline.
        inputs: name -> (B, ...) of what the user gives.
        states: name -> (B,) long of [`Presence`], for every modality and the image.
        scales: name -> guidance scale.
    """

    withheld_state = Presence.ABSENT

    def __init__(
        self,
        unet: MultimodalUNet2DModel,
        scheduler,
        inputs: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
        scales: Mapping[str, float],
    ):
        self.unet, self.scheduler, self.scales = unet, scheduler, scales
        self.inputs, self.states = dict(inputs), dict(states)
        self.encodings = {name: encoding.to(unet.dtype) for name, encoding in unet.encode(inputs).items()}
        self.user_given = frozenset(inputs)

    def __call__(
        self, sample: torch.Tensor, t: int | torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(B, C_z, H, W) at a scalar timestep -> the guided output for the anchor (B, C, H, W), the predictions, and
        the encodings that z_t is expected to carry.

        Guidance goes through a chain of growing knowledge: with estimates o_0 of z_0 (knowing what has scale 1), ...,
        o_K (everything given), it is o_0 + sum_k s_k (o_k - o_{k-1}); with one scale, classifier-free guidance.
        """
        groups = self._guidance_groups()
        withheld = [set().union(*groups[k:]) for k in range(len(groups) + 1)]
        samples = [self._without(sample, t, names) for names in withheld]
        outputs, predictions = self._passes(samples, t, withheld)
        encodings = self._expected_encodings(predictions)
        constraining = [name for name in self.inputs if self._constrains_anchor(name)]
        if not groups and not constraining:
            return outputs[0], predictions, encodings

        z_0s = []
        for names, pass_sample, output in zip(withheld, samples, outputs, strict=True):
            known = {name: encoding for name, encoding in encodings.items() if name not in names}
            z_0s.append(self.scheduler.predict_original(output, t, pass_sample, known))
        z_0 = z_0s[0]
        for group, previous, current in zip(groups, z_0s[:-1], z_0s[1:], strict=True):
            z_0 = z_0 + self.scales[min(group)] * (current - previous)
        z_0 = self.impose_on_anchor(z_0)
        model_output = self.scheduler.model_output_for(z_0, t, sample, encodings)
        return model_output.to(sample.dtype), predictions, encodings

    def _guidance_groups(self) -> list[set[str]]:
        """Given modalities by guidance scale; those with scale 1 are part of every pass."""
        groups: dict[float, set[str]] = {}
        for name, scale in self.scales.items():
            if name in self.encodings and scale != 1:
                groups.setdefault(scale, set()).add(name)
        return list(groups.values())

    def _without(self, sample: torch.Tensor, t: int | torch.Tensor, names: set[str]) -> torch.Tensor:
        """z_t less the share of the given rows of some modalities in M_t."""
        if not names:
            return sample
        given = {name: self.encodings[name] * self._given(name).view(-1, 1, 1, 1) for name in names}
        return sample - self.scheduler.aggregate(given, t).to(sample.dtype)

    def _given(self, name: str) -> torch.Tensor:
        return self.states[name] == Presence.GIVEN

    def _passes(
        self, samples: list[torch.Tensor], t: int | torch.Tensor, withheld: list[set[str]]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """One call of the network for all passes; in each, the withheld modalities count as absent where given.

        Returns the output for the anchor of every pass, and the predictions of the last, which knows everything.
        """
        count = len(samples)

        def repeated(tensors: list[torch.Tensor]) -> torch.Tensor:
            return tensors[0] if count == 1 else torch.cat(tensors)

        def states_of(name: str) -> torch.Tensor:
            state = self.states[name]
            unknown = torch.where(self._given(name), int(self.withheld_state), state)
            return repeated([unknown if name in names else state for names in withheld])

        output = self.unet(
            repeated(samples),
            t,
            encodings={name: repeated([encoding] * count) for name, encoding in self.encodings.items()},
            states={name: states_of(name) for name in self.states},
        )
        predictions = {name: prediction.chunk(count)[-1] for name, prediction in output.predictions.items()}
        return list(output.sample.chunk(count)), predictions

    def _expected_encodings(self, predictions: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What z_t carries: the expected encoding where joint, the true one where given, nothing elsewhere."""
        carried = {}
        for name, expected in self.unet.expected_encodings(predictions).items():
            joint = (self.states[name] == Presence.JOINT).view(-1, 1, 1, 1)
            encoding = torch.where(joint, expected, torch.zeros_like(expected))
            if name in self.encodings:
                encoding = torch.where(self._given(name).view(-1, 1, 1, 1), self.encodings[name], encoding)
            if name in self.encodings or bool(joint.any()):
                carried[name] = encoding
        return carried

    def perceive(self, noise: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read what is queried off the given image, in one call at the lowest noise level: latents and predictions."""
        timesteps = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
        in_z = {name: encoding for name, encoding in self.encodings.items() if name != ANCHOR}
        sample = self.scheduler.add_noise(self.inputs[ANCHOR], noise, timesteps, encodings=in_z)
        output = self.unet(sample, timesteps, encodings=self.encodings, states=self.states)
        return self.unet.impose_given(sample, self.encodings, self.states), output.predictions

    def draw(
        self, sample: torch.Tensor, t: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> None:
        """Draw the joint modalities that can be drawn from what their heads say at t; they are given from then on."""
        _, predictions, _ = self(sample, t)
        for name, prediction in predictions.items():
            values = self._sample(name, prediction, generator)
            if values is not None:
                self._give(name, self.states[name] == Presence.JOINT, values)

    def _sample(
        self, name: str, prediction: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor | None:
        modality = self.unet.modality_modules[name]
        if not isinstance(generator, list):
            return modality.sample(prediction, generator)
        rows = [modality.sample(row[None], g) for row, g in zip(prediction, generator, strict=True)]
        return None if rows[0] is None else torch.cat(rows)

    def commit(self, predictions: Mapping[str, torch.Tensor], threshold: float) -> None:
        """Joint modalities whose most likely value is surer than `threshold` are given from then on."""
        for name, prediction in predictions.items():
            modality = self.unet.modality_modules[name]
            confidence = modality.confidence(prediction)
            if confidence is not None:
                sure = (self.states[name] == Presence.JOINT) & (confidence > threshold)
                self._give(name, sure, modality.estimate(prediction))

    def _give(self, name: str, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Make `values` (B, ...) the given ones in `rows` (B,) bool."""
        if not bool(rows.any()):
            return
        self.inputs[name] = self._where(rows, values, self.inputs.get(name, values))
        self.states[name] = torch.where(rows, int(Presence.GIVEN), self.states[name])
        self.encodings.update(
            {n: e.to(self.unet.dtype) for n, e in self.unet.encode({name: self.inputs[name]}).items()}
        )

    @staticmethod
    def _where(rows: torch.Tensor, values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return torch.where(rows.view(-1, *[1] * (values.ndim - 1)), values, others)

    def values(self, name: str, prediction: torch.Tensor) -> torch.Tensor:
        """The value of a modality, (B, *input_shape): as given, or the estimate of its head."""
        estimate = self.unet.modality_modules[name].estimate(prediction)
        if name not in self.inputs:
            return estimate
        return self._where(self._given(name), self.inputs[name], estimate)

    def _constrains_anchor(self, name: str) -> bool:
        return name != ANCHOR and self.unet.modality_modules[name].constrains_anchor

    def impose_on_anchor(self, z_0: torch.Tensor) -> torch.Tensor:
        """What the given modalities fix of z_0 itself: the known pixels of inpainting."""
        for name, values in self.inputs.items():
            if self._constrains_anchor(name):
                z_0 = self.unet.modality_modules[name].impose_on_anchor(z_0, values)
        return z_0
