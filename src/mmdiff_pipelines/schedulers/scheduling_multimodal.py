"""What the multimodal schedulers add to diffusers' own: the shift M_t around an ordinary chain y_t = z_t - M_t."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from .. import process
from ..configuration import KnownArgumentsMixin


ALPHA_SCALINGS = ("schedule", "paper")
# Without a modality, total noise is the noise of DDPM.
PARENT_PREDICTION_TYPE = {"total_noise": "epsilon"}


@dataclass
class MultimodalSchedulerOutput(SchedulerOutput):
    """One step.

    Args:
        prev_sample: (B, C_z, H, W), z at the next, less noisy timestep.
        pred_original_sample: (B, C, H, W), the estimate of z_0 on the anchor's channels, clipped as the config says.
    """

    pred_original_sample: torch.Tensor | None = None


def pad_channels(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """Append zero channels up to `channels`: on reserved channels z_0 = 0."""
    return F.pad(tensor, (0, 0, 0, 0, 0, channels - tensor.shape[1]))


class MultimodalSchedulerMixin(KnownArgumentsMixin):
    """Aggregation of modalities into the forward process, and the step in y; mixed into a diffusers scheduler.

    `encodings` is everywhere a dict name -> (B, C_z, H, W), zero outside the modality's channels and in the rows that
    do not carry it.
    """

    def _init_process(self) -> None:
        """Check our arguments, and rebuild the noise tables where the paper's literal scaling is asked for."""
        config = self.config
        if config.prediction_type not in process.PREDICTION_TYPES:
            accepted = ", ".join(process.PREDICTION_TYPES)
            raise ValueError(f"`prediction_type` is {config.prediction_type!r}; accepted: {accepted}.")
        if config.alpha_scaling not in ALPHA_SCALINGS:
            accepted = ", ".join(ALPHA_SCALINGS)
            raise ValueError(f"`alpha_scaling` is {config.alpha_scaling!r}; accepted: {accepted}.")
        if config.rescale_betas_zero_snr and config.prediction_type not in ("sample", "v_prediction"):
            raise ValueError(
                "`rescale_betas_zero_snr` leaves no signal at the last timestep: it needs `prediction_type` "
                f"'v_prediction' or 'sample', not {config.prediction_type!r}."
            )
        aggregations = config.aggregation.values() if isinstance(config.aggregation, dict) else [config.aggregation]
        for aggregation in aggregations:
            process.gain(aggregation, 1.0, torch.ones(1))
        if config.alpha_scaling == "paper":
            self.alphas = process.paper_alphas(self.alphas, self._num_modalities())
            self.betas = 1 - self.alphas
            self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
            self._rebuild_tables()

    def _rebuild_tables(self) -> None:
        """Recompute the tables that the parent derives from `alphas_cumprod`."""

    def _num_modalities(self) -> int:
        for setting in (self.config.modality_weights, self.config.aggregation):
            if isinstance(setting, dict):
                return len(setting)
        raise ValueError(
            "`alpha_scaling='paper'` divides by the number of modalities plus one: "
            "give `modality_weights` as a dict by modality name."
        )

    def _alpha_bars(self, timestep: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_bar of the current step of the solver and of the one it goes to (1 at the data)."""
        raise NotImplementedError

    def _table(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) timesteps of the training grid -> their alpha_bar."""
        self.alphas_cumprod = self.alphas_cumprod.to(timesteps.device)
        return self.alphas_cumprod[timesteps]

    def _broadcast_table(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(B,) timesteps -> alpha_bar_t (B, 1, 1, 1), in at least float32."""
        return self._table(timesteps).view(-1, 1, 1, 1).to(torch.promote_types(dtype, torch.float32))

    def _weight_arguments(self, name: str) -> tuple[str, float]:
        def of(argument: str) -> str | float:
            setting = getattr(self.config, argument)
            if not isinstance(setting, dict):
                return setting
            if name not in setting:
                raise ValueError(f"`{argument}` has no entry for modality {name!r}; it has {sorted(setting)}.")
            return setting[name]

        return of("aggregation"), of("modality_weights")

    def _shift(self, encodings: dict[str, torch.Tensor] | None, alpha_bar_t: torch.Tensor) -> torch.Tensor | float:
        """M_t = sum_i W_t^i e_i of (2)."""
        shift_t = 0.0
        for name, encoding in (encodings or {}).items():
            weight_t = process.marginal_weight(*self._weight_arguments(name), alpha_bar_t)
            shift_t = shift_t + weight_t.to(encoding.device, encoding.dtype) * encoding
        return shift_t

    def marginal_weight(self, name: str, timesteps: torch.Tensor) -> torch.Tensor:
        """W_t of (2) for one modality: (B,) timesteps -> (B,)."""
        return process.marginal_weight(*self._weight_arguments(name), self._table(timesteps))

    def step_weight(self, name: str, timesteps: torch.Tensor) -> torch.Tensor:
        """w_t of (3) for one modality, on the training grid: (B,) timesteps -> (B,)."""
        self.alphas_cumprod = self.alphas_cumprod.to(timesteps.device)
        return process.step_weights(*self._weight_arguments(name), self.alphas_cumprod)[timesteps]

    def aggregate(self, encodings: dict[str, torch.Tensor], timesteps: int | torch.Tensor) -> torch.Tensor:
        """M_t of (2): (B, C_z, H, W), at (B,) timesteps of the training grid, or at the scalar one of the next `step`.

        Raises:
            ValueError: if there is no encoding to aggregate, or a name has no weight.
        """
        if not encodings:
            raise ValueError("`encodings` is empty: there is nothing to aggregate.")
        return self._shift(encodings, self._at(timesteps))

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.IntTensor,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """A draw of the marginal (2).

        Args:
            original_samples: (B, C, H, W) anchor z_0.
            noise: (B, C_z, H, W), C_z >= C; the channels beyond C are reserved for modalities.
            timesteps: (B,) of the training grid.
            encodings: the modalities that are in z.

        Returns:
            z_t, (B, C_z, H, W).

        Raises:
            ValueError: if `noise` has not the channels of an encoding, with which it would be broadcast.
        """
        for name, encoding in (encodings or {}).items():
            if encoding.shape[1] != noise.shape[1]:
                raise ValueError(
                    f"`noise` has {noise.shape[1]} channels; accepted: {encoding.shape[1]}, as the encoding of {name!r}."
                )
        if not encodings and noise.shape[1] == original_samples.shape[1]:
            return super().add_noise(original_samples, noise, timesteps)
        alpha_bar_t = self._broadcast_table(timesteps, noise.dtype)
        z_0 = pad_channels(original_samples, noise.shape[1])
        mean, variance = process.marginal(z_0, self._shift(encodings, alpha_bar_t), alpha_bar_t)
        return (mean + variance.sqrt() * noise).to(noise.dtype)

    def get_target(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.IntTensor,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """What the network is to predict: (B, C, H, W), the anchor's channels only. Arguments as `add_noise`."""
        prediction_type = self.config.prediction_type
        channels = original_samples.shape[1]
        noise = noise[:, :channels]
        if prediction_type == "sample":
            return original_samples
        if prediction_type == "epsilon":
            return noise
        alpha_bar_t = self._broadcast_table(timesteps, noise.dtype)
        target = noise
        if encodings:
            anchor_encodings = {name: encoding[:, :channels] for name, encoding in encodings.items()}
            target = process.total_noise(noise, self._shift(anchor_encodings, alpha_bar_t), alpha_bar_t)
        if prediction_type == "v_prediction":
            target = alpha_bar_t.sqrt() * target - (1 - alpha_bar_t).sqrt() * original_samples
        return target.to(noise.dtype)

    def posterior(
        self,
        z_t: torch.Tensor,
        z_0: torch.Tensor,
        timesteps: torch.Tensor,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(4) on the training grid: mean (B, C_z, H, W) and variance (B, 1, 1, 1) of q(z_{t-1} | z_t, z_0, X).

        Args:
            z_t: (B, C_z, H, W).
            z_0: (B, C, H, W).
            timesteps: (B,); at timestep 0 the mean is z_0 and the variance 0.
        """
        alpha_bar_t = self._broadcast_table(timesteps, z_t.dtype)
        previous = self._broadcast_table((timesteps - 1).clamp(min=0), z_t.dtype)
        alpha_bar_prev = torch.where(timesteps.view(-1, 1, 1, 1) > 0, previous, torch.ones_like(previous))
        shifts = self._shift(encodings, alpha_bar_t), self._shift(encodings, alpha_bar_prev)
        return process.posterior(z_t, pad_channels(z_0, z_t.shape[1]), *shifts, alpha_bar_t, alpha_bar_prev)

    def _at(self, timestep: int | torch.Tensor) -> torch.Tensor:
        """alpha_bar of (B,) training timesteps as (B, 1, 1, 1), or of the solver's current (scalar) one."""
        if torch.is_tensor(timestep) and timestep.ndim == 1:
            return self._broadcast_table(timestep, self.alphas_cumprod.dtype)
        return self._alpha_bars(timestep)[0]

    def predict_original(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The estimate of z_0 in a network's output, unclipped.

        Args:
            model_output: (B, C, H, W), the network's prediction.
            timestep: (B,) of the training grid, or the scalar that `step` is about to be called with.
            sample: (B, C_z, H, W), z_t.
            encodings: needed by `prediction_type="epsilon"` only.

        Returns:
            (B, C, H, W), at least float32.

        Raises:
            ValueError: where alpha_bar = 0 and the prediction type would divide by it.
        """
        return self._convert(process.predict_z_0, model_output, timestep, sample, encodings)

    def model_output_for(
        self,
        original_sample: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        encodings: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The network output that stands for `original_sample` at `sample`: the inverse of `predict_original`."""
        return self._convert(process.network_output, original_sample, timestep, sample, encodings)

    def _convert(
        self,
        conversion: Callable,
        tensor: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        encodings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        alpha_bar_t = self._at(timestep).to(sample.device)
        channels, shift_t = tensor.shape[1], 0.0
        if self.config.prediction_type == "epsilon":  # the one type that refers to y
            shift_t = self._shift(
                {name: e[:, :channels].to(dtype) for name, e in (encodings or {}).items()}, alpha_bar_t
            )
        return conversion(
            self.config.prediction_type,
            tensor.to(dtype),
            sample[:, :channels].to(dtype),
            torch.as_tensor(shift_t, dtype=dtype, device=sample.device),
            alpha_bar_t.to(dtype),
        )

    @contextmanager
    def _parent_sees(self, prediction_type: str, anchor_channels: int) -> Iterator[None]:
        """Let the parent's `step` read another prediction type from the config, for the time of one call."""
        config = self._internal_dict
        self._internal_dict = FrozenDict({**config, "prediction_type": prediction_type})
        self._anchor_channels = anchor_channels
        try:
            yield
        finally:
            self._internal_dict = config

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding by the quantiles of the anchor's channels alone."""
        anchor, reserved = sample[:, : self._anchor_channels], sample[:, self._anchor_channels :]
        return torch.cat([super()._threshold_sample(anchor), reserved], dim=1)

    def _shifted_step(
        self,
        parent_step: Callable,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        encodings: dict[str, torch.Tensor] | None,
        return_dict: bool,
        **parent_arguments,
    ) -> MultimodalSchedulerOutput | tuple:
        """One step of the parent on y_t = z_t - M_t, given z_0; without modalities, its own step, untouched."""
        channels, total_channels = model_output.shape[1], sample.shape[1]
        if not encodings and channels >= total_channels:
            prediction_type = self.config.prediction_type
            with self._parent_sees(PARENT_PREDICTION_TYPE.get(prediction_type, prediction_type), total_channels):
                return parent_step(model_output, timestep, sample, return_dict=return_dict, **parent_arguments)
        if channels > total_channels:
            raise ValueError(
                f"`model_output` has {channels} channels and `sample` {total_channels}: with modalities, "
                "`model_output` has the anchor's channels only (no learned variance)."
            )
        alpha_bar_t, alpha_bar_prev = self._alpha_bars(timestep)
        z_0 = self.predict_original(model_output, timestep, sample, encodings)
        y_t = sample.to(z_0.dtype) - self._shift(encodings, alpha_bar_t)
        with self._parent_sees("sample", channels):
            y_prev, *rest = parent_step(
                pad_channels(z_0, total_channels), timestep, y_t, return_dict=False, **parent_arguments
            )
        prev_sample = (y_prev + self._shift(encodings, alpha_bar_prev)).to(sample.dtype)
        # multistep solvers return no z_0, but keep it as the newest entry of their history
        pred_original_sample = (rest[0] if rest else self.model_outputs[-1])[:, :channels].to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return MultimodalSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)
