"""The multimodal diffusion process, as free functions of tensors (any float dtype).

An anchor z_0 (the image) and encodings e_i of further modalities share one space (MT-Diffusion, Chen et al.,
arXiv 2407.17571; here with the noise schedule set on a_t itself). With a_t = 1 - beta_t and alpha_bar_t = prod a_s:

    (1) transition  q(z_t | z_{t-1}, X) = N( sqrt(a_t) (z_{t-1} + sum_i w_t^i e_i),  (1 - a_t) I )
    (2) marginal    q(z_t | z_0, X) = N( sqrt(alpha_bar_t) z_0 + M_t,  (1 - alpha_bar_t) I ),   M_t = sum_i W_t^i e_i
    (3) weights     W_t = sqrt(a_t) (W_{t-1} + w_t),  W_0 = 0
    (4) posterior   q(z_{t-1} | z_t, z_0, X): DDPM's posterior of (y_t, z_0), shifted by M_{t-1},   y_t = z_t - M_t

y_t = z_t - M_t is an ordinary DDPM chain on z_0: that is why every solver of diffusers applies to it. All functions
broadcast; `alpha_bar_t` and friends are scalars, (T,) tables or (B, 1, 1, 1).
"""

import torch


# What W_t is, as a function of alpha_bar: W = sqrt(alpha_bar) * gain, so that w_t in (3) is the increment of the gain.
GAINS = {
    "bridge": lambda alpha_bar: 1 - alpha_bar,
    "sqrt_bridge": lambda alpha_bar: (1 - alpha_bar).sqrt(),
    "decay": torch.ones_like,
    "none": torch.zeros_like,
}
PREDICTION_TYPES = ("total_noise", "epsilon", "sample", "v_prediction")


def gain(aggregation: str, scale: float, alpha_bar: torch.Tensor) -> torch.Tensor:
    """G = W / sqrt(alpha_bar) of an aggregation, 0 at the data (alpha_bar = 1), where W_0 = 0 by (3)."""
    if aggregation not in GAINS:
        raise ValueError(f"`aggregation` is {aggregation!r}; accepted: {', '.join(map(repr, GAINS))}.")
    return torch.where(alpha_bar < 1, scale * GAINS[aggregation](alpha_bar), torch.zeros_like(alpha_bar))


def marginal_weight(aggregation: str, scale: float, alpha_bar: torch.Tensor) -> torch.Tensor:
    """W of (2): "bridge" c sqrt(ᾱ)(1-ᾱ), "sqrt_bridge" c sqrt(ᾱ(1-ᾱ)), "decay" c sqrt(ᾱ), "none" 0.

    Args:
        aggregation: one of `GAINS`.
        scale: c, any float.
        alpha_bar: any shape, in [0, 1]; 1 is the data, where W = 0.

    Returns:
        W, of the shape of `alpha_bar`.
    """
    return alpha_bar.sqrt() * gain(aggregation, scale, alpha_bar)


def step_weights(aggregation: str, scale: float, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """w of (3) for a whole schedule: w_t = sqrt(alpha_bar_{t-1}) (G_t - G_{t-1}), with G_0 = 0 before the first step.

    Args:
        alphas_cumprod: (T,), alpha_bar of the training grid, index 0 the first noise level.

    Returns:
        (T,) step weights.
    """
    previous = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    return previous.sqrt() * (gain(aggregation, scale, alphas_cumprod) - gain(aggregation, scale, previous))


def transition(
    z_prev: torch.Tensor, injection: torch.Tensor, alpha_t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1): mean and variance of q(z_t | z_{t-1}, X), with `injection` = sum_i w_t^i e_i."""
    return alpha_t.sqrt() * (z_prev + injection), 1 - alpha_t


def marginal(z_0: torch.Tensor, shift_t: torch.Tensor, alpha_bar_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(2): mean and variance of q(z_t | z_0, X), with `shift_t` = M_t."""
    return alpha_bar_t.sqrt() * z_0 + shift_t, 1 - alpha_bar_t


def posterior(
    z_t: torch.Tensor,
    z_0: torch.Tensor,
    shift_t: torch.Tensor,
    shift_prev: torch.Tensor,
    alpha_bar_t: torch.Tensor,
    alpha_bar_prev: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(4): mean and variance of q(z_{t-1} | z_t, z_0, X), the product of (1) and (2); also right where a_t = 0."""
    alpha_t = alpha_bar_t / alpha_bar_prev
    y_t = z_t - shift_t
    z_0_weight = alpha_bar_prev.sqrt() * (1 - alpha_t) / (1 - alpha_bar_t)
    y_t_weight = alpha_t.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    variance = (1 - alpha_t) * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return shift_prev + z_0_weight * z_0 + y_t_weight * y_t, variance


def posterior_mean_from_noise(
    z_t: torch.Tensor,
    noise: torch.Tensor,
    injection: torch.Tensor,
    alpha_bar_t: torch.Tensor,
    alpha_bar_prev: torch.Tensor,
) -> torch.Tensor:
    """(4), the paper's form: the same mean by the noise of the y-chain and `injection` = sum_i w_t^i e_i; a_t > 0."""
    alpha_t = alpha_bar_t / alpha_bar_prev
    return (z_t - (1 - alpha_t) / (1 - alpha_bar_t).sqrt() * noise) / alpha_t.sqrt() - injection


def paper_alphas(alphas: torch.Tensor, num_modalities: int) -> torch.Tensor:
    """The paper's literal scaling a_t = alpha_t / (N + 1), in float64: z_0 is gone within some twenty steps."""
    return alphas.double() / (num_modalities + 1)


def total_noise(noise: torch.Tensor, shift_t: torch.Tensor, alpha_bar_t: torch.Tensor) -> torch.Tensor:
    """epsilon_tot = epsilon + M_t / sigma_t: all that stands between z_t and sqrt(alpha_bar_t) z_0."""
    return noise + shift_t / (1 - alpha_bar_t).sqrt()


def network_output(
    prediction_type: str, z_0: torch.Tensor, z_t: torch.Tensor, shift_t: torch.Tensor, alpha_bar_t: torch.Tensor
) -> torch.Tensor:
    """What a network that believes in `z_0` puts out at `z_t`; the inverse of `predict_z_0`."""
    if prediction_type == "sample":
        return z_0
    sigma_t = (1 - alpha_bar_t).sqrt()
    noise_tot = (z_t - alpha_bar_t.sqrt() * z_0) / sigma_t
    if prediction_type == "total_noise":
        return noise_tot
    if prediction_type == "epsilon":
        return noise_tot - shift_t / sigma_t
    return alpha_bar_t.sqrt() * noise_tot - sigma_t * z_0


def predict_z_0(
    prediction_type: str,
    model_output: torch.Tensor,
    z_t: torch.Tensor,
    shift_t: torch.Tensor,
    alpha_bar_t: torch.Tensor,
) -> torch.Tensor:
    """z_0 from the network's output; only "epsilon" (the noise of the y-chain) needs M_t for it.

    Args:
        prediction_type: one of `PREDICTION_TYPES`; v = sqrt(alpha_bar_t) epsilon_tot - sigma_t z_0.
        model_output, z_t, shift_t: (B, C, H, W).
        alpha_bar_t: scalar or (B, 1, 1, 1); > 0 unless the type is "sample" or "v_prediction".

    Raises:
        ValueError: where alpha_bar_t = 0 and the type would divide by it.
    """
    if prediction_type == "sample":
        return model_output
    sigma_t = (1 - alpha_bar_t).sqrt()
    if prediction_type == "v_prediction":
        return alpha_bar_t.sqrt() * z_t - sigma_t * model_output
    if bool((alpha_bar_t <= 0).any()):
        raise ValueError(
            f"`prediction_type` {prediction_type!r} cannot give z_0 where alpha_bar = 0, as nothing of z_0 is left; "
            "use 'v_prediction' or 'sample'."
        )
    shift_t = shift_t if prediction_type == "epsilon" else torch.zeros_like(shift_t)
    return (z_t - shift_t - sigma_t * model_output) / alpha_bar_t.sqrt()


def emergence_curve(
    marginal_weights: torch.Tensor, alphas_cumprod: torch.Tensor, distance: float, anchor_spread: float = 0.0
) -> torch.Tensor:
    """How far apart two values of a modality stand in z_t, in standard deviations of what hides them.

    W_t ||e - e'|| / sqrt(sigma_t^2 + alpha_bar_t anchor_spread^2): the modality is readable where this exceeds ~3.

    Args:
        marginal_weights, alphas_cumprod: (T,) tables of W and alpha_bar.
        distance: ||e - e'|| of typical encodings (L2 over channels and pixels).
        anchor_spread: standard deviation of z_0 in the direction of e - e'; 0 in own channels, ~1 in shared space.

    Returns:
        (T,) the curve.
    """
    hidden_by = (1 - alphas_cumprod + alphas_cumprod * anchor_spread**2).sqrt()
    return marginal_weights * distance / hidden_by
