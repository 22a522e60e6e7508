"""The Hub and back with the real client, and what goes wrong on the way."""

import json
import warnings

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from mmdiff_pipelines import MODALITY_TYPES, MultimodalMultitaskPipeline
from mmdiff_pipelines.modalities import VectorModality

from .conftest import TRUNK, build_pipeline
from .hub_server import OWNER, READER, STRANGER, Fault


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PIPELINE_FILES = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS}
DOWNLOAD = "^GET /(blobs|.*/resolve)/"


def load(repo_id="user/repo", **arguments):
    pipeline = MultimodalMultitaskPipeline.from_pretrained(repo_id, **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline(given={"label": "dog"}, num_inference_steps=2, generator=generator, output_type="pt")


def assert_equal_outputs(actual, expected, tolerance=1e-5):
    actual, expected = generate(actual), generate(expected)
    torch.testing.assert_close(actual.images, expected.images, atol=tolerance, rtol=0)
    torch.testing.assert_close(
        actual.modalities["caption"], expected.modalities["caption"], atol=10 * tolerance, rtol=0
    )


def changed(pipeline):
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(0.1)
    return pipeline


def upload_folder(pipeline, folder, repo_id="user/repo", **arguments):
    pipeline.save_pretrained(str(folder))
    return HfApi(token=OWNER).upload_folder(repo_id=repo_id, folder_path=folder, **arguments)


@pytest.mark.parametrize("lfs", [True, False])
def test_pushed_and_loaded_it_puts_out_the_same(pipeline, hub, lfs):
    hub.lfs_suffixes = (".safetensors",) if lfs else ()
    address = pipeline.push_to_hub("user/repo", token=OWNER)
    assert str(address) == f"{hub.url}/user/repo/commit/{hub.repos['user/repo'].branches['main']}"
    assert set(hub.files("user/repo")) == PIPELINE_FILES | {"README.md"}
    assert len(hub.blobs) == (1 if lfs else 0)
    index = json.loads(hub.files("user/repo")["model_index.json"])
    assert index["unet"] == ["mmdiff_pipelines", "MultimodalUNet2DModel"]
    assert index["scheduler"] == ["mmdiff_pipelines", "MultimodalDDPMScheduler"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load()
    assert_equal_outputs(loaded, pipeline)


def test_saving_can_push(pipeline, hub, tmp_path):
    pipeline.save_pretrained(str(tmp_path / "run"), push_to_hub=True, repo_id="user/repo", token=OWNER, private=True)
    assert hub.repos["user/repo"].private
    files = hub.files("user/repo")
    assert set(files) == PIPELINE_FILES | {"README.md"}
    assert all((tmp_path / "run" / name).read_bytes() == files[name] for name in PIPELINE_FILES)
    assert_equal_outputs(load(token=OWNER), pipeline)


def test_a_second_push_uploads_only_what_changed(pipeline, hub):
    pipeline.push_to_hub("user/repo", token=OWNER)
    blobs = set(hub.blobs)
    pipeline.scheduler.register_to_config(clip_sample=False)
    pipeline.push_to_hub("user/repo", token=OWNER)
    assert set(hub.blobs) == blobs and hub.count("^PUT /blobs/") == 1
    assert not load().scheduler.config.clip_sample


def test_every_revision_keeps_its_weights(pipeline, hub, tmp_path):
    pipeline.push_to_hub("user/repo", token=OWNER)
    first = hub.repos["user/repo"].branches["main"]
    HfApi(token=OWNER).create_branch("user/repo", branch="candidate")
    other = changed(build_pipeline())
    upload_folder(other, tmp_path, revision="candidate")
    assert hub.repos["user/repo"].branches["main"] == first
    assert_equal_outputs(load(), pipeline)
    assert_equal_outputs(load(revision="candidate"), other)

    upload_folder(other, tmp_path)
    assert_equal_outputs(load(), other)
    assert_equal_outputs(load(revision=first), pipeline)
    assert not torch.equal(generate(pipeline).images, generate(other).images)


def test_half_precision_is_a_variant(pipeline, hub):
    pipeline.push_to_hub("user/repo", token=OWNER)
    half = build_pipeline().to(torch.float16)
    half.push_to_hub("user/repo", token=OWNER, variant="fp16")
    loaded = load(variant="fp16", dtype=torch.float16)
    assert loaded.dtype == torch.float16
    assert hub.count("^GET /blobs/") == 1  # of the two files of weights
    assert_equal_outputs(loaded.to(torch.float32), half.to(torch.float32), tolerance=1e-4)
    assert load().dtype == torch.float32


def test_what_was_loaded_is_not_fetched_again(pipeline, hub):
    pipeline.push_to_hub("user/repo", token=OWNER)
    load()
    assert hub.count(DOWNLOAD) == len(PIPELINE_FILES)
    hub.requests.clear()
    load()
    assert hub.count(DOWNLOAD) == 0 and hub.requests
    hub.requests.clear()
    assert_equal_outputs(load(local_files_only=True), pipeline)
    assert not hub.requests


def test_what_was_loaded_survives_a_hub_that_is_down(pipeline, hub):
    pipeline.push_to_hub("user/repo", token=OWNER)
    load()
    hub.faults.append(Fault("", times=1000, status=500))
    assert_equal_outputs(load(), pipeline)
    assert hub.faults[0].times < 1000


def test_local_files_only_needs_them(hub):
    with pytest.raises(OSError, match="model_index.json"):
        load("user/repo", local_files_only=True)
    assert not hub.requests


def test_a_private_repo_opens_to_its_owner_only(pipeline, hub, monkeypatch):
    pipeline.push_to_hub("user/repo", token=OWNER, private=True)
    for token in (None, STRANGER):
        with pytest.raises(OSError, match="user/repo.*\n.*private.*token"):
            load(token=token)
    assert_equal_outputs(load(token=READER), pipeline)
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert_equal_outputs(load(force_download=True), pipeline)
    assert hub.count(DOWNLOAD) >= 1


@pytest.mark.parametrize("chunk_size", [4096, 10 * 1024 * 1024])
def test_an_interrupted_download_goes_on(pipeline, hub, monkeypatch, chunk_size):
    """By Range where a chunk has arrived, from the start where none has."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk_size)
    pipeline.push_to_hub("user/repo", token=OWNER)
    cut = 3 * 4096 + 100
    hub.faults.append(Fault("^GET /blobs/", cut=cut))
    assert_equal_outputs(load(), pipeline)
    assert hub.faults[0].times == 0
    fetched = [request.split(" ")[2:] for request in hub.requests if request.startswith("GET /blobs/")]
    resumed = [f"bytes={3 * 4096}-"] if chunk_size == 4096 else []
    assert fetched == [[], resumed]


@pytest.mark.parametrize("request_", ["^GET /api/models/", "^HEAD .*/resolve/", "^GET .*/resolve/.*/unet/config.json"])
def test_a_hub_that_recovers(pipeline, hub, request_):
    """The client asks again where it can; else one clear error, and the next load is right."""
    pipeline.push_to_hub("user/repo", token=OWNER)
    hub.faults.append(Fault(request_, status=500))
    try:
        loaded = load()
    except OSError as error:
        assert "500" in str(error) or "model_index.json" in str(error)
        loaded = load()
    assert hub.faults[0].times == 0
    assert_equal_outputs(loaded, pipeline)


@pytest.mark.parametrize("request_", ["/preupload/", "/objects/batch", "^PUT /blobs/", "/lfs/verify"])
def test_an_upload_survives_a_hiccup(pipeline, hub, request_):
    hub.faults.append(Fault(request_, status=500))
    pipeline.push_to_hub("user/repo", token=OWNER)
    assert hub.faults[0].times == 0 and set(hub.files("user/repo")) > PIPELINE_FILES


def test_a_commit_happens_whole_or_not_at_all(pipeline, hub):
    hub.faults.append(Fault("/commit/", status=500))
    with pytest.raises(HfHubHTTPError, match="500.*user/repo/commit"):
        pipeline.push_to_hub("user/repo", token=OWNER)
    assert hub.files("user/repo") == {}
    pipeline.push_to_hub("user/repo", token=OWNER)
    assert_equal_outputs(load(), pipeline)


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (READER, "user/repo", "403.*rights to write to user/repo"),
        (READER, "user/new", "403.*rights to create.*user"),
        (STRANGER, "user/repo", "403.*rights.*user"),
        (None, "user/repo", "401"),
    ],
)
def test_nothing_is_uploaded_without_write_access(pipeline, hub, tmp_path, token, repo_id, message):
    pipeline.push_to_hub("user/repo", token=OWNER)
    before, blobs = hub.files("user/repo"), dict(hub.blobs)
    other = changed(build_pipeline())
    with pytest.raises(HfHubHTTPError, match=message):
        other.push_to_hub(repo_id, token=token)
    with pytest.raises(HfHubHTTPError, match=message):
        other.save_pretrained(str(tmp_path), push_to_hub=True, repo_id=repo_id, token=token)
    assert hub.files("user/repo") == before and hub.blobs == blobs and set(hub.repos) == {"user/repo"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"repo_id": "user/missing"}, OSError, "user/missing is not a local folder"),
        ({"revision": "v9"}, OSError, "v9 is not a valid git identifier"),
        ({"revision": "0" * 40}, OSError, "0000 is not a valid git identifier"),
        ({"variant": "fp16"}, ValueError, "variant=fp16"),
    ],
)
def test_what_is_not_on_the_hub_is_named(pipeline, hub, arguments, error, message):
    pipeline.push_to_hub("user/repo", token=OWNER)
    with pytest.raises(error, match=message):
        load(**arguments)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model_index.json", "user/repo.*model_index.json"),
        ("unet/config.json", "no file named config.json.*unet"),
        ("scheduler/scheduler_config.json", "no file named scheduler_config.json"),
        (WEIGHTS, "find the necessary `safetensors` weights"),
    ],
)
def test_a_missing_file_is_named(pipeline, hub, path, message):
    pipeline.push_to_hub("user/repo", token=OWNER)
    HfApi(token=OWNER).delete_file(path, "user/repo")
    with pytest.raises(OSError, match=message):
        load()


def test_another_pipeline_is_refused_before_its_weights_are_fetched(hub):
    other = DDPMPipeline(UNet2DModel(**TRUNK), DDPMScheduler())
    other.push_to_hub("user/ddpm", token=OWNER)
    with pytest.raises(ValueError, match="'user/ddpm'.*DDPMPipeline.*UNet2DModel.*from_unet"):
        load("user/ddpm")
    assert hub.count("/resolve/.*safetensors") == 0 and hub.count("^GET /blobs/") == 0


def test_a_modality_from_outside_is_asked_for(hub, monkeypatch):
    monkeypatch.setitem(MODALITY_TYPES, "sound", VectorModality)
    build_pipeline({"sound": {"type": "sound", "dim": 4}}).push_to_hub("user/repo", token=OWNER)
    assert "sound" in load().unet.modality_modules
    monkeypatch.delitem(MODALITY_TYPES, "sound")
    with pytest.raises(ValueError, match="'sound'.*MODALITY_TYPES.*before loading"):
        load()
