"""Any-subset inference: give any modalities, get the rest."""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import BaseOutput, is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor

from ..configuration import KnownArgumentsMixin
from ..modalities import ANCHOR, Presence
from ..modalities.image import pixels_to_tensor, tensor_to_pixels
from ..models import MultimodalUNet2DModel
from ..schedulers import MultimodalDDIMScheduler, MultimodalDDPMScheduler, MultimodalDPMSolverMultistepScheduler
from .components import check_components
from .denoiser import SubsetDenoiser
from .latent_space import decode_latents, downscale_factor, encode_pixels
from .loading import check_index
from .sharing import SharedPipeline


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DISCRETE_MODES = ("expected", "commit", "draw_first")


def _is_count(value: Any) -> bool:
    """A positive integer of Python or numpy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    """A finite number of Python or numpy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class MultimodalMultitaskPipelineOutput(BaseOutput):
    """What was generated, row by row; what was given comes back as it was given.

    Args:
        images: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), in [0, 1]; latents (B, C_z, H, W) with
            `output_type="latent"`.
        modalities: name -> values: class names, masks, images, vectors; tensors with `output_type="pt"`.
        confidences: name -> class probabilities (B, K) of a label or (B, K, H, W) of a mask, tensors, beside the hard
            values above.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    modalities: dict[str, Any]
    confidences: dict[str, torch.Tensor]


class MultimodalMultitaskPipeline(KnownArgumentsMixin, SharedPipeline):
    """Generate an image and its aligned data jointly, or any of them given the others.

    Args:
        unet: the [`MultimodalUNet2DModel`].
        scheduler: one of the multimodal schedulers; ancestral (DDPM) is the default of checkpoints.
        vae: an autoencoder whose latents are the anchor; None to diffuse pixels. Aligned maps (masks, depth, ...) have
            the height and width of the latents then, going in and coming out, and the scheduler needs
            `clip_sample=False`.

    Raises:
        TypeError: if the UNet or the scheduler is none of ours.
        ValueError: if its weights do not fit the modalities of the UNet, or a modality is made of pixels beside a VAE.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: MultimodalUNet2DModel,
        scheduler: MultimodalDDPMScheduler | MultimodalDDIMScheduler | MultimodalDPMSolverMultistepScheduler,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        check_components(self.unet, self.scheduler, self.vae)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> "MultimodalMultitaskPipeline":
        """[`DiffusionPipeline.from_pretrained`], which looks at what it was given before it fetches the weights.

        Weights are read from safetensors files only, unless `use_safetensors=False`.

        Raises:
            OSError: no such folder, repo, revision or file, or one that is damaged.
            ValueError: the checkpoint of another pipeline, or of a newer version of this package.
        """
        source = str(pretrained_model_name_or_path)
        check_index(cls, source, kwargs)
        defaults = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()}
        return super().from_pretrained(source, **defaults | kwargs)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        given: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float | Mapping[str, float] = 1.0,
        outputs: list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (as in diffusers)
        discrete: str = "expected",
        commit_threshold: float = 0.8,
        use_clipped_model_output: bool = True,
    ) -> MultimodalMultitaskPipelineOutput | tuple:
        """Generate what is not given.

        Args:
            given: name -> a value, or a list with one value per row: class names or indices, PIL images, arrays (H, W,
                C) or tensors (C, H, W), masks of class indices (H, W), vectors. "image" asks for perception: the rest
                is read off the image in one call of the network.
            batch_size: rows to generate. With n given rows, a multiple of n: several samples for each; 1 means n.
            num_inference_steps: denoising steps.
            guidance_scale: how strongly to follow what is given (against not knowing it), one scale or one by name; 1
                is no guidance.
            outputs: the modalities wanted, all by default; others count as absent.
            generator: one, or one for each row.
            latents: (B, C_z, H, W) initial noise.
            eta: the stochasticity of DDIM; other schedulers ignore it.
            output_type: "pil", "np", "pt", or "latent".
            return_dict: else a tuple (images, modalities, confidences).
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; what it returns
                replaces the latents.
            callback_on_step_end_tensor_inputs: the tensors the callback gets.
            discrete: how a discrete modality joins the chain: "expected" (by its expected encoding), "commit" (once
                its probability exceeds `commit_threshold`, it counts as given), or "draw_first" (a categorical one is
                drawn from its prior, by one more call of the network, and the rest generated given it).
            commit_threshold: in (0, 1).
            use_clipped_model_output: whether DDIM takes the noise that goes with the estimate of z_0 where that is
                clipped; other schedulers ignore it. False, the default of diffusers' pipeline, gets worse from some 50
                steps on if `eta` is 0.

        Returns:
            [`MultimodalMultitaskPipelineOutput`].

        Raises:
            ValueError, TypeError: for an unknown name, class, shape, dtype, range or batch size; the message names the
                argument, the value and what is accepted.
        """
        device = self._execution_device
        check_components(self.unet, self.scheduler, self.vae)
        scales = self._check_inputs(
            given, num_inference_steps, guidance_scale, outputs, output_type, discrete, commit_threshold,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        inputs, batch_size = self._read_given(given or {}, batch_size, device)
        states = self._initial_states(inputs, outputs, batch_size, device)
        denoiser = SubsetDenoiser(self.unet, self.scheduler, inputs, states, scales)
        latents = self._prepare_latents(batch_size, generator, latents, device)

        if ANCHOR in inputs:
            self._num_timesteps = 1
            latents, predictions = denoiser.perceive(latents)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            timesteps = self.scheduler.timesteps
            self._num_timesteps = len(timesteps)
            step_arguments = self._step_arguments(
                generator=generator, eta=eta, use_clipped_model_output=use_clipped_model_output
            )
            latents = latents * self.scheduler.init_noise_sigma
            if discrete == "draw_first":
                denoiser.draw(latents, timesteps[0], generator)

            with self.progress_bar(total=len(timesteps)) as progress_bar:
                for i, t in enumerate(timesteps):
                    # 1. predict the anchor and every modality
                    model_input = self.scheduler.scale_model_input(latents, t)
                    model_output, predictions, encodings = denoiser(model_input, t)
                    # 2. z_t -> z_{t-1}, around the shift of the expected encodings
                    latents = self.scheduler.step(
                        model_output, t, latents, encodings=encodings, **step_arguments
                    ).prev_sample
                    if discrete == "commit":
                        denoiser.commit(predictions, commit_threshold)
                    if callback_on_step_end is not None:
                        tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                        latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)
                    progress_bar.update()

        images = self._decode(latents, denoiser, given or {}, output_type)
        modalities, confidences = self._read_predictions(denoiser, predictions, outputs, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, modalities, confidences
        return MultimodalMultitaskPipelineOutput(images=images, modalities=modalities, confidences=confidences)

    def _check_inputs(
        self,
        given,
        num_inference_steps,
        guidance_scale,
        outputs,
        output_type,
        discrete,
        commit_threshold,
        tensor_inputs,
    ) -> dict[str, float]:
        """Refuse what cannot be meant; returns the guidance scale of every modality."""
        names = list(self.unet.modality_modules)

        def check(argument: str, values: Any, accepted: list) -> None:
            for value in values:
                if value not in accepted:
                    raise ValueError(f"`{argument}` has {value!r}; accepted: {', '.join(map(repr, accepted))}.")

        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"`given` is a {type(given).__name__}; accepted: a dict, name -> value.")
        check("given", given or {}, [ANCHOR, *names])
        check("outputs", [outputs] if isinstance(outputs, str) else outputs or [], [ANCHOR, *names])
        check("output_type", [output_type], OUTPUT_TYPES)
        check("discrete", [discrete], DISCRETE_MODES)
        check("callback_on_step_end_tensor_inputs", tensor_inputs or [], self._callback_tensor_inputs)
        check("guidance_scale", guidance_scale if isinstance(guidance_scale, Mapping) else [], names)
        if isinstance(outputs, str):
            raise TypeError(f"`outputs` is the string {outputs!r}; accepted: a list of names.")
        if not _is_count(num_inference_steps):
            raise ValueError(f"`num_inference_steps` is {num_inference_steps!r}; accepted: a positive integer.")
        limit = self.scheduler.config.num_train_timesteps
        if num_inference_steps > limit and ANCHOR not in (given or {}):
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}; accepted: 1 to {limit}, as trained.")
        if not _is_number(commit_threshold) or not 0 < commit_threshold < 1:
            raise ValueError(f"`commit_threshold` is {commit_threshold!r}; accepted: a number between 0 and 1.")
        scales = guidance_scale if isinstance(guidance_scale, Mapping) else dict.fromkeys(names, guidance_scale)
        for scale in scales.values():
            if not _is_number(scale):
                raise ValueError(
                    f"`guidance_scale` has {scale!r}; accepted: a finite number, or one by modality name."
                )
        return dict(scales)

    def _read_given(
        self, given: Mapping[str, Any], batch_size: int, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Users' values -> input tensors with `batch_size` rows, several samples of a row standing together."""
        if not _is_count(batch_size):
            raise ValueError(f"`batch_size` is {batch_size!r}; accepted: a positive integer.")
        inputs = {name: self._read_values(name, value) for name, value in given.items()}
        rows = max((len(tensor) for tensor in inputs.values()), default=1)
        for name, tensor in inputs.items():
            if len(tensor) not in (1, rows):
                raise ValueError(f"`given[{name!r}]` has {len(tensor)} rows; accepted: 1 or {rows}, as others have.")
        batch_size = rows if batch_size == 1 else batch_size
        if batch_size % rows:
            raise ValueError(
                f"`batch_size` is {batch_size} for {rows} given rows; accepted: 1 or a multiple of {rows}."
            )
        inputs = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in inputs.items()}
        inputs = {name: t.repeat_interleave(batch_size // rows, dim=0).to(device) for name, t in inputs.items()}
        if ANCHOR in inputs:
            inputs[ANCHOR] = self._encode_image(inputs[ANCHOR])
        return inputs, batch_size

    def _read_values(self, name: str, value: Any) -> torch.Tensor:
        """One value, a list of values, or a tensor or array of either -> (n, *input_shape)."""
        modality = None if name == ANCHOR else self.unet.modality_modules[name]
        input_dims = 3 if modality is None else len(modality.input_shape)
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > input_dims:
            value = list(value)
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"`given[{name!r}]` is empty; accepted: a value, or a list of values.")
        try:
            if modality is None:
                return torch.stack([pixels_to_tensor(value, *self._pixel_shape()) for value in values])
            return modality.to_tensor(values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`given[{name!r}]`: {error}") from error

    def _latent_shape(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _pixel_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of images."""
        height, width = self._latent_shape()
        if self.vae is None:
            return self.unet.config.in_channels, height, width
        factor = downscale_factor(self.vae)
        return self.vae.config.in_channels, height * factor, width * factor

    def _initial_states(
        self, inputs: Mapping[str, torch.Tensor], outputs: list[str] | None, batch_size: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        wanted = Presence.QUERIED if ANCHOR in inputs else Presence.JOINT

        def state(name: str) -> Presence:
            if name in inputs:
                return Presence.GIVEN
            asked_for = name == ANCHOR or (
                self.unet.modality_modules[name].joint and (outputs is None or name in outputs)
            )
            return wanted if asked_for else Presence.ABSENT

        return {
            name: torch.full((batch_size,), int(state(name)), dtype=torch.long, device=device)
            for name in [ANCHOR, *self.unet.modality_modules]
        }

    def _prepare_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        shape = (batch_size, self.unet.total_channels, *self._latent_shape())
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of {len(generator)} for a batch of {batch_size}; give one per row."
            )
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        if not torch.is_tensor(latents):
            raise TypeError(f"`latents` is a {type(latents).__name__}; accepted: a tensor of shape {shape}.")
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has the shape {tuple(latents.shape)}; accepted: {shape}.")
        return latents.to(device, self.unet.dtype)

    def _step_arguments(self, **arguments) -> dict[str, Any]:
        """Those that the scheduler's `step` knows."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in arguments.items() if name in accepted}

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, C, H, W) in [-1, 1] -> the anchor z_0."""
        return (pixels if self.vae is None else encode_pixels(self.vae, pixels)).to(self.unet.dtype)

    def _decode(
        self, latents: torch.Tensor, denoiser: SubsetDenoiser, given: Mapping[str, Any], output_type: str
    ) -> Any:
        """Latents -> images; a given image comes back in its own pixels."""
        if output_type == "latent":
            return latents
        pixels = latents[:, : self.unet.config.in_channels]
        if ANCHOR in given:
            pixels = self._read_values(ANCHOR, given[ANCHOR])
            pixels = pixels.repeat_interleave(len(latents) // len(pixels), dim=0)
        elif self.vae is not None:
            pixels = decode_latents(self.vae, pixels)
        else:
            pixels = denoiser.impose_on_anchor(pixels)
        if output_type == "pt":
            return (pixels / 2 + 0.5).clamp(0, 1)
        images = [tensor_to_pixels(image, output_type) for image in pixels]
        return np.stack(images) if output_type == "np" else images

    def _read_predictions(
        self,
        denoiser: SubsetDenoiser,
        predictions: dict[str, torch.Tensor],
        outputs: list[str] | None,
        output_type: str,
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Values, given or recovered, and class probabilities of what was recovered."""
        values, confidences = {}, {}
        for name, modality in self.unet.modality_modules.items():
            if bool((denoiser.states[name] == Presence.ABSENT).all()) or (outputs is not None and name not in outputs):
                continue
            inputs = denoiser.values(name, predictions[name])
            values[name] = modality.to_values(inputs, "pt" if output_type == "latent" else output_type)
            probabilities = modality.probabilities(predictions[name])
            if probabilities is not None and name not in denoiser.user_given:
                confidences[name] = probabilities
        return values, confidences
