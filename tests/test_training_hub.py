"""What a training run uploads."""

import sys

from .hub_server import OWNER
from .training_case import MODALITIES, run, save_dataset


def test_the_final_pipeline_is_pushed_and_nothing_else(tmp_path, hub, monkeypatch, capsys):
    arguments = [
        "--train_data_dir", save_dataset(tmp_path), *MODALITIES, "--max_train_steps", "1",
        "--checkpointing_steps", "1", "--output_dir", str(tmp_path / "run"), "--push_to_hub", "--hub_model_id",
        "user/model", "--hub_token", OWNER, "--hub_private_repo",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["examples/train_multimodal.py", *arguments])  # the card shows the command
    run(*arguments)
    repo = hub.repos["user/model"]
    assert f"Uploaded: {hub.url}/user/model/commit/{repo.branches['main']}" in capsys.readouterr().out
    assert repo.private
    assert hub.tokens == {OWNER, None}  # the blob store, which is another host, is not told the token
    assert hub.count("^POST .*/commit/") == 1
    files = hub.files("user/model")
    assert set(files) == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "training.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    weights = tmp_path / "run/unet/diffusion_pytorch_model.safetensors"
    assert files["unet/diffusion_pytorch_model.safetensors"] == weights.read_bytes()
    card = files["README.md"].decode()
    assert 'from_pretrained("user/model")' in card
    assert OWNER not in card and "--hub_private_repo" in card
