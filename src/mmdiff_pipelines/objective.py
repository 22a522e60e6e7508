"""The objective of multimodal diffusion: the training loss, and the bound that it simplifies.

    L = L0 + L1 + L2 + L3
    L0  KL( q(z_T | z_0, X) || N(0, I) )                                 prior match
    L1  sum_{t>1} KL( q(z_{t-1} | z_t, z_0, X) || p(z_{t-1} | z_t) )     posterior match
    L2  -sum_i log p(x_i | z_t)                                          modality recovery
    L3  -log p(z_0 | z_1)                                                reconstruction

`multitask_loss` is the simplified form that trains (an MSE for L1 and L3, L2 at every t); `elbo` evaluates the bound.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_snr
from torch import nn

from .modalities import ANCHOR, Presence


@dataclass
class MultitaskLossOutput:
    """The loss and what it is made of.

    Args:
        loss: scalar, sum_i lambda_i mean(terms[i]), queried rows by `query_weight`; with learned weights, their
            log-variances too.
        terms: name -> (B,), "image" and one for each modality; 0 in the rows that carry no such loss.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


class UncertaintyWeights(nn.Module):
    """Task weights learned by homoscedastic uncertainty (Kendall et al., arXiv 1705.07115).

    The loss of task i becomes exp(-s_i) L_i + s_i / 2, whose minimum over s_i = log sigma_i^2 is at exp(s_i) = 2 L_i.

    Args:
        names: the tasks, "image" among them; only such as are recovered in training, for the weight of a loss that is
            always 0 grows without bound.
    """

    def __init__(self, names: list[str]):
        super().__init__()
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def combine(self, means: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Losses by task, scalars -> the weighted sum.

        Raises:
            ValueError: for a task that has no learned weight.
        """
        if unknown := set(means) - set(self.log_variances):
            raise ValueError(f"no learned weight for {sorted(unknown)}; there are {sorted(self.log_variances)}.")
        weighted = ((-self.log_variances[n]).exp() * mean + self.log_variances[n] / 2 for n, mean in means.items())
        return sum(weighted)


def carried(state: torch.Tensor) -> torch.Tensor:
    """Rows whose modality is in z: JOINT, and GIVEN (in shared space; own channels are overwritten anyway)."""
    return (state == Presence.JOINT) | (state == Presence.GIVEN)


def recovered(state: torch.Tensor) -> torch.Tensor:
    """Rows whose modality has a loss."""
    return (state == Presence.JOINT) | (state == Presence.QUERIED)


def known_in_part(model, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Rows in which a modality that constrains the image is given: (B,)."""
    known = torch.zeros_like(states[ANCHOR], dtype=torch.bool)
    for name, modality in model.modality_modules.items():
        if modality.constrains_anchor:
            known |= states[name] == Presence.GIVEN
    return known


def encodings_in_z(
    encodings: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The encodings that are aggregated into z_t: zero in rows that do not carry them."""
    return {
        name: encoding * carried(states[name]).view(-1, 1, 1, 1)
        for name, encoding in encodings.items()
        if name != ANCHOR
    }


def min_snr_weights(scheduler, timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
    """Min-SNR weights (Hang et al., arXiv 2303.09556) of the MSE on this scheduler's target: (B,).

    With `snr_gamma` infinite, any target has the loss of the noise.
    """
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=snr_gamma)
    if scheduler.config.prediction_type == "sample":
        return clipped
    return clipped / (snr + 1) if scheduler.config.prediction_type == "v_prediction" else clipped / snr


def _complete_states(
    model, inputs: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """JOINT where nothing is said, and ABSENT what is not in `inputs`."""
    absent = torch.full((len(inputs[ANCHOR]),), int(Presence.ABSENT), dtype=torch.long, device=inputs[ANCHOR].device)
    joint = torch.full_like(absent, int(Presence.JOINT))
    states = {name: state.to(joint.device) for name, state in (states or {}).items()}
    missing = [name for name in model.modality_modules if name not in inputs]
    for name in missing:
        if bool((states.get(name, absent) != Presence.ABSENT).any()):
            raise ValueError(f"`states` has {name!r}, which is not in `inputs`; accepted: ABSENT in all rows.")
    return dict.fromkeys(inputs, joint) | dict.fromkeys(missing, absent) | states


def multitask_loss(
    model,
    scheduler,
    inputs: Mapping[str, torch.Tensor],
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    states: Mapping[str, torch.Tensor] | None = None,
    task_weights: Mapping[str, float] | UncertaintyWeights | None = None,
    snr_gamma: float | None = None,
    query_weight: float = 1.0,
) -> MultitaskLossOutput:
    """The training loss: MSE on the sample-side target + sum_i lambda_i L2_i. All randomness is an argument.

    Args:
        model: a [`MultimodalUNet2DModel`].
        scheduler: a multimodal scheduler; it sets the weights, the target and the noise.
        inputs: "image" (B, C, H, W) and name -> input tensor of each modality; one left out is ABSENT.
        timesteps: (B,) of the training grid; rows whose image is GIVEN are at t = 0 whatever it says.
        noise: (B, C_z, H, W), standard normal.
        states: name -> (B,) long of [`Presence`], "image" included; names left out are JOINT.
        task_weights: name -> lambda (1 where left out), or learned ones.
        snr_gamma: clip the weight of low noise levels at this SNR (5 in the paper), infinity to weight any target as the
            noise; None for no weighting. Rows whose image is known in part (a masked image is given) have none, for
            there the image can be predicted at high noise too.
        query_weight: a factor of the modalities' losses in the loss, in rows where they are QUERIED: perception.

    Returns:
        [`MultitaskLossOutput`].

    Raises:
        ValueError: if "image" is not in `inputs`, a name is unknown, a modality has a state but no input, or a task
            weight no task.
    """
    if ANCHOR not in inputs:
        raise ValueError(f"`inputs` has {sorted(inputs)}; the anchor {ANCHOR!r} is missing.")
    image = inputs[ANCHOR]
    states = _complete_states(model, inputs, states)
    # a given image is clean: t = 0, the one noise level at which perception reads it
    timesteps = torch.where(states[ANCHOR] == Presence.GIVEN, 0, timesteps)
    encodings = model.encode(inputs)
    in_z = encodings_in_z(encodings, states)
    detached = {name: encoding.detach() for name, encoding in in_z.items()}

    z_t = scheduler.add_noise(image, noise, timesteps, encodings=in_z)
    target = scheduler.get_target(image, noise, timesteps, encodings=detached)
    output = model(z_t, timesteps, encodings=encodings, states=states)

    image_loss = (output.sample.float() - target.float()).square().flatten(1).mean(1)
    if snr_gamma is not None:
        weights = min_snr_weights(scheduler, timesteps, snr_gamma)
        image_loss = image_loss * torch.where(known_in_part(model, states), 1.0, weights)
    terms = {ANCHOR: image_loss}
    for name, prediction in output.predictions.items():
        if name in inputs:
            terms[name] = model.modality_modules[name].loss(prediction, inputs[name])
    terms = {name: term * recovered(states[name]) for name, term in terms.items()}
    never = [name for name, modality in model.modality_modules.items() if not modality.joint]
    weighted = {
        name: term * torch.where(states[name] == Presence.QUERIED, query_weight, 1.0) for name, term in terms.items()
    }
    return MultitaskLossOutput(loss=combine_terms(weighted, task_weights, never), terms=terms)


def combine_terms(
    terms: Mapping[str, torch.Tensor],
    task_weights: Mapping[str, float] | UncertaintyWeights | None,
    never_recovered: Collection[str] = (),
) -> torch.Tensor:
    """sum_i lambda_i mean(terms[i]), a mean over all rows, so that the scale does not depend on the states drawn.

    No weight is learned of what is `never_recovered`; its zero is added, so that its parameters have a gradient.
    """
    means = {name: term.mean() for name, term in terms.items()}
    if isinstance(task_weights, UncertaintyWeights):
        unweighted = sum(means.pop(name) for name in never_recovered if name in means)
        return task_weights.combine(means) + unweighted
    task_weights = task_weights or {}
    if unknown := set(task_weights) - set(means):
        raise ValueError(f"`task_weights` has {sorted(unknown)}, which are no tasks; tasks: {sorted(means)}.")
    return sum(task_weights.get(name, 1.0) * mean for name, mean in means.items())


def gaussian_kl(
    mean: torch.Tensor, variance: torch.Tensor, other_mean: torch.Tensor, other_variance: torch.Tensor
) -> torch.Tensor:
    """KL( N(mean, variance) || N(other_mean, other_variance) ) in nats, summed over all but the first axis: (B,)."""
    ratio = variance / other_variance
    distance = (mean - other_mean).square() / other_variance
    return (0.5 * (ratio - 1 - ratio.log() + distance)).flatten(1).sum(1)


def discretized_gaussian_nll(
    z_0: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, bins: int = 256
) -> torch.Tensor:
    """-log p(z_0 | z_1) in nats of DDPM's discretised decoder (Ho et al. 2020, eq. 13): (B,).

    Args:
        z_0, mean: (B, C, H, W), z_0 on a grid of `bins` levels over [-1, 1]; the outermost bins are open.
        variance: broadcastable.
    """
    half_bin = 1 / (bins - 1)
    deviation = variance.sqrt()
    below = torch.special.ndtr((z_0 - mean - half_bin) / deviation)
    above = torch.special.ndtr((z_0 - mean + half_bin) / deviation)
    above = torch.where(z_0 > 1 - half_bin, torch.ones_like(above), above)
    below = torch.where(z_0 < -1 + half_bin, torch.zeros_like(below), below)
    return -(above - below).clamp(min=1e-12).log().flatten(1).sum(1)


@torch.no_grad()
def elbo(
    model,
    scheduler,
    inputs: Mapping[str, torch.Tensor],
    generator: torch.Generator | None = None,
    num_timesteps: int | None = None,
) -> dict[str, torch.Tensor]:
    """The variational bound on -log p(z_0, x_1..x_N), term by term, everything JOINT.

    Args:
        model, scheduler: as [`multitask_loss`].
        inputs: "image" (B, C, H, W) on 256 levels over [-1, 1], and an input for each modality that the bound is of;
            those left out are ABSENT.
        generator: for the noise and the timesteps, on CPU.
        num_timesteps: how many of the L1 terms to draw (an unbiased estimate); None for all of them.

    Returns:
        (B,) float64 nats: "L0", "L1", "L3", "L2/<name>" for each modality (at the first noise level), their sum
        "total"; and "bits_per_dim", (L0 + L1 + L3) per dimension of the image.
    """
    image = inputs[ANCHOR].double()
    batch_size, device = len(image), image.device
    encodings = {name: e.double() for name, e in model.encode(inputs).items() if name != ANCHOR}
    bound = _Bound(model, scheduler, image, encodings, _complete_states(model, inputs), generator)

    last = scheduler.config.num_train_timesteps - 1
    terms = {"L0": bound.prior(last)}
    steps = torch.arange(1, last + 1)
    if num_timesteps is not None:
        steps = steps[torch.randperm(last, generator=generator)[:num_timesteps]]
    posterior_terms = sum((bound.posterior_match(int(t)) for t in steps), torch.zeros(batch_size).double().to(device))
    terms["L1"] = posterior_terms * (last / max(len(steps), 1))
    terms["L3"], predictions = bound.reconstruction()
    for name, prediction in predictions.items():
        if name in inputs:
            terms[f"L2/{name}"] = model.modality_modules[name].nll(prediction.double(), inputs[name]).double()
    terms["total"] = sum(terms.values())
    nats = terms["L0"] + terms["L1"] + terms["L3"]
    terms["bits_per_dim"] = nats / image[0].numel() / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return terms


class _Bound:
    """The terms of `elbo` that a noise level has, each from one draw of z_t."""

    def __init__(self, model, scheduler, image, encodings, states, generator):
        self.model, self.scheduler, self.generator = model, scheduler, generator
        self.image, self.encodings, self.states = image, encodings, states

    def _read(self, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict, dict]:
        """timesteps, a draw of z_t, the estimate of z_0 in it, the predictions, and the encodings they expect."""
        batch_size, _, height, width = self.image.shape
        shape = (batch_size, self.model.total_channels, height, width)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.image.device)
        timesteps = torch.full((batch_size,), t, device=self.image.device)
        z_t = self.scheduler.add_noise(self.image, noise, timesteps, encodings=self.encodings)
        output = self.model(z_t.to(self.model.dtype), timesteps, states=self.states)
        expected = self.model.expected_encodings(output.predictions)
        predicted = {name: expected[name].double() for name in self.encodings}
        z_0 = self.scheduler.predict_original(output.sample.double(), timesteps, z_t, encodings=predicted)
        if self.scheduler.config.get("clip_sample"):
            z_0 = z_0.clamp(-self.scheduler.config.clip_sample_range, self.scheduler.config.clip_sample_range)
        return timesteps, z_t, z_0, output.predictions, predicted

    def prior(self, t: int) -> torch.Tensor:
        """L0."""
        timesteps = torch.full((len(self.image),), t, device=self.image.device)
        noiseless = torch.zeros(
            len(self.image), self.model.total_channels, *self.image.shape[2:], dtype=torch.float64
        ).to(self.image.device)
        mean = self.scheduler.add_noise(self.image, noiseless, timesteps, encodings=self.encodings)
        variance = 1 - self.scheduler._broadcast_table(timesteps, torch.float64)
        return gaussian_kl(mean, variance.expand_as(mean), torch.zeros_like(mean), torch.ones_like(mean))

    def posterior_match(self, t: int) -> torch.Tensor:
        """One term of L1: both Gaussians have the variance of (4), so only the means count."""
        timesteps, z_t, z_0, _, predicted = self._read(t)
        mean, variance = self.scheduler.posterior(z_t, self.image, timesteps, self.encodings)
        model_mean, _ = self.scheduler.posterior(z_t, z_0, timesteps, predicted)
        return gaussian_kl(mean, variance, model_mean, variance)

    def reconstruction(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L3 and the predictions at the first noise level: p(z_0 | z_1) has mean z_0-hat and variance 1 - a_1."""
        timesteps, _, z_0, predictions, _ = self._read(0)
        variance = 1 - self.scheduler._broadcast_table(timesteps, torch.float64)
        return discretized_gaussian_nll(self.image, z_0, variance), predictions
