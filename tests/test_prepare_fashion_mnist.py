"""The data preparation, on fifty vendored images."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk


ROOT = Path(__file__).parent.parent
IDX_DIR = Path(__file__).parent / "fixtures" / "fashion_mnist"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "examples/fashion_mnist/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(prepare, output_dir, idx_dir=IDX_DIR, *options):
    prepare.main(["--idx_dir", str(idx_dir), "--output_dir", str(output_dir), *options])


def test_columns_padding_and_the_rule_of_the_mask(prepare, tmp_path):
    run(prepare, tmp_path / "data")
    dataset = load_from_disk(str(tmp_path / "data"))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 40, "test": 10}
    assert dataset["train"].column_names == ["image", "label", "mask"]
    assert dataset["train"].features["label"].names[9] == "Ankle boot"
    assert sorted(set(dataset["train"]["label"])) == list(range(10))
    for row in dataset["train"]:
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"])
        assert image.shape == mask.shape == (32, 32) and image.dtype == np.uint8
        assert image[:2].max() == image[:, -2:].max() == 0
        assert np.array_equal(mask, image > 51)
    original = prepare.read_idx(IDX_DIR / "train-images-idx3-ubyte.gz", 3)
    assert np.array_equal(np.asarray(dataset["train"][0]["image"])[2:-2, 2:-2], original[0])


def test_an_existing_folder_is_kept_unless_told_otherwise(prepare, tmp_path, capsys):
    output_dir = tmp_path / "data"
    run(prepare, output_dir)
    with pytest.raises(SystemExit):
        run(prepare, output_dir)
    assert "--overwrite" in capsys.readouterr().err
    run(prepare, output_dir, IDX_DIR, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "has no train-images"),
        (lambda path: path.with_suffix("").write_bytes(b"\0\0\10\1") and path.unlink(), "no idx file of bytes with 3"),
        (
            lambda path: path.with_suffix("").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 9] * 3])) and path.unlink(),
            "729",
        ),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(prepare, tmp_path, damage, message):
    idx_dir = shutil.copytree(IDX_DIR, tmp_path / "idx")
    damage(idx_dir / "train-images-idx3-ubyte.gz")
    output_dir = tmp_path / "data"
    output_dir.mkdir()
    (output_dir / "precious").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(prepare, output_dir, idx_dir, "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "idx"] and (output_dir / "precious").exists()


def test_captions_say_tone_and_kind(prepare, tmp_path):
    run(prepare, tmp_path / "data", IDX_DIR, "--captions")
    rows = load_from_disk(str(tmp_path / "data"))["train"]
    assert rows.column_names == ["image", "label", "mask", "caption"]
    assert {row["caption"].split()[1] for row in rows} <= set(prepare.TONES)
    assert all(row["caption"].endswith(prepare.CLASS_NAMES[row["label"]].lower()) for row in rows)
    assert prepare.caption(prepare.tone_of(prepare.np.zeros((28, 28))), 7) == "a dark sneaker"
