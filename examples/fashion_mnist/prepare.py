"""Write Fashion-MNIST with silhouette masks as a `datasets` folder: columns image, label and mask.

    python examples/fashion_mnist/prepare.py --output_dir data/fashion_mnist

reads `zalando-datasets/fashion_mnist` from the Hub; with `--idx_dir`, the four original idx files, offline. Images are
padded from 28x28 to 32x32; the mask is the silhouette, pixel > 0.2 of the range. `--captions` adds the column caption,
such as "a dark sneaker".
"""

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset

from mmdiff_pipelines.training.prepared import describe_splits, write_prepared


CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES), "mask": Image()})
IDX_PREFIXES = {"train": "train", "test": "t10k"}
THRESHOLD = 0.2
TONES = {"dark": 0.4, "grey": 0.65, "light": 1.0}  # by the mean of the silhouette, up to these


def read_idx(path: Path, dims: int) -> np.ndarray:
    """An idx file of bytes, gzipped or not, with `dims` axes.

    Raises:
        ValueError: if the file is no such idx file, or is cut short.
    """
    data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    if data[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{path} is no idx file of bytes with {dims} axes.")
    shape = np.frombuffer(data, ">u4", dims, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dims)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} has {values.size} values where its header says {np.prod(shape)}.")
    return values.reshape(shape)


def find_idx(folder: Path, name: str) -> Path:
    for suffix in (".gz", ""):
        if (path := folder / f"{name}{suffix}").exists():
            return path
    raise FileNotFoundError(f"--idx_dir {folder} has no {name}.gz and no {name}.")


def rows_from_idx(folder: Path, prefix: str) -> Iterator[tuple[np.ndarray, int]]:
    images = read_idx(find_idx(folder, f"{prefix}-images-idx3-ubyte"), 3)
    labels = read_idx(find_idx(folder, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(f"--idx_dir {folder}: {len(images)} images and {len(labels)} labels in {prefix!r}.")
    yield from zip(images, labels.tolist(), strict=True)


def rows_from_hub(dataset_name: str, split: str) -> Iterator[tuple[np.ndarray, int]]:
    for row in load_dataset(dataset_name, split=split):
        yield np.asarray(row["image"]), row["label"]


def tone_of(image: np.ndarray) -> str:
    """How bright the silhouette is, of an image of bytes."""
    silhouette = image[image > THRESHOLD * 255]
    brightness = silhouette.mean() / 255 if silhouette.size else 0.0
    return next(tone for tone, limit in TONES.items() if brightness <= limit)


def caption(tone: str, label: int) -> str:
    """What a photograph's caption could say: tone and kind."""
    return f"a {tone} {CLASS_NAMES[label].lower()}"


def example(image: np.ndarray, label: int) -> dict:
    """One row: the image padded to 32x32, its label, its silhouette as class indices 0 and 1, and its caption."""
    image = np.pad(image, 2)
    mask = (image > THRESHOLD * 255).astype(np.uint8)
    return {
        "image": PIL.Image.fromarray(image),
        "label": label,
        "mask": PIL.Image.fromarray(mask),
        "caption": caption(tone_of(image), label),
    }


def prepare(output_dir: Path, idx_dir: Path | None, dataset_name: str, captions: bool = False) -> DatasetDict:
    """Write the folder."""
    features = Features({**FEATURES, "caption": Value("string")}) if captions else FEATURES

    def split(name: str) -> Dataset:
        source = rows_from_idx(idx_dir, IDX_PREFIXES[name]) if idx_dir else rows_from_hub(dataset_name, name)
        rows = (example(image, label) for image, label in source)
        return Dataset.from_list([{column: row[column] for column in features} for row in rows], features=features)

    return write_prepared(output_dir, lambda: {name: split(name) for name in IDX_PREFIXES})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--idx_dir", type=Path, help="a folder with the four idx files, gzipped or not; no network")
    parser.add_argument("--dataset_name", default="zalando-datasets/fashion_mnist", help="the dataset on the Hub")
    parser.add_argument("--captions", action="store_true", help="add the column caption")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and not args.overwrite:
        parser.error(f"--output_dir {args.output_dir} exists; add --overwrite to replace it")
    if args.idx_dir and not args.idx_dir.is_dir():
        parser.error(f"--idx_dir {args.idx_dir} is no folder")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = prepare(args.output_dir, args.idx_dir, args.dataset_name, args.captions)
    print(describe_splits(args.output_dir, dataset))


if __name__ == "__main__":
    main()
