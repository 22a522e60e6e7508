"""The schedulers: diffusers' own without modalities, exact with them."""

import inspect

import diffusers
import pytest
import torch

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDDPMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    process,
)


PAIRS = [
    (MultimodalDDPMScheduler, diffusers.DDPMScheduler),
    (MultimodalDDIMScheduler, diffusers.DDIMScheduler),
    (MultimodalDPMSolverMultistepScheduler, diffusers.DPMSolverMultistepScheduler),
]
CLASSES = [pair[0] for pair in PAIRS]
PARENT_TYPES = {"total_noise": "epsilon"}
pairs = pytest.mark.parametrize(("cls", "parent_cls"), PAIRS)
classes = pytest.mark.parametrize("cls", CLASSES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def chain(scheduler, num_steps, z_T, predict, encodings=None, **step_arguments):
    """Sample with `predict(z_t, t)` as the network."""
    scheduler.set_timesteps(num_steps)
    z_t = z_T
    for t in scheduler.timesteps:
        arguments = {} if encodings is None else {"encodings": encodings}
        z_t = scheduler.step(predict(z_t, t), t, z_t, **step_arguments, **arguments).prev_sample
    return z_t


@pairs
@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_without_modalities_equal_to_diffusers_to_the_last_bit(cls, parent_cls, prediction_type):
    parent = parent_cls(prediction_type=PARENT_TYPES.get(prediction_type, prediction_type))
    ours = cls(prediction_type=prediction_type)

    def predict(z_t, t):
        return torch.tanh(z_t) * 0.5

    z_T, z_0, t = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1), torch.tensor([3, 900])
    assert torch.equal(ours.add_noise(z_0, z_T, t), parent.add_noise(z_0, z_T, t))
    stochastic = {"generator": generator()} | (
        {"eta": 0.5} if "eta" in inspect.signature(parent.step).parameters else {}
    )
    expected = chain(parent, 10, z_T, predict, **stochastic)
    stochastic["generator"] = generator()
    assert torch.equal(chain(ours, 10, z_T, predict, **stochastic), expected)
    assert ours.config.prediction_type == prediction_type


@pairs
def test_thresholding_and_spacing_without_modalities_equal_diffusers(cls, parent_cls):
    arguments = {"thresholding": True, "timestep_spacing": "trailing"}
    parent, ours = parent_cls(**arguments), cls(**arguments)

    def predict(z_t, t):
        return torch.tanh(z_t)

    z_T = normal(2, 3, 8, 8)
    expected = chain(parent, 6, z_T, predict, generator=generator())
    assert torch.equal(chain(ours, 6, z_T, predict, generator=generator()), expected)


@pairs
def test_signatures_keep_those_of_the_parent(cls, parent_cls):
    for method in ("__init__", "step", "set_timesteps", "add_noise"):
        theirs = list(inspect.signature(getattr(parent_cls, method)).parameters)
        ours = inspect.signature(getattr(cls, method)).parameters
        assert list(ours)[: len(theirs)] == theirs
        assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in ours.values())
    assert inspect.signature(cls.step).parameters["encodings"].kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="agregation"):
        cls(agregation="bridge")


@classes
@pytest.mark.parametrize("other", CLASSES)
def test_from_config_swaps_schedulers(cls, other):
    arguments = {
        "aggregation": {"label": "decay", "mask": "bridge"},
        "modality_weights": {"label": 1.0, "mask": 0.25},
        "prediction_type": "v_prediction",
        "beta_end": 0.03,
    }
    swapped = other.from_config(cls(**arguments).config)
    for name, value in arguments.items():
        assert swapped.config[name] == value


@classes
def test_save_and_load(cls, tmp_path):
    cls(aggregation={"label": "decay"}, modality_weights={"label": 2.0}).save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.config.aggregation == {"label": "decay"}
    t = torch.tensor([500])
    assert loaded.marginal_weight("label", t).item() == pytest.approx(2 * loaded.alphas_cumprod[500].sqrt().item())


@classes
@pytest.mark.parametrize("aggregation", ["bridge", "sqrt_bridge"])
@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_a_perfect_network_recovers_the_image_in_shared_space(cls, prediction_type, aggregation):
    scheduler = cls(prediction_type=prediction_type, aggregation=aggregation, modality_weights=0.8)
    z_0 = normal(2, 1, 4, 4).clamp(-1, 1)
    encodings = {"depth": normal(2, 1, 4, 4, seed=1)}

    def predict(z_t, t):
        return scheduler.model_output_for(z_0, t, z_t, encodings)

    z = chain(scheduler, 8, normal(2, 1, 4, 4, seed=2), predict, encodings, generator=generator())
    torch.testing.assert_close(z, z_0, atol=2e-4, rtol=0)


@pytest.mark.parametrize("aggregation", ["decay", "bridge"])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(MultimodalDDIMScheduler, {"clip_sample": False}), (MultimodalDPMSolverMultistepScheduler, {"solver_order": 1})],
)
def test_reserved_channels_follow_the_process(cls, arguments, aggregation):
    """z_t = sqrt(ᾱ) z_0 + M_t + σ ε holds along a deterministic chain, for one and the same ε."""
    scheduler = cls(aggregation=aggregation, modality_weights=1.0, prediction_type="sample", **arguments)
    z_0, noise = normal(1, 1, 4, 4), normal(1, 2, 4, 4, seed=1)
    encodings = {"label": torch.cat([torch.zeros(1, 1, 4, 4), normal(1, 1, 4, 4, seed=2)], dim=1)}
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2, None]
    z_t = scheduler.add_noise(z_0, noise, first, encodings)
    z_next = scheduler.step(z_0, first[0], z_t, encodings=encodings).prev_sample
    torch.testing.assert_close(z_next, scheduler.add_noise(z_0, noise, second, encodings), atol=1e-5, rtol=0)


def test_ancestral_step_has_the_moments_of_the_posterior():
    scheduler = MultimodalDDPMScheduler(
        num_train_timesteps=20, beta_end=0.3, prediction_type="sample", aggregation="bridge", clip_sample=False
    )
    rows = 20000
    z_0, encoding = torch.full((rows, 1, 1, 1), 0.3), torch.full((rows, 2, 1, 1), 0.9)
    z_t = torch.full((rows, 2, 1, 1), 0.5)
    z_prev = scheduler.step(z_0, 7, z_t, generator=generator(), encodings={"label": encoding}).prev_sample
    mean, variance = scheduler.posterior(z_t, z_0, torch.full((rows,), 7), {"label": encoding})
    torch.testing.assert_close(z_prev.mean((0, 2, 3)), mean[0, :, 0, 0], atol=1.5e-2, rtol=0)
    torch.testing.assert_close(z_prev.var((0, 2, 3)), variance[0].expand(2, 1, 1)[:, 0, 0], atol=1e-2, rtol=0)


def test_ddim_with_eta_one_is_as_stochastic_as_ancestral_sampling():
    arguments = {"prediction_type": "sample", "modality_weights": 1.0, "clip_sample": False}
    ddim, ddpm = MultimodalDDIMScheduler(**arguments), MultimodalDDPMScheduler(**arguments)
    ddim.set_timesteps(1000)
    z_0, z_t, encodings = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1), {"depth": normal(2, 1, 4, 4, seed=2)}
    by_ddim = ddim.step(z_0, 400, z_t, eta=1.0, generator=generator(), encodings=encodings).prev_sample
    by_ddpm = ddpm.step(z_0, 400, z_t, generator=generator(), encodings=encodings).prev_sample
    torch.testing.assert_close(by_ddim, by_ddpm, atol=1e-4, rtol=0)


def test_multistep_history_is_free_of_the_shift():
    """Two runs that differ in M by a constant stay apart by exactly that, whatever the encodings of a step were."""

    def run(encodings_of_step):
        scheduler = MultimodalDPMSolverMultistepScheduler(prediction_type="sample", modality_weights=0.7)
        scheduler.set_timesteps(20)
        y_t = normal(1, 1, 4, 4)
        for i, t in enumerate(scheduler.timesteps):
            encodings = encodings_of_step(i)
            z_t = y_t + scheduler.aggregate(encodings, t)
            sigma_next = scheduler.sigmas[scheduler.step_index + 1 if scheduler.step_index is not None else 1]
            output = scheduler.step(torch.tanh(y_t), t, z_t, encodings=encodings)
            weight = process.marginal_weight("bridge", 0.7, 1 / (sigma_next**2 + 1))
            y_t = output.prev_sample - weight * encodings["depth"]
        return y_t

    steady = run(lambda i: {"depth": torch.zeros(1, 1, 4, 4)})
    changing = run(lambda i: {"depth": normal(1, 1, 4, 4, seed=10 + i)})
    torch.testing.assert_close(changing, steady, atol=1e-4, rtol=0)


@classes
def test_output_has_the_estimate_of_the_image(cls):
    scheduler = cls(prediction_type="sample", aggregation="decay")
    scheduler.set_timesteps(10)
    z_0, z_t = normal(2, 1, 4, 4).clamp(-1, 1), normal(2, 3, 4, 4)
    encodings = {"label": torch.zeros(2, 3, 4, 4)}
    t = scheduler.timesteps[0]
    output = scheduler.step(z_0, t, z_t, encodings=encodings, generator=generator())
    assert output.prev_sample.shape == (2, 3, 4, 4)
    torch.testing.assert_close(output.pred_original_sample, z_0)
    scheduler.set_timesteps(10)
    as_tuple = scheduler.step(z_0, t, z_t, encodings=encodings, generator=generator(), return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample) and torch.equal(as_tuple[1], output.pred_original_sample)


@classes
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_with_trailing_spacing(cls, prediction_type):
    scheduler = cls(
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
        aggregation="bridge",
    )
    z_0, encodings = normal(1, 1, 4, 4).clamp(-1, 1), {"depth": normal(1, 1, 4, 4, seed=1)}

    def predict(z_t, t):
        return scheduler.model_output_for(z_0, t, z_t, encodings)

    z = chain(scheduler, 5, normal(1, 1, 4, 4, seed=2), predict, encodings, generator=generator())
    torch.testing.assert_close(z, z_0, atol=2e-3, rtol=0)


@classes
@pytest.mark.parametrize("prediction_type", ["total_noise", "epsilon"])
def test_zero_terminal_snr_is_refused_with_noise_prediction(cls, prediction_type):
    with pytest.raises(ValueError, match="rescale_betas_zero_snr.*v_prediction"):
        cls(rescale_betas_zero_snr=True, prediction_type=prediction_type)


@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_target_is_what_a_perfect_network_puts_out(prediction_type):
    scheduler = MultimodalDDPMScheduler(prediction_type=prediction_type, aggregation="sqrt_bridge")
    z_0, noise, encodings = normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1), {"depth": normal(3, 1, 4, 4, seed=2)}
    t = torch.tensor([20, 500, 980])
    z_t = scheduler.add_noise(z_0, noise, t, encodings)
    target = scheduler.get_target(z_0, noise, t, encodings)
    torch.testing.assert_close(scheduler.model_output_for(z_0, t, z_t, encodings), target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scheduler.predict_original(target, t, z_t, encodings), z_0, atol=5e-4, rtol=0)


def test_noise_of_the_image_alone_is_refused():
    """One channel of it would be the noise of all channels."""
    image, encoding = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="`noise` has 1 channels; accepted: 3.*'label'"):
        MultimodalDDPMScheduler().add_noise(image, torch.randn_like(image), torch.tensor([3, 7]), {"label": encoding})


def test_add_noise_and_target_reserve_channels():
    scheduler = MultimodalDDPMScheduler(aggregation="decay", modality_weights=1.0)
    z_0, noise, t = normal(2, 1, 4, 4), normal(2, 2, 4, 4, seed=1), torch.tensor([10, 600])
    encodings = {"label": torch.cat([torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)], dim=1)}
    z_t = scheduler.add_noise(z_0, noise, t, encodings)
    alpha_bar_t = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(z_t[:, 1:], alpha_bar_t.sqrt() + (1 - alpha_bar_t).sqrt() * noise[:, 1:])
    assert torch.equal(scheduler.get_target(z_0, noise, t, encodings), noise[:, :1])


def test_half_precision_keeps_the_tables_in_full():
    scheduler = MultimodalDDPMScheduler(aggregation="decay")
    z_0, noise, t = normal(1, 1, 4, 4), normal(1, 2, 4, 4, seed=1), torch.tensor([0])
    full = scheduler.add_noise(z_0, noise, t)
    half = scheduler.add_noise(z_0.bfloat16(), noise.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=2e-2, rtol=1e-2)
    assert half[:, 1:].abs().max() > 0  # sigma_0 is not rounded to 0


def test_paper_scaling():
    arguments = {"alpha_scaling": "paper", "modality_weights": {"label": 1.0}}
    scheduler = MultimodalDDPMScheduler(**arguments)
    assert scheduler.alphas_cumprod.dtype == torch.double
    assert scheduler.alphas_cumprod[0].item() == pytest.approx((1 - 1e-4) / 2)
    with pytest.raises(ValueError, match="modality_weights.*dict"):
        MultimodalDDPMScheduler(alpha_scaling="paper")
    with pytest.raises(ValueError, match="alpha_bar to 0"):
        MultimodalDPMSolverMultistepScheduler(alpha_scaling="paper", modality_weights={"a": 1.0, "b": 1.0, "c": 1.0})
    short = MultimodalDPMSolverMultistepScheduler(num_train_timesteps=30, **arguments)
    z = chain(short, 4, normal(1, 1, 4, 4), lambda z_t, t: torch.zeros_like(z_t), {"label": torch.zeros(1, 1, 4, 4)})
    assert z.isfinite().all()


def test_paper_scaling_meets_zero_signal_with_a_message():
    scheduler = MultimodalDDPMScheduler(alpha_scaling="paper", modality_weights={"a": 1.0, "b": 1.0, "c": 1.0})
    z, encodings = normal(1, 1, 4, 4), {"a": normal(1, 1, 4, 4)}
    with pytest.raises(ValueError, match="alpha_bar is 0 .* start at"):
        scheduler.step(z, 999, z, encodings=encodings)
    scheduler.set_timesteps(timesteps=[999, 0])  # alpha_bar is 0, then not: their ratio is known
    with pytest.raises(ValueError, match="alpha_bar = 0"):
        scheduler.step(z, 999, z, encodings=encodings)
    of_data = MultimodalDDPMScheduler.from_config(scheduler.config, prediction_type="sample")
    with pytest.raises(ValueError, match="start at"):
        of_data.step(z, 999, z, encodings=encodings)
    first = int((of_data.alphas_cumprod > 0).sum()) - 1
    assert of_data.step(z, first, z, encodings=encodings).prev_sample.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type.*'noise'.*total_noise"),
        ({"aggregation": "ramp"}, "aggregation.*'ramp'.*bridge"),
        ({"aggregation": {"label": "ramp"}}, "aggregation.*'ramp'"),
        ({"alpha_scaling": "log"}, "alpha_scaling.*'log'.*paper"),
    ],
)
@classes
def test_unknown_arguments_are_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {"use_flow_sigmas": True}]
)
def test_unsupported_solver_variants_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MultimodalDPMSolverMultistepScheduler(**arguments)


def test_a_modality_without_a_weight_is_named():
    scheduler = MultimodalDDPMScheduler(modality_weights={"label": 1.0})
    with pytest.raises(ValueError, match="modality_weights.*'mask'.*label"):
        scheduler.marginal_weight("mask", torch.tensor([0]))


def test_sde_solver_and_karras_sigmas():
    for arguments in ({"algorithm_type": "sde-dpmsolver++"}, {"use_karras_sigmas": True}, {"solver_order": 3}):
        scheduler = MultimodalDPMSolverMultistepScheduler(aggregation="bridge", **arguments)
        z_0, encodings = normal(1, 1, 4, 4), {"depth": normal(1, 1, 4, 4, seed=1)}

        def predict(z_t, t, scheduler=scheduler, z_0=z_0, encodings=encodings):
            return scheduler.model_output_for(z_0, t, z_t, encodings)

        z = chain(scheduler, 8, normal(1, 1, 4, 4, seed=2), predict, encodings, generator=generator())
        torch.testing.assert_close(z, z_0, atol=1e-3, rtol=0)
