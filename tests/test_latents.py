"""Training in the latent space of an autoencoder: latents are computed once, and are what the pipeline computes."""

import os

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.pipelines.latent_space import decode_latents, downscale_factor, encode_pixels
from mmdiff_pipelines.training import latents as latents_module
from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.components import build_components
from mmdiff_pipelines.training.data import MemoryDataset

from .conftest import tiny_vae
from .training_case import MODALITIES, TRUNK, build_dataset, example, run, save_dataset


@pytest.fixture
def encodings(monkeypatch):
    """How many images have been encoded so far, call by call."""
    counts = []

    def counting(vae, pixels):
        counts.append(len(pixels))
        return encode_pixels(vae, pixels)

    monkeypatch.setattr(latents_module, "encode_pixels", counting)
    return counts


@pytest.fixture
def case(tmp_path):
    """Options of a run at 16x16 pixels, 8x8 latents."""
    tiny_vae(AutoencoderKL).save_pretrained(tmp_path / "vae")
    data = save_dataset(tmp_path)
    return ["--train_data_dir", data, "--vae", tmp_path / "vae", "--cache_dir", tmp_path / "cache"]


def components(*arguments):
    return build_components(parse_args([*TRUNK, *map(str, arguments)]))


def pixels_of(row):
    pixels = np.asarray(row["image"].convert("RGB")) / 127.5 - 1
    return torch.from_numpy(pixels).float().movedim(-1, 0)


@pytest.mark.parametrize("cls", [AutoencoderKL, AutoencoderTiny])
def test_cached_latents_are_those_of_the_pipeline(tmp_path, cls):
    tiny_vae(cls).save_pretrained(tmp_path / "vae")
    built = components(
        "--train_data_dir", save_dataset(tmp_path), "--vae", tmp_path / "vae", "--cache_dir", tmp_path, *MODALITIES
    )
    assert isinstance(built.vae, cls) and built.unet.config.sample_size == 8 and built.unet.config.in_channels == 4
    assert not built.scheduler.config.clip_sample
    rows = [example(i) for i in (30, 2, 7)]
    batch = built.reader([built.dataset[i] for i in (30, 2, 7)])
    pipeline = MultimodalMultitaskPipeline(built.unet, built.scheduler, built.vae)
    with torch.no_grad():
        expected = pipeline._encode_image(torch.stack([pixels_of(row) for row in rows]))
    torch.testing.assert_close(batch["inputs"]["image"], expected, atol=1e-5, rtol=1e-5)
    masks = [np.asarray(row["mask"].resize((8, 8), PIL.Image.Resampling.NEAREST)) for row in rows]
    assert np.array_equal(batch["inputs"]["mask"].numpy(), masks)
    assert batch["inputs"]["label"].tolist() == [0, 2, 1]


def test_scaling_and_shift_are_undone():
    vae = tiny_vae(AutoencoderKL).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(pixels).latent_dist.mode()
        latents = encode_pixels(vae, pixels)
        assert torch.allclose(latents, (raw - 0.1) * 0.5, atol=1e-6)
        assert torch.allclose(decode_latents(vae, latents), vae.decode(raw).sample, atol=1e-5)
    assert downscale_factor(vae) == 2


def test_latents_are_computed_once_whatever_the_modalities(case, encodings):
    components(*case, *MODALITIES)
    assert sum(encodings) == 36
    components(*case, "--modality", "label:categorical")
    components(*case)
    assert sum(encodings) == 36


def test_a_cache_is_never_stale(case, encodings, tmp_path):
    """Other images, another autoencoder, resolution or scale: each has latents of its own, and the first ones stay."""
    components(*case)
    changes = {}
    vae = tiny_vae(AutoencoderKL)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    vae.save_pretrained(tmp_path / "trained")
    vae = tiny_vae(AutoencoderKL)
    vae.register_to_config(scaling_factor=0.6)
    vae.save_pretrained(tmp_path / "scaled")
    changes["weights"] = [*case, "--vae", tmp_path / "trained"]
    changes["scaling"] = [*case, "--vae", tmp_path / "scaled"]
    changes["resolution"] = [*case, "--resolution", 32]
    (tmp_path / "other").mkdir()
    rows = [example(i) for i in range(36)]
    rows[5] = example(99)
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "other" / "data")
    changes["data"] = [*case, "--train_data_dir", tmp_path / "other" / "data"]
    for number, (name, arguments) in enumerate(changes.items(), 2):
        components(*arguments)
        assert sum(encodings) == 36 * number, name
    components(*case)
    assert sum(encodings) == 36 * 5
    assert len(list((tmp_path / "cache" / "mmdiff_pipelines").iterdir())) == 5


def test_an_image_file_that_changes_is_encoded_again(case, encodings, tmp_path):
    for i in range(8):
        example(i)["image"].save(tmp_path / f"{i}.png")
    lines = ["image", *(str(tmp_path / f"{i}.png") for i in range(8))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    arguments = ["--data_files", tmp_path / "rows.csv", *case[2:]]
    first = components(*arguments)
    example(50)["image"].save(tmp_path / "3.png")
    os.utime(tmp_path / "3.png", ns=(1, 1))
    second = components(*arguments)
    assert sum(encodings) == 16
    same = [first.dataset[i] == second.dataset[i] for i in range(8)]
    assert same == [True] * 3 + [False] + [True] * 4


def test_a_cache_that_was_not_finished_is_not_used(case, encodings, monkeypatch, tmp_path):
    count = latents_module.encode_pixels

    def dying(vae, pixels):
        if len(encodings) == 2:
            raise KeyboardInterrupt
        return count(vae, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latents_module, "encode_pixels", dying)
        components(*case)
    assert not list((tmp_path / "cache" / "mmdiff_pipelines").glob("*.arrow"))
    encodings.clear()
    assert len(components(*case).dataset) == 36 and sum(encodings) == 36


def test_some_rows_only(case, encodings):
    built = components(*case, *MODALITIES, "--max_train_samples", 12)
    assert len(built.dataset) == sum(encodings) == 12
    batch = built.reader(list(built.dataset))
    pixel_space = components(*case[:2], *MODALITIES, "--max_train_samples", 12)
    assert batch["inputs"]["label"].tolist() == [row["label"] for row in pixel_space.dataset]
    with torch.no_grad():
        expected = encode_pixels(built.vae, torch.stack([pixels_of(row) for row in pixel_space.dataset]))
    torch.testing.assert_close(batch["inputs"]["image"], expected, atol=1e-5, rtol=1e-5)


def test_latents_in_memory_are_the_same(case):
    built = components(*case, *MODALITIES)
    memory = MemoryDataset(built.dataset, built.reader, batch_size=5)
    again, direct = memory.__getitems__([3, 30]), built.reader([built.dataset[i] for i in (3, 30)])
    for name, tensor in direct["inputs"].items():
        assert torch.equal(again["inputs"][name], tensor)


def test_maps_must_be_aligned_with_the_image_that_was_encoded(tmp_path, case):
    rows = [example(i) for i in range(8)]
    rows[0]["mask"] = PIL.Image.fromarray(np.zeros((16, 32), np.uint8))
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "wide")
    built = components("--train_data_dir", tmp_path / "wide", *case[2:], *MODALITIES)
    with pytest.raises(ValueError, match=r"modality 'mask'.*\(16, 32\).*\(16, 16\).*aspect"):
        built.reader([built.dataset[0]])


def test_a_run_saves_the_autoencoder_and_can_be_continued(case, tmp_path):
    run(
        *case, *MODALITIES, "--max_train_steps", 2, "--validation_steps", 2, "--num_inference_steps", 1,
        "--num_validation_images", 2, "--output_dir", tmp_path / "first",
    )  # fmt: skip
    pipe = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "first"))
    pipe.set_progress_bar_config(disable=True)
    output = pipe(batch_size=2, num_inference_steps=2)
    assert output.images[0].size == (16, 16) and output.modalities["mask"][0].size == (8, 8)
    run(
        "--train_data_dir", case[1], "--cache_dir", tmp_path / "cache", "--max_train_steps", 1,
        "--pretrained_model_name_or_path", tmp_path / "first", "--output_dir", tmp_path / "second",
    )  # fmt: skip
    second = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "second"))
    for name, tensor in second.vae.state_dict().items():
        assert torch.equal(tensor, tiny_vae_of(case).state_dict()[name])
    assert len(list((tmp_path / "cache" / "mmdiff_pipelines").iterdir())) == 1


def tiny_vae_of(case):
    return AutoencoderKL.from_pretrained(case[3])


def test_a_dry_run(case, tmp_path, capsys):
    run(*case, *MODALITIES, "--dry_run", "--output_dir", tmp_path / "run")
    assert "(4, 8, 8) torch.float32" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random_flip"], "--random_flip.*no moved latent"),
        (["--random_crop", 2], "--random_crop.*no moved latent"),
        (["--streaming", "--max_train_steps", 1], "--streaming.*once"),
        (["--image_channels", 1], "--image_channels.*autoencoder"),
        (["--modality", "hole:masked_image"], "`vae`: modality 'hole'.*pixels"),
        (["--resolution", 18], r"--resolution is \[18\].*autoencoder.*multiple of 4"),
    ],
)
def test_what_latents_cannot_do_is_refused(case, tmp_path, encodings, arguments, message):
    with pytest.raises(ValueError, match=message):
        components(*case, *arguments)
    assert not encodings and not (tmp_path / "cache" / "mmdiff_pipelines").exists()


def test_another_model_is_no_autoencoder(case, tmp_path):
    UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    with pytest.raises(ValueError, match="is a UNet2DModel; accepted: AutoencoderKL, AutoencoderTiny"):
        components(*case, "--vae", tmp_path / "unet")
    with pytest.raises(ValueError, match="--vae .*no config.json.*--vae_subfolder"):
        components(*case, "--vae", tmp_path, "--vae_subfolder", "nothing")
    with pytest.raises(SystemExit):
        parse_args([*map(str, case), "--pretrained_model_name_or_path", "x"])
