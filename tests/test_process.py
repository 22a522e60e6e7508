"""The process against known answers: iterated chains, products of Gaussians, hand-computed values."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from mmdiff_pipelines import process


AGGREGATIONS = ["bridge", "sqrt_bridge", "decay", "none"]


@pytest.fixture
def alphas_cumprod():
    return DDPMScheduler(num_train_timesteps=50, beta_end=0.2).alphas_cumprod.double()


def previous(alphas_cumprod):
    return torch.cat([torch.ones(1, dtype=alphas_cumprod.dtype), alphas_cumprod[:-1]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_step_weights_satisfy_the_recursion_of_the_marginal_weights(aggregation, alphas_cumprod):
    step = process.step_weights(aggregation, 0.7, alphas_cumprod)
    marginal = process.marginal_weight(aggregation, 0.7, alphas_cumprod)
    alphas = alphas_cumprod / previous(alphas_cumprod)
    weight = torch.zeros(())
    for t in range(len(alphas)):
        weight = alphas[t].sqrt() * (weight + step[t])
        assert weight.item() == pytest.approx(marginal[t].item(), abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_chain_of_transitions_is_the_marginal(aggregation, alphas_cumprod):
    z_0, encoding = torch.randn(2, 3, dtype=torch.double)
    step = process.step_weights(aggregation, 0.7, alphas_cumprod)
    mean, variance = z_0, torch.zeros((), dtype=torch.double)
    for alpha_t, w_t in zip(alphas_cumprod / previous(alphas_cumprod), step, strict=True):
        mean, added = process.transition(mean, w_t * encoding, alpha_t)
        variance = alpha_t * variance + added
    shift = process.marginal_weight(aggregation, 0.7, alphas_cumprod[-1]) * encoding
    expected_mean, expected_variance = process.marginal(z_0, shift, alphas_cumprod[-1])
    torch.testing.assert_close(mean, expected_mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(variance, expected_variance, atol=1e-12, rtol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("t", [1, 20, 49])
def test_posterior_is_the_product_of_gaussians(aggregation, t, alphas_cumprod):
    z_0, z_t, encoding = torch.randn(3, 5, dtype=torch.double)
    alpha_bar_t, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t - 1]
    alpha_t = alpha_bar_t / alpha_bar_prev
    weights = process.marginal_weight(aggregation, 0.7, alphas_cumprod)
    w_t = process.step_weights(aggregation, 0.7, alphas_cumprod)[t]

    # q(z_{t-1} | z_0) q(z_t | z_{t-1}) as a Gaussian in z_{t-1}
    prior_mean, prior_variance = process.marginal(z_0, weights[t - 1] * encoding, alpha_bar_prev)
    observed, observed_variance = z_t / alpha_t.sqrt() - w_t * encoding, (1 - alpha_t) / alpha_t
    precision = 1 / prior_variance + 1 / observed_variance
    expected = (prior_mean / prior_variance + observed / observed_variance) / precision

    shifts = weights[t] * encoding, weights[t - 1] * encoding
    mean, variance = process.posterior(z_t, z_0, *shifts, alpha_bar_t, alpha_bar_prev)
    torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(variance, 1 / precision, atol=1e-12, rtol=0)

    noise = (z_t - alpha_bar_t.sqrt() * z_0 - shifts[0]) / (1 - alpha_bar_t).sqrt()
    by_noise = process.posterior_mean_from_noise(z_t, noise, w_t * encoding, alpha_bar_t, alpha_bar_prev)
    torch.testing.assert_close(by_noise, expected, atol=1e-10, rtol=0)


def test_marginal_weights_by_hand():
    alpha_bar = torch.tensor([1.0, 0.64, 0.0])
    assert process.marginal_weight("bridge", 0.5, alpha_bar).tolist() == pytest.approx([0, 0.5 * 0.8 * 0.36, 0])
    assert process.marginal_weight("sqrt_bridge", 0.5, alpha_bar).tolist() == pytest.approx([0, 0.5 * 0.8 * 0.6, 0])
    assert process.marginal_weight("decay", 0.5, alpha_bar).tolist() == pytest.approx([0, 0.4, 0])
    assert process.marginal_weight("none", 0.5, alpha_bar).tolist() == [0, 0, 0]


def test_decay_is_injected_by_the_first_step(alphas_cumprod):
    step = process.step_weights("decay", 2.0, alphas_cumprod)
    assert step[0] == 2 and step[1:].abs().max() == 0


def test_bridge_vanishes_against_the_noise_towards_the_data():
    alpha_bar = 1 - torch.logspace(-1, -8, 8, dtype=torch.double)
    ratio = process.marginal_weight("bridge", 1.0, alpha_bar) / (1 - alpha_bar).sqrt()
    assert (ratio.diff() < 0).all() and ratio[-1] < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_network_output_and_predict_z_0_are_inverse(prediction_type, dtype):
    z_0, noise, encoding = torch.randn(3, 2, 1, 4, 4, dtype=dtype)
    alpha_bar_t = torch.tensor([0.9, 0.2], dtype=dtype).view(2, 1, 1, 1)
    shift_t = 0.3 * encoding
    z_t = alpha_bar_t.sqrt() * z_0 + shift_t + (1 - alpha_bar_t).sqrt() * noise
    output = process.network_output(prediction_type, z_0, z_t, shift_t, alpha_bar_t)
    assert output.dtype == dtype
    back = process.predict_z_0(prediction_type, output, z_t, shift_t, alpha_bar_t)
    torch.testing.assert_close(back, z_0, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0)
    expected = {
        "sample": z_0,
        "epsilon": noise,
        "total_noise": noise + shift_t / (1 - alpha_bar_t).sqrt(),
        "v_prediction": alpha_bar_t.sqrt() * (noise + shift_t / (1 - alpha_bar_t).sqrt())
        - (1 - alpha_bar_t).sqrt() * z_0,
    }[prediction_type]
    torch.testing.assert_close(output, expected, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0)


def test_only_epsilon_needs_the_shift_for_z_0():
    output, z_t, shift_t = torch.randn(3, 1, 1, 4, 4)
    alpha_bar_t = torch.tensor(0.5)
    for prediction_type in process.PREDICTION_TYPES:
        with_shift = process.predict_z_0(prediction_type, output, z_t, shift_t, alpha_bar_t)
        without = process.predict_z_0(prediction_type, output, z_t, torch.zeros_like(shift_t), alpha_bar_t)
        assert torch.equal(with_shift, without) == (prediction_type != "epsilon")


@pytest.mark.parametrize("prediction_type", ["total_noise", "epsilon"])
def test_zero_signal_is_refused_where_it_would_be_divided_by(prediction_type):
    z = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="alpha_bar = 0"):
        process.predict_z_0(prediction_type, z, z, torch.zeros_like(z), torch.tensor(0.0))
    torch.testing.assert_close(process.predict_z_0("v_prediction", z, z, z, torch.tensor(0.0)), -z)


def test_paper_scaling_loses_the_image_within_twenty_steps():
    alphas = process.paper_alphas(DDPMScheduler().alphas, num_modalities=1)
    assert alphas.dtype == torch.double and torch.all(alphas <= 0.5)
    signal = alphas.cumprod(0).sqrt()
    assert signal[4].item() == pytest.approx(0.5**2.5, rel=1e-2)  # after five steps: .18
    assert signal[19].item() < 1e-3 and signal[-1].item() > 0


def test_emergence_curve_by_hand():
    weights, alphas_cumprod = torch.tensor([0.4]), torch.tensor([0.64])
    own = process.emergence_curve(weights, alphas_cumprod, distance=6.0)
    assert own.item() == pytest.approx(0.4 * 6 / 0.6)
    shared = process.emergence_curve(weights, alphas_cumprod, distance=6.0, anchor_spread=1.0)
    assert shared.item() == pytest.approx(0.4 * 6 / math.sqrt(0.36 + 0.64))


def test_unknown_aggregation_names_what_is_accepted():
    with pytest.raises(ValueError, match="'hill'.*'bridge'"):
        process.marginal_weight("hill", 1.0, torch.ones(1))
