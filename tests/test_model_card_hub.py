"""Whatever way a pipeline gets to the Hub, its own card goes with it, and nothing that its owner wrote is lost."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.pipelines.model_card import MARK, build_card, write_card

from .conftest import build_pipeline
from .hub_server import OWNER


@pytest.fixture
def folder(pipeline, tmp_path):
    """A trained pipeline's folder, with a checkpoint and logs beside it."""
    folder = tmp_path / "run"
    pipeline.save_pretrained(str(folder))
    record(folder, steps=3)
    for path in ("checkpoint-3/model.bin", "logs/events", "notes.txt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("private")
    write_card(folder)
    return folder


def record(folder, **values):
    (folder / "training.json").write_text(json.dumps(values))


def card(hub):
    return hub.files("user/repo")["README.md"].decode()


def put_readme(text):
    HfApi().create_repo("user/repo", token=OWNER, exist_ok=True)
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="user/repo", token=OWNER)


def test_a_pipeline_in_memory_is_pushed_with_its_card(pipeline, hub):
    pipeline.push_to_hub("user/repo", token=OWNER)
    assert MARK in card(hub) and "No record of it lies" in card(hub)
    assert 'MultimodalMultitaskPipeline.from_pretrained("user/repo")' in card(hub)
    assert ModelCard(card(hub)).data.library_name == "mmdiff_pipelines"


def test_the_records_go_with_the_weights_that_they_are_of(folder, hub):
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    pipeline.push_to_hub("user/repo", token=OWNER)
    assert card(hub) == build_card(folder, "user/repo") and "| Steps | 3 |" in card(hub)
    assert hub.files("user/repo")["training.json"] == (folder / "training.json").read_bytes()

    with torch.no_grad():
        pipeline.unet.conv_in.weight += 1
    pipeline.push_to_hub("user/changed", token=OWNER)
    assert "training.json" not in hub.files("user/changed")
    assert "No record of it lies" in hub.files("user/changed")["README.md"].decode()


def test_a_folder_is_pushed_with_its_card_and_without_its_checkpoints(folder, hub):
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    pipeline.save_pretrained(folder, push_to_hub=True, repo_id="user/repo", token=OWNER, private=True)
    assert hub.repos["user/repo"].private
    assert set(hub.files("user/repo")) == {
        "README.md", "training.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert card(hub) == (folder / "README.md").read_text() == build_card(folder, "user/repo")


def test_a_card_that_was_made_here_is_renewed_only_by_a_record(folder, hub):
    put_readme(f'{MARK}\nold, revision="standalone"')
    build_pipeline().push_to_hub("user/repo", token=OWNER)
    assert "old" in card(hub)
    MultimodalMultitaskPipeline.from_pretrained(str(folder)).push_to_hub("user/repo", token=OWNER)
    assert card(hub) == build_card(folder, "user/repo", standalone=True)


def test_a_card_of_its_owner_stays_on_the_hub(folder, hub):
    put_readme("My words.")
    MultimodalMultitaskPipeline.from_pretrained(str(folder)).push_to_hub("user/repo", token=OWNER)
    assert card(hub) == "My words."
    assert {"training.json", "model_index.json"} < set(hub.files("user/repo"))


def test_a_card_of_its_owner_in_the_folder_is_uploaded(folder, hub):
    (folder / "README.md").write_text("My words.")
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    pipeline.save_pretrained(str(folder), push_to_hub=True, repo_id="user/repo", token=OWNER)
    assert card(hub) == (folder / "README.md").read_text() == "My words."
    pipeline.push_to_hub("user/other", token=OWNER)
    assert hub.files("user/other")["README.md"] == b"My words."


def test_a_bad_record_is_refused_before_anything_is_created(folder, hub):
    record(folder, steps="many")
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="training.json: 'steps' is 'many'"):
        pipeline.push_to_hub("user/repo", token=OWNER)
    with pytest.raises(ValueError, match="training.json: 'steps' is 'many'"):
        pipeline.save_pretrained(str(folder), push_to_hub=True, repo_id="user/repo", token=OWNER)
    assert not hub.repos
