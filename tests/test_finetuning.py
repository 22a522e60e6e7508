"""Starting from what exists: a pretrained UNet2DModel, or a pipeline that gets one modality more."""

import datasets
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDDPMScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
    Presence,
)
from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.components import build_components

from . import training_case
from .conftest import MODALITIES, TRUNK, build_inputs, build_pipeline, build_unet


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


def components(*arguments):
    return build_components(parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def data(tmp_path):
    return ["--train_data_dir", training_case.save_dataset(tmp_path)]


def save_pretrained(unet, folder, layout):
    if layout == "a pipeline":
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    else:
        unet.save_pretrained(folder)


@pytest.mark.parametrize("layout", ["a pipeline", "a model"])
def test_training_starts_with_the_outputs_of_the_pretrained_unet(tmp_path, data, layout, caplog):
    unet = UNet2DModel(**TRUNK).eval()
    save_pretrained(unet, tmp_path / "pretrained", layout)
    built = components(*data, *training_case.MODALITIES, "--pretrained_unet", tmp_path / "pretrained")
    assert set(built.unet.config.modalities) == {"label", "mask"}
    sample, timesteps = torch.randn(4, 3, 16, 16), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        expected = unet(sample[:, :1], timesteps).sample
        assert torch.equal(built.unet.eval()(sample, timesteps).sample, expected)
    batch = built.reader(list(built.dataset.take(4)))["inputs"]["image"]
    noised = built.scheduler.add_noise(batch, sample[:, :1], timesteps)
    assert torch.equal(noised, DDPMScheduler().add_noise(batch, sample[:, :1], timesteps))
    assert not [record for record in caplog.records if "was trained with" in record.message]


def test_a_run_from_a_pretrained_unet_leaves_it_what_it_was_but_for_training(tmp_path, data):
    unet = UNet2DModel(**TRUNK).eval()
    save_pretrained(unet, tmp_path / "pretrained", "a pipeline")
    training_case.run(
        *data, *training_case.MODALITIES, "--pretrained_unet", tmp_path / "pretrained", "--max_train_steps", 1,
        "--learning_rate", 0, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    trained = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "run")).unet
    sample = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(trained(sample, 9).sample, unet(sample[:, :1], 9).sample)


WRONG_UNETS = {
    "class-conditional": ({"num_class_embeds": 4}, "--pretrained_unet .*class-conditional.*unconditional"),
    "learned variance": ({"out_channels": 2}, "--pretrained_unet .*1 channels in and 2 out.*as many"),
    "other channels": ({"in_channels": 3, "out_channels": 3}, "--pretrained_unet has 3 channels, the images 1"),
}


@pytest.mark.parametrize("layout", ["a pipeline", "a model"])
@pytest.mark.parametrize(("trunk", "message"), WRONG_UNETS.values(), ids=WRONG_UNETS)
def test_a_unet_that_cannot_be_continued_is_refused(tmp_path, data, layout, trunk, message):
    save_pretrained(UNet2DModel(**{**TRUNK, **trunk}), tmp_path / "pretrained", layout)
    with pytest.raises(ValueError, match=message):
        components(*data, "--pretrained_unet", tmp_path / "pretrained")


def test_another_model_is_no_unet(tmp_path, data):
    build_pipeline().save_pretrained(str(tmp_path / "ours"))
    with pytest.raises(ValueError, match="MultimodalUNet2DModel.*--pretrained_model_name_or_path"):
        components(*data, "--pretrained_unet", tmp_path / "ours")
    with pytest.raises(ValueError, match="--pretrained_unet .*config.json"):
        components(*data, "--pretrained_unet", tmp_path)


def test_another_noise_schedule_is_told(tmp_path, data, caplog):
    DDPMPipeline(UNet2DModel(**TRUNK), DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(
        tmp_path / "p"
    )
    components(*data, "--pretrained_unet", tmp_path / "p")
    (message,) = [record.message for record in caplog.records if "was trained with" in record.message]
    assert "beta_schedule 'squaredcos_cap_v2' (here 'linear')" in message and "prediction_type" not in message


def test_a_modality_that_the_pretrained_pipeline_lacks_is_added(tmp_path, data):
    base = build_pipeline({"mask": MODALITIES["mask"]})
    base.save_pretrained(str(tmp_path / "base"))
    training_case.run(
        *data, "--pretrained_model_name_or_path", tmp_path / "base", "--max_train_steps", 1, "--learning_rate", 0,
        "--modality", "label:categorical:weight=2", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    trained = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "run"))
    assert trained.unet.config.modalities["label"]["class_names"] == training_case.ANIMALS
    assert trained.scheduler.config.aggregation == {"label": "decay", "mask": "decay"}
    assert trained.scheduler.config.modality_weights == {"label": 2, "mask": 1.0}
    sample = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        actual, expected = trained.unet(sample, 9), base.unet(sample[:, [0, 2]], 9)
    torch.testing.assert_close(actual.sample, expected.sample, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(actual.predictions["mask"], expected.predictions["mask"], atol=1e-6, rtol=1e-5)


def test_what_the_pretrained_pipeline_has_is_not_contradicted(tmp_path, data):
    build_pipeline({"mask": MODALITIES["mask"]}).save_pretrained(str(tmp_path / "base"))
    base = [*data, "--pretrained_model_name_or_path", tmp_path / "base"]
    for text in ("mask:image", "mask:segmentation:num_classes=5", "mask:segmentation:weight=2"):
        with pytest.raises(ValueError, match="--modality mask: the pretrained pipeline fixes it"):
            components(*base, "--modality", text)
    with pytest.raises(ValueError, match="--modality lable.*no such column; it has image, label, mask"):
        components(*base, "--modality", "lable:categorical")


@pytest.fixture
def of_animals(tmp_path):
    """A pretrained pipeline of three animals, as options."""
    animals = {"type": "categorical", "num_classes": 3, "class_names": training_case.ANIMALS}
    build_pipeline({"label": animals}).save_pretrained(str(tmp_path / "animals"))
    return ["--pretrained_model_name_or_path", tmp_path / "animals"]


def dataset_of(kind, names):
    """24 rows whose classes are `names`, kept as the kind says, or indices."""
    rows = training_case.build_dataset(24).remove_columns("label")
    if kind == "ClassLabel":
        return rows.add_column("label", [i % 3 for i in range(24)]).cast_column(
            "label", datasets.ClassLabel(names=names)
        )
    return rows.add_column("label", [names[i % 3] if kind == "csv" else i % 4 for i in range(24)])


def write_folder(rows, folder):
    """Images beside a metadata.csv."""
    folder.mkdir()
    lines = ["file_name,label"]
    for i, row in enumerate(rows):
        row["image"].save(folder / f"{i}.png")
        lines.append(f"{i}.png,{row['label']}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["csv", "ClassLabel", "indices"])
def test_a_class_that_the_pretrained_model_has_not_ends_the_run_before_it_starts(tmp_path, of_animals, kind):
    rows = dataset_of(kind, ["cat", "dog", "yeti"])
    if kind == "csv":
        write_folder(rows, tmp_path / "other")
    else:
        rows.save_to_disk(str(tmp_path / "other"))
    has_not = r"\[3\]" if kind == "indices" else r"\['yeti'\]"
    with pytest.raises(
        ValueError, match=f"--modality label: column 'label' has the classes {has_not}.*accepted: .*cat"
    ):
        components("--train_data_dir", tmp_path / "other", *of_animals)


def test_classes_in_another_order_are_read_by_their_names(tmp_path, of_animals):
    read = []
    for names in (training_case.ANIMALS, training_case.ANIMALS[::-1]):
        folder = tmp_path / names[0]
        dataset_of("ClassLabel", names).save_to_disk(str(folder))
        parts = components("--train_data_dir", folder, *of_animals)
        read.append(parts.reader([parts.dataset[i] for i in range(6)])["inputs"]["label"].tolist())
    assert read == [[0, 1, 2, 0, 1, 2], [2, 1, 0, 2, 1, 0]]


@pytest.mark.parametrize("scaling", ["schedule", "paper"])
def test_one_setting_for_all_becomes_one_for_each(tmp_path, data, scaling):
    """The paper's noise depends on the number of modalities, so that none can be added."""
    weights = {"mask": 0.7} if scaling == "paper" else 0.7
    scheduler = MultimodalDDPMScheduler(aggregation="bridge", modality_weights=weights, alpha_scaling=scaling)
    build_pipeline({"mask": MODALITIES["mask"]}, scheduler).save_pretrained(str(tmp_path / "base"))
    arguments = [*data, "--pretrained_model_name_or_path", tmp_path / "base", "--modality", "label:categorical"]
    if scaling == "paper":
        with pytest.raises(ValueError, match="--modality label.*alpha_scaling='paper'.*none can be added"):
            components(*arguments)
        return
    config = components(*arguments).scheduler.config
    assert config.aggregation == {"mask": "bridge", "label": "decay"}
    assert config.modality_weights == {"mask": 0.7, "label": 1.0}
