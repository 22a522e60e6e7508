"""The data preparation of CIFAR-10 and CamVid, on a few made pictures."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, load_from_disk

from mmdiff_pipelines.evaluation import EfficientNetLite0, Projection, extract_features


ROOT = Path(__file__).parent.parent


def load_script(path):
    spec = importlib.util.spec_from_file_location("prepare", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cifar10():
    return load_script("examples/cifar10/prepare.py")


@pytest.fixture(scope="module")
def camvid():
    return load_script("examples/camvid/prepare.py")


def cifar10_arrays(train=20, test=10):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": train, "test": test}.items():
        arrays[f"{split}_x"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_y"] = np.arange(count) % 10
    return arrays


def camvid_arrays(train=6, val=4):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": train, "val": val}.items():
        arrays[f"{split}_x"] = generator.integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)
        arrays[f"{split}_m"] = generator.integers(0, 12, (count, 24, 32), dtype=np.uint8)
    return arrays


def test_cifar10_from_pixels(cifar10, tmp_path):
    arrays = cifar10_arrays()
    np.savez(tmp_path / "data.npz", **arrays)
    cifar10.main(["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data")])
    dataset = load_from_disk(str(tmp_path / "data"))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 20, "test": 10}
    assert dataset["train"].features["label"].int2str(3) == "cat" and dataset["train"][3]["label"] == 3
    assert np.array_equal(np.asarray(dataset["train"][4]["image"]), arrays["train_x"][4])


def test_cifar10_from_jpegs(cifar10, tmp_path):
    arrays = cifar10_arrays()
    for split in ("train", "test"):
        parts = []
        for pixels in arrays.pop(f"{split}_x"):
            PIL.Image.fromarray(pixels).save(part := io.BytesIO(), "JPEG")
            parts.append(part.getvalue())
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(parts), np.uint8)
        arrays[f"{split}_end"] = np.cumsum([len(part) for part in parts])
    np.savez(tmp_path / "data.npz", **arrays)
    cifar10.main(["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data")])
    last = load_from_disk(str(tmp_path / "data"))["test"][9]["image"]
    assert np.array_equal(np.asarray(last), np.asarray(PIL.Image.open(io.BytesIO(parts[9]))))


def test_embeddings_are_those_of_the_encoder_and_the_projection_beside_them(cifar10, tmp_path):
    torch.manual_seed(0)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "weights.pth")
    np.savez(tmp_path / "data.npz", **cifar10_arrays())
    arguments = ["--encoder", "efficientnet_lite0", "--encoder_weights", str(tmp_path / "weights.pth")]
    paths = ["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data")]
    cifar10.main([*paths, *arguments, "--embedding_dim", "4"])
    rows = load_from_disk(str(tmp_path / "data"))["test"]
    assert json.loads((tmp_path / "data/encoder.json").read_text()) == {"encoder": "efficientnet_lite0"}
    network = EfficientNetLite0.from_weights(tmp_path / "weights.pth")
    images = torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).movedim(-1, 1) / 255
    embeddings = Projection.load(tmp_path / "data/projection.safetensors")(extract_features(network, images))
    torch.testing.assert_close(torch.tensor(rows["embedding"]), embeddings)
    assert embeddings.shape == (10, 4)


def test_camvid_scales_and_leaves_out_void(camvid, tmp_path):
    arrays = camvid_arrays()
    np.savez(tmp_path / "data.npz", **arrays)
    paths = ["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data")]
    camvid.main([*paths, "--size", "24", "32"])
    row = load_from_disk(str(tmp_path / "data"))["val"][1]
    assert np.array_equal(np.asarray(row["image"]), arrays["val_x"][1])
    mask = arrays["val_m"][1]
    assert np.array_equal(np.asarray(row["mask"]), np.where(mask == 11, 255, mask))
    camvid.main([*paths, "--size", "12", "16", "--overwrite"])
    assert load_from_disk(str(tmp_path / "data"))["train"][0]["mask"].size == (16, 12)


def test_camvid_from_a_folder_of_pngs(camvid, tmp_path):
    arrays = camvid_arrays()
    for split in ("train", "val"):
        for suffix, values in {"": arrays[f"{split}_x"], "annot": arrays[f"{split}_m"]}.items():
            (tmp_path / "camvid" / f"{split}{suffix}").mkdir(parents=True)
            for i, pixels in enumerate(values):
                PIL.Image.fromarray(pixels).save(tmp_path / "camvid" / f"{split}{suffix}" / f"{i}.png")
    paths = ["--camvid_dir", str(tmp_path / "camvid"), "--output_dir", str(tmp_path / "data")]
    camvid.main([*paths, "--size", "24", "32"])
    assert len(load_from_disk(str(tmp_path / "data"))["train"]) == 6
    (tmp_path / "camvid/valannot/2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2.png has no mask"):
        camvid.main([*paths, "--overwrite"])
    assert len(load_from_disk(str(tmp_path / "data"))["val"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("test_y"), "test_y.* it has train_x"),
        (lambda arrays: arrays.update(test_y=np.zeros(3)), "10 images and 3 labels in 'test'"),
    ],
)
def test_wrong_arrays_of_cifar10_are_named(cifar10, tmp_path, change, message):
    arrays = cifar10_arrays()
    change(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        cifar10.main(["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data")])
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_a_dataset_of_the_hub_without_the_columns_is_named(cifar10, tmp_path, monkeypatch):
    rows = Dataset.from_dict({"picture": [0], "label": [1]})
    monkeypatch.setattr(cifar10, "load_dataset", lambda name, split: rows)
    with pytest.raises(ValueError, match="--dataset_name other/data: no .'img'.; it has picture, label"):
        cifar10.main(["--dataset_name", "other/data", "--output_dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_wrong_masks_of_camvid_are_named(camvid, tmp_path):
    arrays = camvid_arrays()
    arrays["val_m"][0, 0, 0] = 30
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match="values to 30; accepted: 0 to 11"):
        camvid.main(
            ["--npz", str(tmp_path / "data.npz"), "--output_dir", str(tmp_path / "data"), "--size", "24", "32"]
        )
