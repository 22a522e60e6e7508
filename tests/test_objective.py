"""The objective against hand-computed and closed-form values."""

import math
from types import SimpleNamespace

import pytest
import torch

from mmdiff_pipelines import (
    MultimodalDDPMScheduler,
    Presence,
    UncertaintyWeights,
    elbo,
    multitask_loss,
)
from mmdiff_pipelines.objective import combine_terms, discretized_gaussian_nll, encodings_in_z, gaussian_kl

from .conftest import AGGREGATION, MODALITIES, build_inputs, build_unet


def scheduler_of(**arguments):
    return MultimodalDDPMScheduler(aggregation=AGGREGATION, modality_weights=1.0, **arguments)


def draw(unet, batch_size, **states):
    full = dict.fromkeys(["image", *unet.modality_modules], Presence.JOINT) | states
    states = {n: s if torch.is_tensor(s) else torch.full((batch_size,), int(s)) for n, s in full.items()}
    timesteps = torch.randint(0, 1000, (batch_size,))
    return timesteps, torch.randn(batch_size, unet.total_channels, 16, 16), states


@pytest.mark.parametrize("prediction_type", ["total_noise", "epsilon", "sample", "v_prediction"])
def test_loss_is_the_weighted_sum_of_its_terms(unet, prediction_type):
    inputs = build_inputs(unet)
    weights = {"label": 0.3, "mask": 2.0, "depth": 0.0}
    output = multitask_loss(unet, scheduler_of(prediction_type=prediction_type), inputs, *draw(unet, 4), weights)
    assert set(output.terms) == {"image", *MODALITIES}
    assert all(term.shape == (4,) for term in output.terms.values())
    lambdas = {"image": 1.0, "hole": 1.0, "caption": 1.0} | weights
    expected = sum(lambdas[name] * term.mean() for name, term in output.terms.items())
    torch.testing.assert_close(output.loss, expected)


def test_image_term_by_hand(unet):
    inputs, scheduler = build_inputs(unet), scheduler_of()
    timesteps, noise, states = draw(unet, 4)
    output = multitask_loss(unet, scheduler, inputs, timesteps, noise, states)
    in_z = encodings_in_z(unet.encode(inputs), states)
    z_t = scheduler.add_noise(inputs["image"], noise, timesteps, in_z)
    prediction = unet(z_t, timesteps, encodings=unet.encode(inputs), states=states)
    weight = scheduler.marginal_weight("depth", timesteps).view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    total_noise = noise[:, :1] + weight * unet.encode(inputs)["depth"][:, :1] / sigma
    expected = (prediction.sample - total_noise).square().mean((1, 2, 3))
    torch.testing.assert_close(output.terms["image"], expected)
    label = torch.nn.functional.cross_entropy(prediction.predictions["label"], inputs["label"], reduction="none")
    torch.testing.assert_close(output.terms["label"], label)


def test_states_decide_which_rows_carry_a_loss(unet):
    states = {"label": torch.arange(4), "image": torch.tensor([0, 1, 0, 1])}
    output = multitask_loss(unet, scheduler_of(), build_inputs(unet), *draw(unet, 4, **states))
    carries = {"label": [True, False, True, False], "image": [True, False, True, False]}
    for name, rows in carries.items():
        assert (output.terms[name] > 0).tolist() == rows


def test_a_given_image_is_read_at_the_first_noise_level(unet):
    inputs, states = build_inputs(unet), {"image": Presence.GIVEN, "label": Presence.QUERIED}
    timesteps, noise, states = draw(unet, 4, **dict.fromkeys(unet.modality_modules, Presence.ABSENT) | states)
    drawn = multitask_loss(unet, scheduler_of(), inputs, timesteps, noise, states)
    first = multitask_loss(unet, scheduler_of(), inputs, torch.zeros_like(timesteps), noise, states)
    assert timesteps.min() > 0 and torch.equal(drawn.terms["label"], first.terms["label"])


def test_only_carried_modalities_are_in_z(unet):
    inputs = build_inputs(unet)
    encodings = unet.encode(inputs)
    states = {name: torch.arange(4) for name in inputs}
    in_z = encodings_in_z(encodings, states)
    assert "image" not in in_z
    for name, encoding in in_z.items():
        assert torch.equal(encoding[:2], encodings[name][:2])  # JOINT, GIVEN
        assert encoding[2:].abs().max() == 0  # QUERIED, ABSENT


def test_a_given_value_does_not_leak_into_rows_that_query_it(unet):
    """With the same noise, a queried label has no influence on what the network sees or says."""
    inputs, scheduler = build_inputs(unet), scheduler_of()
    timesteps, noise, states = draw(unet, 4, image=Presence.GIVEN, label=Presence.QUERIED, mask=Presence.QUERIED,
                                    depth=Presence.QUERIED, hole=Presence.ABSENT, caption=Presence.ABSENT)  # fmt: skip
    predictions = []
    for value in (0, 2):
        changed = inputs | {"label": torch.full((4,), value)}
        z_t = scheduler.add_noise(inputs["image"], noise, timesteps, encodings_in_z(unet.encode(changed), states))
        predictions.append(unet(z_t, timesteps, encodings=unet.encode(changed), states=states).predictions["label"])
    assert torch.equal(*predictions)


@pytest.mark.parametrize("snr_gamma", [5.0, math.inf])
@pytest.mark.parametrize("prediction_type", ["total_noise", "sample", "v_prediction"])
def test_min_snr_weights_by_hand(unet, prediction_type, snr_gamma):
    inputs, scheduler = build_inputs(unet), scheduler_of(prediction_type=prediction_type)
    arguments = draw(unet, 4)
    plain = multitask_loss(unet, scheduler, inputs, *arguments)
    weighted = multitask_loss(unet, scheduler, inputs, *arguments, snr_gamma=snr_gamma)
    alpha_bar = scheduler.alphas_cumprod[arguments[0]]
    snr = alpha_bar / (1 - alpha_bar)
    divisor = {"total_noise": snr, "sample": 1.0, "v_prediction": snr + 1}[prediction_type]
    expected = plain.terms["image"] * snr.clamp(max=snr_gamma) / divisor
    torch.testing.assert_close(weighted.terms["image"], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(weighted.terms["label"], plain.terms["label"])


def test_min_snr_weights_leave_rows_alone_whose_image_is_known_in_part(unet):
    inputs, scheduler = build_inputs(unet), scheduler_of(prediction_type="v_prediction")
    hole = torch.tensor([Presence.GIVEN, Presence.ABSENT, Presence.GIVEN, Presence.JOINT])
    timesteps, noise, states = draw(unet, 4, hole=hole)
    plain = multitask_loss(unet, scheduler, inputs, timesteps, noise, states).terms["image"]
    weighted = multitask_loss(unet, scheduler, inputs, timesteps, noise, states, snr_gamma=math.inf).terms["image"]
    alpha_bar = torch.where(hole == Presence.GIVEN, 1.0, scheduler.alphas_cumprod[timesteps])
    torch.testing.assert_close(weighted, plain * alpha_bar)


def test_query_weight_is_a_factor_of_what_is_queried(unet):
    inputs, scheduler = build_inputs(unet), scheduler_of()
    timesteps, noise, _ = draw(unet, 4)
    states = {"label": torch.tensor([Presence.QUERIED, Presence.JOINT, Presence.GIVEN, Presence.QUERIED])}
    plain = multitask_loss(unet, scheduler, inputs, timesteps, noise, states)
    weighted = multitask_loss(unet, scheduler, inputs, timesteps, noise, states, query_weight=3.0)
    assert all(torch.equal(weighted.terms[name], term) for name, term in plain.terms.items())
    queried = plain.terms["label"][[0, 3]].sum() / 4
    torch.testing.assert_close(weighted.loss - plain.loss, 2 * queried)


def test_uncertainty_weights_have_their_minimum_at_twice_the_loss():
    weights = UncertaintyWeights(["image", "label"])
    means = {"image": torch.tensor([0.02]), "label": torch.tensor([1.5])}
    optimizer = torch.optim.LBFGS(weights.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = combine_terms(means, weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    for name, mean in means.items():
        assert weights.log_variances[name].exp().item() == pytest.approx(2 * mean.item(), rel=1e-3)


def test_no_weight_is_learned_of_what_is_never_recovered(unet):
    """Yet all parameters have a gradient, which DDP waits for."""
    weights = UncertaintyWeights(["image", *(n for n, modality in unet.modality_modules.items() if modality.joint)])
    output = multitask_loss(unet, scheduler_of(), build_inputs(unet), *draw(unet, 4, hole=Presence.GIVEN), weights)
    output.loss.backward()
    assert "hole" not in weights.log_variances and unet.modality_modules["hole"].head.weight.grad.abs().max() == 0
    assert all(parameter.grad is not None for parameter in unet.parameters() if parameter.requires_grad)


def test_the_target_is_detached_from_the_encoder_but_z_is_not():
    unet = build_unet({"label": {**MODALITIES["label"], "space": "shared", "learn_encoder": True}})
    scheduler = MultimodalDDPMScheduler(modality_weights=1.0)
    multitask_loss(unet, scheduler, build_inputs(unet), *draw(unet, 4), {"label": 0.0}).loss.backward()
    gradient = unet.modality_modules["label"].table.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_a_modality_without_input_is_absent(unet):
    """In the loss and in the bound: nothing of it is in z, and the network is told so."""
    inputs = build_inputs(unet)
    timesteps, noise, _ = draw(unet, 4)
    absent = {name: torch.full((4,), int(Presence.ABSENT)) for name in unet.modality_modules if name != "label"}
    expected = multitask_loss(unet, scheduler_of(), inputs, timesteps, noise, absent)
    some = {name: inputs[name] for name in ("image", "label")}
    actual = multitask_loss(unet, scheduler_of(), some, timesteps, noise)
    assert set(actual.terms) == {"image", "label"}
    assert torch.equal(actual.loss, expected.loss)

    # what its head says of it has no share in the bound
    alone = build_unet({"label": MODALITIES["label"], "caption": MODALITIES["caption"]})
    scheduler = MultimodalDDPMScheduler(num_train_timesteps=5, beta_end=0.5, aggregation="decay", modality_weights=9.0)
    states = []
    alone.register_forward_pre_hook(lambda module, args, kwargs: states.append(kwargs["states"]), with_kwargs=True)
    terms = elbo(alone, scheduler, some, torch.Generator().manual_seed(0))
    assert all((s["caption"] == Presence.ABSENT).all() and (s["label"] == Presence.JOINT).all() for s in states)
    with torch.no_grad():
        alone.modality_modules["caption"].head.bias.fill_(1e3)
    again = elbo(alone, scheduler, some, torch.Generator().manual_seed(0))
    assert "L2/caption" not in terms and torch.equal(again["total"], terms["total"])


def test_wrong_arguments_are_named(unet):
    inputs = build_inputs(unet)
    with pytest.raises(ValueError, match="'lable'.*label"):
        multitask_loss(unet, scheduler_of(), inputs, *draw(unet, 4), {"lable": 1.0})
    with pytest.raises(ValueError, match="'lable' in `inputs`.*label"):
        multitask_loss(unet, scheduler_of(), inputs | {"lable": inputs["label"]}, *draw(unet, 4))
    arguments = draw(unet, 4, caption=Presence.GIVEN)
    with pytest.raises(ValueError, match="`states` has 'caption'.*not in `inputs`"):
        multitask_loss(unet, scheduler_of(), {n: t for n, t in inputs.items() if n != "caption"}, *arguments)
    inputs.pop("image")
    with pytest.raises(ValueError, match="'image' is missing"):
        multitask_loss(unet, scheduler_of(), inputs, *draw(unet, 4))


def test_gaussian_kl_agrees_with_torch():
    mean, other = torch.randn(2, 3, 4, dtype=torch.double)
    variance, other_variance = torch.rand(2, 3, 4, dtype=torch.double) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, variance.sqrt()), normal(other, other_variance.sqrt()))
    torch.testing.assert_close(gaussian_kl(mean, variance, other, other_variance), expected.sum(1))


def test_discretized_gaussian_is_a_distribution_over_the_levels():
    levels = torch.arange(256, dtype=torch.double).view(256, 1) / 127.5 - 1
    for mean, variance in [(0.1, 1e-4), (-1.2, 0.3), (1.0, 2.0)]:
        nll = discretized_gaussian_nll(levels, torch.tensor(mean), torch.tensor(variance, dtype=torch.double))
        assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


class Oracle:
    """Knows the data: its label is right, and its estimate of z_0 is off by a constant."""

    def __init__(self, unet, inputs, offset=0.0):
        self.offset = offset
        self.unet, self.inputs, self.dtype = unet, inputs, torch.float64
        self.total_channels, self.encode = unet.total_channels, unet.encode
        self.modality_modules = {"label": SimpleNamespace(nll=lambda prediction, labels: torch.zeros(3))}

    def __call__(self, sample, timesteps, states):
        z_0 = self.inputs["image"].double() + self.offset
        return SimpleNamespace(sample=z_0, predictions={"label": self.inputs["label"]})

    def expected_encodings(self, predictions):
        return {"label": self.unet.encode({"label": predictions["label"]})["label"]}


def label_problem():
    unet = build_unet({"label": MODALITIES["label"]})
    return unet, build_inputs(unet, 3)


def test_elbo_of_a_model_that_knows_the_data():
    unet, inputs = label_problem()
    model = Oracle(unet, inputs)
    scheduler = MultimodalDDPMScheduler(
        num_train_timesteps=30, beta_end=0.4, aggregation="decay", modality_weights=1.0, prediction_type="sample"
    )
    terms = elbo(model, scheduler, inputs, generator=torch.Generator().manual_seed(0))
    assert terms["L1"].abs().max() < 1e-9 and terms["L2/label"].abs().max() == 0
    # each pixel is found within half a level of 1/255 under a noise of sqrt(beta_1); the outermost levels are open
    inside = torch.special.ndtr(torch.tensor(1 / 255 / math.sqrt(1e-4), dtype=torch.double))
    outermost = (inputs["image"].abs() == 1).flatten(1).sum(1)
    expected = -(2 * inside - 1).log() * (256 - outermost) - inside.log() * outermost
    torch.testing.assert_close(terms["L3"], expected, rtol=1e-3, atol=0)
    # KL( N(sqrt(ᾱ) z, 1 - ᾱ) || N(0, 1) )
    alpha_bar = scheduler.alphas_cumprod[-1].double()
    z = torch.cat([inputs["image"], unet.encode({"label": inputs["label"]})["label"][:, 1:]], dim=1).double()
    expected = 0.5 * (alpha_bar * z.square() - alpha_bar - (1 - alpha_bar).log()).flatten(1).sum(1)
    torch.testing.assert_close(terms["L0"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(terms["total"], terms["L0"] + terms["L1"] + terms["L2/label"] + terms["L3"])
    nats = terms["L0"] + terms["L1"] + terms["L3"]
    torch.testing.assert_close(terms["bits_per_dim"], nats / (256 * math.log(2)))


def test_elbo_terms_of_a_model_that_is_off_by_a_constant():
    """With ẑ_0 = z_0 + d everywhere, a term of L1 is (coefficient of z_0)^2 d^2 / (2 variance) per pixel."""
    unet, inputs = label_problem()
    scheduler = MultimodalDDPMScheduler(
        num_train_timesteps=12, beta_end=0.5, aggregation="decay", prediction_type="sample", clip_sample=False
    )
    model = Oracle(unet, inputs, offset=0.25)
    alpha_bar = scheduler.alphas_cumprod.double()
    previous, current = alpha_bar[:-1], alpha_bar[1:]
    coefficient = previous.sqrt() * (1 - current / previous) / (1 - current)
    variance = (1 - current / previous) * (1 - previous) / (1 - current)
    expected = coefficient**2 * 0.25**2 / (2 * variance) * 256
    torch.testing.assert_close(elbo(model, scheduler, inputs)["L1"], expected.sum().expand(3), rtol=1e-5, atol=0)

    # one term alone stands for all eleven
    drawn = [elbo(model, scheduler, inputs, torch.Generator().manual_seed(s), 1)["L1"][0] / 11 for s in range(8)]
    distances = (torch.stack(drawn)[:, None] - expected[None]).abs() / expected
    assert distances.amin(1).max() < 1e-5 and len({round(term.item(), 6) for term in drawn}) > 3


def test_without_modalities_the_bound_is_that_of_ddpm():
    unet = build_unet({})
    inputs = {"image": build_inputs(unet, 2)["image"]}
    terms = elbo(unet, MultimodalDDPMScheduler(num_train_timesteps=5, beta_end=0.5), inputs)
    assert set(terms) == {"L0", "L1", "L3", "total", "bits_per_dim"}
    assert all(term.isfinite().all() and term.dtype == torch.double for term in terms.values())
