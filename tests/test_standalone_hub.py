"""Checkpoints that carry their code, on a branch beside `main`."""

import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from huggingface_hub.errors import HfHubHTTPError

from mmdiff_pipelines import MultimodalDDIMScheduler, MultimodalMultitaskPipeline, push_standalone

from .conftest import build_pipeline
from .hub_server import OWNER, READER
from .test_standalone import OWN, VERSION, sample_in_all_ways


LOADED = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}
LOADED |= {"unet/diffusion_pytorch_model.safetensors"}
CODE = {f"pipeline_multimodal_multitask_{VERSION}.py", f"unet/unet_multimodal_{VERSION}.py"}
CODE |= {f"scheduler/scheduling_multimodal_ddpm_{VERSION}.py"}


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    """Keep the code that is downloaded out of the user's cache."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_both_branches_load_and_give_the_same(hub):
    pipeline = build_pipeline(OWN)
    pipeline.push_to_hub("user/model", token=OWNER)
    main = hub.files("user/model")
    url = push_standalone(pipeline, "user/model", token=OWNER)
    assert url.endswith(hub.repos["user/model"].branches["standalone"])
    assert hub.files("user/model") == main
    files = hub.files("user/model", "standalone")
    assert set(files) == LOADED | CODE | {"README.md"}
    line = 'DiffusionPipeline.from_pretrained("user/model", revision="standalone", trust_remote_code=True)'
    assert line in files["README.md"].decode()

    expected = sample_in_all_ways(MultimodalMultitaskPipeline.from_pretrained("user/model"))
    with pytest.raises(ValueError, match="(?s)user/model contains custom code.*`trust_remote_code=True`"):
        DiffusionPipeline.from_pretrained("user/model", revision="standalone")
    loaded = DiffusionPipeline.from_pretrained("user/model", revision="standalone", trust_remote_code=True)
    for part in (loaded, loaded.unet, loaded.scheduler):
        assert type(part).__module__.startswith("diffusers_modules.")
    torch.testing.assert_close(sample_in_all_ways(loaded), expected, rtol=0, atol=0)


def test_a_branch_keeps_nothing_of_what_was_there_before(hub):
    pipeline = build_pipeline({})
    push_standalone(pipeline, "user/model", token=OWNER, private=True, branch="code")
    assert hub.repos["user/model"].private
    pipeline.scheduler = MultimodalDDIMScheduler.from_config(pipeline.scheduler.config)
    push_standalone(pipeline, "user/model", token=OWNER, branch="code")
    schedulers = {path for path in hub.files("user/model", "code") if path.startswith("scheduler/")}
    assert schedulers == {"scheduler/scheduler_config.json", f"scheduler/scheduling_multimodal_ddim_{VERSION}.py"}


def test_a_token_that_may_not_write_uploads_nothing(hub):
    pipeline = build_pipeline({})
    pipeline.push_to_hub("user/model", token=OWNER)
    with pytest.raises(HfHubHTTPError, match="rights to write"):
        push_standalone(pipeline, "user/model", token=READER)
    assert set(hub.repos["user/model"].branches) == {"main"}
