import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.columns import aligned, fit_map
from mmdiff_pipelines.training.components import build_components
from mmdiff_pipelines.training.data import MemoryDataset, example_rows

from .training_case import ANIMALS, MODALITIES, TRUNK, build_dataset, example, save_dataset


def components(*arguments):
    return build_components(parse_args([*TRUNK, *map(str, arguments)]))


def read(*arguments):
    """The first rows as a batch, and what was inferred of the data."""
    built = components(*arguments)
    return built.reader(list(built.dataset.take(8))), built


def test_columns_become_tensors_and_classes_are_inferred(tmp_path):
    batch, built = read("--train_data_dir", save_dataset(tmp_path), *MODALITIES)
    assert built.unet.config.modalities["label"] == {
        "type": "categorical", "num_classes": 3, "class_names": ANIMALS,
    }  # fmt: skip
    assert {name: tuple(t.shape) for name, t in batch["inputs"].items()} == {
        "image": (8, 1, 16, 16), "label": (8,), "mask": (8, 16, 16),
    }  # fmt: skip
    expected = np.asarray(example(1)["image"]) / 127.5 - 1
    assert np.allclose(batch["inputs"]["image"][1, 0], expected, atol=1e-6)
    assert batch["inputs"]["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert all(available.all() for available in batch["available"].values())


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    data = save_dataset(tmp_path)
    with pytest.raises(ValueError, match="column 'seg'.*no such column; it has image, label, mask"):
        components("--train_data_dir", data, "--modality", "mask:segmentation:column=seg,num_classes=2")
    with pytest.raises(ValueError, match="--image_column pixels.*it has image, label, mask"):
        components("--train_data_dir", data, "--image_column", "pixels")


def test_a_missing_split_is_named(tmp_path):
    datasets.DatasetDict({"train": build_dataset(4)}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="--split is 'valid'.*train"):
        components("--train_data_dir", tmp_path / "data", "--split", "valid")


def test_a_label_out_of_range_names_modality_value_and_range(tmp_path):
    dataset = datasets.Dataset.from_dict({"image": [example(0)["image"]] * 8, "y": [0, 1, 2, 9] * 2})
    dataset.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"(?s)modality 'y'.*9.*0 to 2"):
        read("--train_data_dir", tmp_path / "data", "--modality", "y:categorical:num_classes=3")


def test_a_mask_class_out_of_range_is_named(tmp_path):
    rows = [example(i) for i in range(8)]
    rows[3]["mask"] = PIL.Image.fromarray(np.full((16, 16), 5, np.uint8))
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"(?s)modality 'mask'.*class 5.*0 to 1"):
        read("--train_data_dir", tmp_path / "data", *MODALITIES)


def test_missing_annotations_are_placeholders_and_not_available(tmp_path):
    rows = [example(i) for i in range(8)]
    rows[1]["label"] = rows[2]["mask"] = None
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    batch, _ = read("--train_data_dir", tmp_path / "data", *MODALITIES)
    assert batch["available"]["label"].tolist() == [True, False] + [True] * 6
    assert batch["available"]["mask"].tolist() == [True, True, False] + [True] * 5
    assert (batch["inputs"]["mask"][2] == 255).all()


def test_an_integer_column_needs_num_classes(tmp_path):
    dataset = build_dataset(8).cast_column("label", datasets.Value("int64"))
    dataset.save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="--modality label.*num_classes"):
        read("--train_data_dir", tmp_path / "data", "--modality", "label:categorical")


VECTORS = {
    "numbers": ([1.0] * 8, r"\[\(\)\]; accepted: vectors"),
    "lengths": ([[1.0, 2.0]] * 7 + [[1.0]], r"\(1,\), \(2,\)"),
    "texts": ([["a", "b"]] * 8, "encoder="),
    "NaN": ([[1.0, 2.0]] * 7 + [[1.0, float("nan")]], "NaN"),
}


@pytest.mark.parametrize(("values", "message"), VECTORS.values(), ids=VECTORS)
def test_what_is_no_column_of_vectors_is_named(tmp_path, values, message):
    dataset = datasets.Dataset.from_dict({"image": [example(0)["image"]] * 8, "v": values})
    dataset.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=f"--modality v: column 'v' has .*{message}"):
        read("--train_data_dir", tmp_path / "data", "--modality", "v:vector")


@pytest.mark.parametrize("modality", ["image:column=label", "segmentation:column=label,num_classes=3"])
def test_a_column_of_numbers_is_no_map(tmp_path, modality):
    with pytest.raises(ValueError, match=r"modality 'depth', column 'label': a value of shape \(\); accepted"):
        read("--train_data_dir", save_dataset(tmp_path), "--modality", f"depth:{modality}")


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_damaged_picture_is_named(tmp_path, damage):
    example(0)["image"].save(tmp_path / "good.png")
    if damage == "cut":
        (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    if damage == "text":
        (tmp_path / "bad.png").write_text("no picture")
    rows = [f"{tmp_path}/{'bad' if i == 5 else 'good'}.png" for i in range(8)]
    (tmp_path / "rows.csv").write_text("\n".join(["image", *rows]))
    with pytest.raises(ValueError, match="row 5 of the dataset: "):
        read("--data_files", tmp_path / "rows.csv", "--cache_dir", tmp_path / "cache")


def test_nan_pixels_are_refused(tmp_path):
    images = np.zeros((8, 16, 16, 2), np.float32)
    images[5, 0, 0, 0] = np.nan
    features = datasets.Features({"image": datasets.Array3D((16, 16, 2), "float32")})
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="(?s)modality 'image', column 'image'.*nan"):
        read("--train_data_dir", tmp_path / "data")


def test_images_of_any_number_of_channels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 5), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Array3D((16, 16, 5), "uint8")})
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(tmp_path / "data")
    batch, built = read("--train_data_dir", tmp_path / "data")
    assert built.unet.config.in_channels == 5
    assert torch.allclose(batch["inputs"]["image"].movedim(1, -1), torch.from_numpy(images) / 127.5 - 1)


def test_image_channels_converts(tmp_path):
    batch, built = read("--train_data_dir", save_dataset(tmp_path), "--image_channels", 3)
    assert built.unet.config.in_channels == batch["inputs"]["image"].shape[1] == 3


def test_scales_of_maps_and_vectors_are_inferred(tmp_path):
    depth = [PIL.Image.fromarray(np.full((16, 16), 65535 // (1 + i % 2), np.uint16)) for i in range(8)]
    columns = {"image": [example(i)["image"] for i in range(8)], "depth": depth, "vec": [[3.0, 4.0]] * 8}
    dataset = datasets.Dataset.from_dict(columns).cast_column("depth", datasets.Image())
    dataset.save_to_disk(tmp_path / "data")
    batch, built = read(
        "--train_data_dir", tmp_path / "data", "--modality", "depth:image", "--modality", "vec:vector"
    )  # fmt: skip
    assert built.unet.config.modalities["vec"] == {"type": "vector", "dim": 2, "norm": 5.0}
    assert built.unet.config.modalities["depth"]["rms"] == pytest.approx(0.707, abs=1e-3)
    assert batch["inputs"]["depth"][0].unique().tolist() == [1.0]
    assert batch["inputs"]["depth"][1].unique().tolist() == pytest.approx([0.0], abs=1e-4)


def test_reading_again_from_memory_is_the_same(tmp_path):
    built = components("--train_data_dir", save_dataset(tmp_path), *MODALITIES)
    memory = MemoryDataset(built.dataset, built.reader, batch_size=5)
    indices = [3, 30, 7]
    again, direct = memory.__getitems__(indices), built.reader([built.dataset[i] for i in indices])
    assert len(memory) == len(built.dataset)
    assert memory.columns["inputs"]["image"].dtype == memory.columns["inputs"]["mask"].dtype == torch.uint8
    for kind in direct:
        for name, tensor in direct[kind].items():
            assert torch.equal(again[kind][name], tensor) and again[kind][name].dtype == tensor.dtype


def test_pixels_that_bytes_cannot_hold_stay_floats_in_memory(tmp_path):
    images = np.zeros((8, 16, 16, 1), np.float32)
    images[6] = 0.123  # the first batches would fit
    features = datasets.Features({"image": datasets.Array3D((16, 16, 1), "float32")})
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(tmp_path / "data")
    built = components("--train_data_dir", tmp_path / "data")
    memory = MemoryDataset(built.dataset, built.reader, batch_size=3)
    direct = built.reader(list(built.dataset))["inputs"]["image"]
    assert torch.equal(memory.__getitems__(list(range(8)))["inputs"]["image"], direct)


def test_parquet_json_and_csv_files(tmp_path):
    dataset = build_dataset(8)
    dataset.to_parquet(tmp_path / "rows.parquet")
    lines = []
    for i in range(8):
        row = example(i)
        paths = {name: str(tmp_path / f"{name}{i}.png") for name in ("image", "mask")}
        for name, path in paths.items():
            row[name].save(path)
        lines.append(paths | {"label": ANIMALS[row["label"]]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    header = "image,mask,label\n"
    (tmp_path / "rows.csv").write_text(header + "\n".join(",".join(line.values()) for line in lines))
    expected = None
    for name in ("rows.parquet", "rows.jsonl", "rows.csv"):
        cache = ["--cache_dir", tmp_path / "cache"]
        batch, built = read("--data_files", tmp_path / name, *cache, *MODALITIES)
        expected = expected or batch["inputs"]
        assert built.unet.config.modalities["label"]["class_names"] == ANIMALS
        assert all(torch.equal(batch["inputs"][key], tensor) for key, tensor in expected.items())


def test_csv_labels_with_gaps(tmp_path):
    """A missing label makes the others floats."""
    example(0)["image"].save(tmp_path / "0.png")
    rows = "".join(f"{tmp_path}/0.png,{label}\n" for label in ["1", "", "2"])
    (tmp_path / "rows.csv").write_text("image,label\n" + rows)
    batch, _ = read(
        "--data_files", tmp_path / "rows.csv", "--cache_dir", tmp_path / "cache",
        "--modality", "label:categorical:num_classes=3",
    )  # fmt: skip
    assert batch["available"]["label"].tolist() == [True, False, True]
    assert batch["inputs"]["label"][::2].tolist() == [1, 2]


def test_an_image_folder(tmp_path):
    for i in range(6):
        folder = tmp_path / "data" / ANIMALS[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        example(i)["image"].save(folder / f"{i}.png")
    batch, built = read(
        "--train_data_dir", tmp_path / "data", "--cache_dir", tmp_path / "cache", "--modality", "label:categorical"
    )
    assert built.unet.config.modalities["label"]["class_names"] == ANIMALS
    assert batch["inputs"]["label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_stream_gives_the_same_rows_as_the_files(tmp_path):
    data = save_dataset(tmp_path)
    stream = components("--train_data_dir", data, "--streaming", "--max_train_steps", 1, *MODALITIES)
    assert isinstance(stream.dataset, datasets.IterableDataset)
    assert len(example_rows(stream.dataset)) == 36
    labels = sorted(row["label"] for row in stream.dataset)
    assert labels == sorted(build_dataset()["label"])


def test_max_train_samples(tmp_path):
    data = save_dataset(tmp_path)
    assert len(components("--train_data_dir", data, "--max_train_samples", 12).dataset) == 12


def test_resizing_keeps_image_and_mask_aligned():
    """The mask of a bright square is the bright square, after both are scaled and cut."""
    mask = np.zeros((24, 48), np.uint8)
    mask[6:12, 16:40] = 1
    image = fit_map(PIL.Image.fromarray(mask * 255), None, (16, 16), discrete=False, channels=1)
    fitted = fit_map(PIL.Image.fromarray(mask), None, (16, 16), discrete=True, channels=None)
    as_array = fit_map(mask.tolist(), datasets.Value("uint8"), (16, 16), discrete=True, channels=None)
    assert np.array_equal(np.asarray(fitted), as_array)
    assert set(np.unique(fitted)) == {0, 1}
    assert ((np.asarray(image) > 127) == np.asarray(fitted)).mean() > 0.98


def test_maps_of_another_aspect_are_refused(tmp_path):
    assert aligned((96, 128), (48, 64)) and aligned((33, 50), (66, 100)) and not aligned((96, 128), (64, 64))
    rows = [example(i) for i in range(8)]
    rows[0]["mask"] = PIL.Image.fromarray(np.zeros((16, 32), np.uint8))
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="modality 'mask'.*aspect"):
        read("--train_data_dir", tmp_path / "data", *MODALITIES)
