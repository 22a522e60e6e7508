"""Starting from what exists: a pretrained UNet2DModel, or a pipeline that gets one modality more."""

import pytest
import torch

from mmdiff_pipelines import MultimodalDDIMScheduler, MultimodalMultitaskPipeline, MultimodalUNet2DModel, Presence

from .conftest import MODALITIES, build_inputs, build_pipeline, build_unet


NEW = {
    "own channels before all others": ("angle", {"type": "vector", "dim": 3, "channels": 2}),
    "own channels among others": ("kind", {"type": "categorical", "num_classes": 4}),
    "own channels after all others": ("texture", {"type": "image", "num_channels": 2}),
    "shared space": ("normals", {"type": "image", "space": "shared"}),
}


def old_and_new(unet, larger, name):
    """z_t, encodings and states of four rows: for the old model, and with the new modality in each of its states."""
    inputs = build_inputs(unet)
    old_states = {n: torch.randint(0, len(Presence), (4,)) for n in unet.modality_modules}
    old_states["image"] = torch.randint(0, 2, (4,))
    sample = torch.randn(4, unet.total_channels, 16, 16)
    more = torch.randn(4, larger.total_channels, 16, 16)
    for n, channels in unet.channel_slices.items():
        more[:, larger.channel_slices[n]] = sample[:, channels]
    more_inputs = inputs | {name: build_inputs(larger)[name]}
    return (
        {"sample": sample, "encodings": unet.encode(inputs), "states": old_states},
        {"sample": more, "encodings": larger.encode(more_inputs), "states": old_states | {name: torch.arange(4)}},
    )


@pytest.mark.parametrize(("name", "spec"), NEW.values(), ids=NEW)
def test_a_new_modality_changes_nothing_before_training(unet, name, spec):
    larger = unet.add_modality(name, spec)
    assert list(larger.modality_modules) == sorted([*MODALITIES, name]) and not larger.training
    assert name not in unet.config.modalities
    with torch.no_grad():
        for _ in range(8):
            old, new = old_and_new(unet, larger, name)
            expected, actual = unet(timestep=300, **old), larger(timestep=300, **new)
            torch.testing.assert_close(actual.sample, expected.sample, atol=1e-6, rtol=1e-5)
            for old_name, prediction in expected.predictions.items():
                torch.testing.assert_close(actual.predictions[old_name], prediction, atol=1e-6, rtol=1e-5)


def test_the_first_modality_of_a_plain_model():
    plain = build_unet({}, in_channels=3, out_channels=3)
    larger = plain.add_modality("label", MODALITIES["label"]).add_modality("depth", MODALITIES["depth"])
    sample = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(larger(sample, 7).sample, plain(sample[:, :3], 7).sample)


def test_what_was_added_is_trained_saved_and_loaded(unet, tmp_path):
    larger = unet.add_modality("kind", NEW["own channels among others"][1]).train()
    _, arguments = old_and_new(unet, larger, "kind")
    larger(timestep=300, **arguments).predictions["kind"].square().mean().backward()
    assert larger.modality_modules["kind"].head.weight.grad.any()
    assert larger.conv_reserved.weight.grad[:, larger.channel_slices["kind"].start - 1].any()
    larger.eval().save_pretrained(tmp_path)
    loaded = MultimodalUNet2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(timestep=5, **arguments).sample, larger(timestep=5, **arguments).sample)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("label", {"type": "vector", "dim": 3}, "`name` is 'label'.*has already"),
        ("image", {"type": "image"}, "'image'.*reserved"),
        ("sound", {"type": "sound"}, "'sound'.*known: categorical"),
        ("kind", {"type": "categorical"}, "'kind'.*num_classes"),
    ],
)
def test_what_cannot_be_added_is_named(unet, name, spec, message):
    with pytest.raises(ValueError, match=message):
        unet.add_modality(name, spec)


def test_parameters_of_adapters_are_not_lost_silently(unet):
    unet.register_parameter("lora", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="adapters, as 'lora'"):
        unet.add_modality("kind", NEW["own channels among others"][1])


def test_the_old_chain_goes_on_with_the_scheduler_extended():
    """What the docstring shows; the latents of the old channels are those of the old pipeline."""
    modalities = {name: MODALITIES[name] for name in ("label", "mask")}
    config = {"aggregation": dict.fromkeys(modalities, "decay"), "modality_weights": dict.fromkeys(modalities, 1.0)}
    old = build_pipeline(modalities, MultimodalDDIMScheduler(**config))
    config = old.scheduler.config
    unet = old.unet.add_modality("kind", {"type": "categorical", "num_classes": 4})
    with pytest.raises(ValueError, match="no entry for modality 'kind'"):
        MultimodalMultitaskPipeline(unet, old.scheduler)
    scheduler = MultimodalDDIMScheduler.from_config(
        config,
        aggregation={**config.aggregation, "kind": "decay"},
        modality_weights={**config.modality_weights, "kind": 1.0},
    )
    new = MultimodalMultitaskPipeline(unet, scheduler)
    new.set_progress_bar_config(disable=True)
    latents = torch.randn(2, unet.total_channels, 16, 16)
    old_latents = latents[:, [0, 2, 3]]  # image, label, mask: "kind" stands between the first two
    arguments = {"batch_size": 2, "num_inference_steps": 3, "output_type": "pt", "outputs": ["image", "label", "mask"]}
    expected, actual = old(latents=old_latents, **arguments), new(latents=latents, **arguments)
    torch.testing.assert_close(actual.images, expected.images, atol=1e-5, rtol=1e-4)
    for name in ("label", "mask"):
        torch.testing.assert_close(actual.confidences[name], expected.confidences[name], atol=1e-5, rtol=1e-4)
