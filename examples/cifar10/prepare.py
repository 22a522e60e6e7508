"""Write CIFAR-10 as a `datasets` folder: columns image and label, and, if asked for, embedding.

    python examples/cifar10/prepare.py --output_dir data/cifar10 --encoder efficientnet_lite0

reads `uoft-cs/cifar10` from the Hub; with `--npz`, a file of arrays `train_x` (n, 32, 32, 3) and `train_y` (n,), and
`test_*` alike, offline (or JPEGs in a row, `train_jpeg`, with their ends, `train_end`). `--encoder` adds the embeddings
of a frozen image encoder: the principal components of its features, which `projection.safetensors` keeps, of norm 1.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from torch import nn

from mmdiff_pipelines.evaluation import Projection, extract_features, feature_network
from mmdiff_pipelines.training.prepared import describe_splits, write_prepared


CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)})
EMBEDDING = List(Value("float32"))
SPLITS = ("train", "test")


def images_from_npz(arrays: np.lib.npyio.NpzFile, split: str) -> Iterator[PIL.Image.Image]:
    if f"{split}_x" in arrays:
        yield from map(PIL.Image.fromarray, arrays[f"{split}_x"])
        return
    data, ends = arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_end"].tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield PIL.Image.open(io.BytesIO(data[start:end])).convert("RGB")


def rows_from_npz(path: Path, split: str) -> Iterator[dict]:
    """Rows of a split.

    Raises:
        ValueError: naming the array that is missing, or if there are not as many labels as images.
    """
    with np.load(path) as arrays:
        try:
            images, labels = list(images_from_npz(arrays, split)), arrays[f"{split}_y"].tolist()
        except KeyError as error:
            raise ValueError(f"--npz {path}: {error}; it has {', '.join(arrays)}.") from error
    if len(images) != len(labels):
        raise ValueError(f"--npz {path}: {len(images)} images and {len(labels)} labels in {split!r}.")
    yield from ({"image": image, "label": label} for image, label in zip(images, labels, strict=True))


def rows_from_hub(dataset_name: str, split: str) -> Iterator[dict]:
    """Rows of a split.

    Raises:
        ValueError: if there are no columns img and label.
    """
    rows = load_dataset(dataset_name, split=split)
    if missing := {"img", "label"} - set(rows.features):
        raise ValueError(f"--dataset_name {dataset_name}: no {sorted(missing)}; it has {', '.join(rows.features)}.")
    for row in rows:
        yield {"image": row["img"], "label": row["label"]}


def image_features(network: nn.Module, rows: Dataset, batch_size: int = 250) -> torch.Tensor:
    """The features of every image, (n, D)."""
    parts = []
    for batch in rows.iter(batch_size):
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in batch["image"]]))
        parts.append(extract_features(network, pixels.movedim(-1, 1) / 255))
        print(f"embedded {sum(map(len, parts))} of {len(rows)}", flush=True)
    return torch.cat(parts)


def add_embeddings(splits: dict[str, Dataset], network: nn.Module, dim: int) -> tuple[dict[str, Dataset], Projection]:
    """The splits with a column embedding, and the projection, fitted to the training split, that makes it."""
    features = {name: image_features(network, rows) for name, rows in splits.items()}
    projection = Projection.fit(features["train"], dim)
    extended = {
        name: rows.add_column("embedding", list(projection(features[name]).numpy()), feature=EMBEDDING)
        for name, rows in splits.items()
    }
    return extended, projection


def prepare(args: argparse.Namespace) -> DatasetDict:
    """Write the folder."""
    network = feature_network(args.encoder, args.encoder_weights) if args.encoder else None
    projection = None

    def make_splits() -> dict[str, Dataset]:
        nonlocal projection
        splits = {}
        for name in SPLITS:
            rows = rows_from_npz(args.npz, name) if args.npz else rows_from_hub(args.dataset_name, name)
            splits[name] = Dataset.from_list(list(rows), features=FEATURES)
        if network is not None:
            splits, projection = add_embeddings(splits, network, args.embedding_dim)
        return splits

    def write_encoder(folder: Path) -> None:
        if projection is not None:
            projection.save(folder / "projection.safetensors")
            (folder / "encoder.json").write_text(json.dumps({"encoder": args.encoder}) + "\n")

    return write_prepared(args.output_dir, make_splits, write_encoder)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--npz", type=Path, help="a file of arrays; no network")
    parser.add_argument("--dataset_name", default="uoft-cs/cifar10", help="the dataset on the Hub")
    parser.add_argument(
        "--encoder", help="efficientnet_lite0, inception, or an image encoder of transformers, a repo or a folder"
    )
    parser.add_argument("--encoder_weights", type=Path, help="a file of weights, for the first two")
    parser.add_argument("--embedding_dim", type=int, default=64, help="principal components of its features to keep")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and not args.overwrite:
        parser.error(f"--output_dir {args.output_dir} exists; add --overwrite to replace it")
    if args.npz and not args.npz.is_file():
        parser.error(f"--npz {args.npz} is no file")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    print(describe_splits(args.output_dir, prepare(args)))


if __name__ == "__main__":
    main()
