"""Every line of the guides in docs/ runs as it stands, in an empty folder, with a Hub on the loopback."""

import csv
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import ModelCard

from mmdiff_pipelines import MODALITY_TYPES

from .hub_server import OWNER
from .training_case import reset_accelerate


ROOT = Path(__file__).parent.parent
LAUNCHER = ["accelerate", "launch", "--cpu", "--num_processes", "1"]


def blocks(guide):
    """(language, text) of a guide's code, in order; what is only shown has no language."""
    return re.findall(r"^```(python|bash)\n(.*?)^```", (ROOT / "docs" / guide).read_text(), re.M | re.S)


def run_guide(guide, monkeypatch):
    """Run it in the current folder; returns what its Python code defined."""
    namespace = {}
    for language, text in blocks(guide):
        named = re.match(r"# (\w+\.py)\n", text)
        if named:
            Path(named[1]).write_text(text)
        elif language == "python":
            exec(compile(text, guide, "exec"), namespace)
        else:
            launch(shlex.split(text.replace("\\\n", " ")), monkeypatch)
    return namespace


def launch(command, monkeypatch):
    """A command of `accelerate launch`: what is cheap as it stands, else its script in this process."""
    assert command[: len(LAUNCHER)] == LAUNCHER
    if "--dry_run" in command:
        printed = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command[1:]],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "Emergence" in printed and "['box', 'disc']" in printed
        return
    monkeypatch.setattr(sys, "argv", command[len(LAUNCHER) :])
    reset_accelerate()
    runpy.run_path(sys.argv[0], run_name="__main__")


def draw(i):
    """A red box or a blue disc on black, its mask, and what it is."""
    y, x = np.mgrid[:32, :32]
    label = ["box", "disc"][i % 2]
    center = 12 + i % 8
    mask = (abs(x - center) < 8) & (abs(y - 16) < 8) if label == "box" else (x - center) ** 2 + (y - 16) ** 2 < 80
    image = np.where(mask[..., None], [220, 40, 40] if label == "box" else [40, 40, 220], 10).astype(np.uint8)
    return PIL.Image.fromarray(image), PIL.Image.fromarray(mask.astype(np.uint8)), label


def draw_folder(folder, rows, without_mask=None):
    """Images, masks, and the table."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "mask_file_name", "label"])
        for i in range(rows):
            image, mask, label = draw(i)
            image.save(folder / f"images/{i:03}.png")
            mask.save(folder / f"masks/{i:03}.png")
            table.writerow([f"images/{i:03}.png", "" if i == without_mask else f"masks/{i:03}.png", label])


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "examples").symlink_to(ROOT / "examples")


def test_your_own_data(tmp_path, monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", OWNER)
    draw_folder(tmp_path / "my_data/train", 24, without_mask=2)
    draw_folder(tmp_path / "my_data/test", 8)
    results = run_guide("your_own_data.md", monkeypatch)
    assert results["accuracy"] > results["commonest"] and results["iou"] > 0.7
    assert {"README.md", "evaluation.json", "training.json"} <= set(hub.files("user/my-model"))
    card = ModelCard(hub.files("user/my-model")["README.md"].decode())
    assert card.data.eval_results[0].metric_value == results["accuracy"]
    assert (tmp_path / "my-better-model/model_index.json").exists()


def test_your_own_modality(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODALITY_TYPES, "tags", None)  # restored afterwards
    tags = ["red", "round", "large"]
    features = datasets.Features({"image": datasets.Image(), "tags": datasets.List(datasets.Value("string"))})
    rows = [{"image": draw(i)[0], "tags": [tag for j, tag in enumerate(tags) if i >> j & 1]} for i in range(16)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "tagged.parquet")
    run_guide("your_own_modality.md", monkeypatch)
    runpy.run_path("sample.py")
    assert "tensor" in capsys.readouterr().out
    assert "tags" in (tmp_path / "tags-model/unet/config.json").read_text()
