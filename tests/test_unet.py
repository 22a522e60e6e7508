"""The model: a pretrained trunk reproduced exactly, presence states, and diffusers' model features."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import AttnProcessor

from mmdiff_pipelines import MultimodalUNet2DModel, Presence

from .conftest import MODALITIES, TRUNK, build_inputs, build_unet


def states_of(unet, batch_size, **states):
    full = dict.fromkeys(["image", *unet.modality_modules], Presence.JOINT) | states
    return {name: torch.full((batch_size,), int(state)) for name, state in full.items()}


def call(unet, batch_size=2, seed=0, **states):
    generator = torch.Generator().manual_seed(seed)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sample = torch.randn(batch_size, unet.total_channels, height, width, generator=generator)
    torch.manual_seed(seed)
    encodings = unet.encode(build_inputs(unet, batch_size))
    return unet(sample, 300, encodings=encodings, states=states_of(unet, batch_size, **states))


@pytest.mark.parametrize(
    "trunk",
    [
        {},
        {"sample_size": (16, 24), "in_channels": 5, "out_channels": 5},
        {"time_embedding_type": "fourier", "mid_block_type": None},
        {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
         "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"), "in_channels": 3, "out_channels": 3,
         "block_out_channels": (128, 128), "norm_num_groups": 32},
        {"center_input_sample": True, "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("modalities", [{}, MODALITIES])
def test_from_unet_reproduces_the_pretrained_unet_exactly(trunk, modalities):
    unet = UNet2DModel(**{**TRUNK, **trunk}).eval()
    ours = MultimodalUNet2DModel.from_unet(unet, modalities=modalities).eval()
    size = ours.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sample, t = torch.randn(2, ours.total_channels, height, width), torch.tensor([7, 900])
    with torch.no_grad():
        expected = unet(sample[:, : unet.config.in_channels], t).sample
        assert torch.equal(ours(sample, t).sample, expected)
        assert torch.equal(ours(sample, t, states=states_of(ours, 2)).sample, expected)


def test_from_unet_refuses_what_it_cannot_continue():
    with pytest.raises(ValueError, match="num_class_embeds.*categorical modality"):
        MultimodalUNet2DModel.from_unet(UNet2DModel(**TRUNK, num_class_embeds=4))
    with pytest.raises(ValueError, match="in_channels.*out_channels"):
        MultimodalUNet2DModel.from_unet(UNet2DModel(**{**TRUNK, "out_channels": 2}))


@pytest.mark.parametrize("name", [name for name in MODALITIES if name != "depth"])
def test_given_modalities_reach_the_network_and_hide_their_noise(unet, name):
    with torch.no_grad():
        given = call(unet, **{name: Presence.GIVEN})
        other_value = call(unet, seed=1, **{name: Presence.GIVEN})
        assert not torch.equal(given.sample, other_value.sample)
        assert not torch.equal(given.sample, call(unet, **{name: Presence.ABSENT}).sample)

        sample, encodings = torch.randn(2, unet.total_channels, 16, 16), unet.encode(build_inputs(unet, 2))
        noisier = sample.clone()
        noisier[:, unet.channel_slices[name]] += 1
        states = states_of(unet, 2, **{name: Presence.GIVEN})
        same = [unet(z, 5, encodings=encodings, states=states).sample for z in (sample, noisier)]
        assert torch.equal(*same)


def test_encodings_are_ignored_where_nothing_is_given(unet):
    with torch.no_grad():
        sample = torch.randn(2, unet.total_channels, 16, 16)
        states = states_of(unet, 2, label=Presence.QUERIED, mask=Presence.ABSENT)
        encodings = unet.encode(build_inputs(unet, 2))
        assert torch.equal(
            unet(sample, 5, encodings=encodings, states=states).sample, unet(sample, 5, states=states).sample
        )


def test_the_noisy_code_of_a_joint_modality_is_read_as_a_given_one_if_asked_for():
    spec = {"type": "categorical", "num_classes": 4, "condition_on_noisy": True}
    unet = build_unet({"label": spec}).eval()
    torch.nn.init.zeros_(unet.presence_embedding["label"].weight)
    encodings = unet.encode({"label": torch.tensor([1, 3])})
    sample = torch.randn(2, unet.total_channels, 16, 16)
    clean = unet.impose_given(sample, encodings, states_of(unet, 2, label=Presence.GIVEN))
    with torch.no_grad():
        given = unet(sample, 300, encodings=encodings, states=states_of(unet, 2, label=Presence.GIVEN))
        assert torch.equal(unet(clean, 300).sample, given.sample)  # joint, without noise
        unet.modality_modules["label"].condition_on_noisy = False
        assert not torch.allclose(unet(clean, 300).sample, given.sample)
        unread = unet(sample, 300, states=states_of(unet, 2, label=Presence.QUERIED))
        unet.modality_modules["label"].condition_on_noisy = True
        assert torch.equal(unet(sample, 300, states=states_of(unet, 2, label=Presence.QUERIED)).sample, unread.sample)


def test_states_are_read_row_by_row(unet):
    with torch.no_grad():
        sample, encodings = torch.randn(4, unet.total_channels, 16, 16), unet.encode(build_inputs(unet, 4))
        mixed = states_of(unet, 4)
        mixed["label"] = torch.arange(4)
        mixed["image"] = torch.tensor([0, 1, 0, 1])
        together = unet(sample, 5, encodings=encodings, states=mixed).sample
        for row in range(4):
            rows = slice(row, row + 1)
            alone = unet(
                sample[rows],
                5,
                encodings={name: encoding[rows] for name, encoding in encodings.items()},
                states={name: state[rows] for name, state in mixed.items()},
            ).sample
            torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=0)


def test_the_given_image_is_seen_clean(unet):
    with torch.no_grad():
        encodings = unet.encode(build_inputs(unet, 2))
        states = states_of(unet, 2, image=Presence.GIVEN, label=Presence.QUERIED)
        first, second = torch.randn(2, 2, unet.total_channels, 16, 16)
        second[:, 1:] = first[:, 1:]
        assert torch.equal(
            *(unet(z, 5, encodings=encodings, states=states).predictions["label"] for z in (first, second))
        )


def test_gradient_checkpointing_gives_equal_gradients(unet):
    other = copy.deepcopy(unet)
    other.enable_gradient_checkpointing()
    for model in (unet.train(), other.train()):
        output = call(model, label=Presence.GIVEN)
        (output.sample.square().mean() + output.predictions["mask"].square().mean()).backward()
    for ours, theirs in zip(unet.parameters(), other.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_every_parameter_gets_a_gradient_whatever_the_states(unet):
    unet.train()
    output = call(unet, label=Presence.ABSENT, depth=Presence.ABSENT)
    (output.sample.mean() + sum(p.float().mean() for p in output.predictions.values())).backward()
    missing = [name for name, p in unet.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_compiles_without_a_graph_break():
    unet = build_unet({name: MODALITIES[name] for name in ("label", "mask")})
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    sample, states = torch.randn(2, 3, 16, 16), states_of(unet, 2, label=Presence.GIVEN)
    encodings = unet.encode(build_inputs(unet, 2))
    with torch.no_grad():
        expected = unet(sample, torch.tensor(5), encodings=encodings, states=states)
        actual = compiled(sample, torch.tensor(5), encodings=encodings, states=states)
    torch.testing.assert_close(actual.sample, expected.sample, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(actual.predictions, expected.predictions, atol=1e-5, rtol=1e-4)


def test_channels_last_and_attention_processors(unet):
    with torch.no_grad():
        expected = call(unet).sample
        unet.set_attn_processor(AttnProcessor())
        assert len(unet.attn_processors) == 4
        torch.testing.assert_close(call(unet).sample, expected, atol=1e-5, rtol=1e-4)
        unet.to(memory_format=torch.channels_last)
        torch.testing.assert_close(call(unet).sample, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(unet, dtype):
    unet.to(dtype)
    with torch.no_grad():
        sample = torch.randn(2, unet.total_channels, 16, 16, dtype=dtype)
        encodings = unet.encode(build_inputs(unet, 2))
        output = unet(sample, 3, encodings=encodings, states=states_of(unet, 2, depth=Presence.GIVEN))
    assert output.sample.dtype == dtype and output.sample.isfinite().all()


def test_return_tuple_and_save_load(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    loaded = MultimodalUNet2DModel.from_pretrained(tmp_path).eval()
    assert dict(loaded.config.modalities) == MODALITIES
    assert loaded.channel_slices == unet.channel_slices
    with torch.no_grad():
        sample = torch.randn(2, unet.total_channels, 16, 16)
        image, predictions = loaded(sample, 3, return_dict=False)
        assert torch.equal(image, unet(sample, 3).sample)
        assert set(predictions) == set(MODALITIES)


def test_loading_reports_missing_and_corrupt_weights(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="safetensors|checkpoint file"):
        MultimodalUNet2DModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        MultimodalUNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"label": {"type": "sound"}}, "'label'.*'sound'.*categorical.*MODALITY_TYPES"),
        ({"label": {}}, "'label'.*None"),
        ({"image": {"type": "image"}}, "'image'.*reserved"),
        ({"forward": {"type": "image"}}, "'forward'.*reserved"),
        ({"my label": {"type": "image"}}, "'my label'"),
        ({"label": {"type": "categorical", "num_clases": 3}}, "'label'.*num_clases"),
        ({"label": {"type": "categorical", "num_classes": 0}}, "'label'.*num_classes"),
        (
            {"label": {"type": "categorical", "num_classes": 2, "space": "shared", "condition_on_noisy": True}},
            "condition_on_noisy.*shared",
        ),
        ({"label": {"type": "categorical", "num_classes": 2, "condition_on_noisy": "no"}}, "'no'.*True, False"),
        ({"depth": {"type": "image", "condition_on_noisy": True}}, "depth.*condition_on_noisy"),
    ],
)
def test_wrong_modalities_are_named(modalities, message):
    with pytest.raises(ValueError, match=message):
        MultimodalUNet2DModel(**TRUNK, modalities=modalities)


def test_wrong_calls_are_named(unet):
    sample = torch.randn(1, unet.total_channels, 16, 16)
    with pytest.raises(ValueError, match="2 channels.*takes"):
        unet(sample[:, :2], 0)
    with pytest.raises(ValueError, match="'lable'.*known.*label"):
        unet(sample, 0, states={"lable": torch.zeros(1, dtype=torch.long)})
    with pytest.raises(TypeError, match="class_labels"):
        unet(sample, 0, class_labels=torch.zeros(1))
    with pytest.raises(ValueError, match="sample_size"):
        MultimodalUNet2DModel(**{**TRUNK, "sample_size": None}, modalities=MODALITIES)
    with pytest.raises(TypeError, match="'label'.*'categorical'.*dict"):
        MultimodalUNet2DModel(**TRUNK, modalities={"label": "categorical"})
