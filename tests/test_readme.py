"""What the README and the examples show runs as it stands."""

import importlib.util
import re
from pathlib import Path

import PIL.Image
import pytest

from mmdiff_pipelines import MODALITY_TYPES


ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["sample", "train", "modality"])
def test_snippets_run(snippet, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, entry in MODALITY_TYPES.items():  # restored afterwards, whatever a snippet adds
        monkeypatch.setitem(MODALITY_TYPES, name, entry)
    exec(compile(snippet, "README.md", "exec"), {})
    MODALITY_TYPES.pop("angle", None)


@pytest.mark.parametrize(
    "task", ["masked_pretraining", "image_and_label", "image_and_segmentation", "image_and_representation"]
)
def test_snippets_of_the_tasks_run_with_the_checkpoints(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (ROOT / f"examples/{task}/README.md").read_text(), re.M | re.S)
    snippet = re.sub(r"runs/paper/([\w-]+)-0", r"model_cards/\1", snippet).replace("steps=20", "steps=2")
    exec(compile(snippet, task, "exec"), {})


def test_files_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_demo_writes_its_picture(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples/demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    picture = tmp_path / "demo.png"
    demo.main(["--output", str(picture), "--num_inference_steps", "2"])
    assert PIL.Image.open(picture).width == 1000
    assert "label agreement" in capsys.readouterr().out
