"""Prepared datasets on disk: there whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict


def write_prepared(
    output_dir: Path,
    make_splits: Callable[[], Mapping[str, Dataset]],
    write_more: Callable[[Path], None] | None = None,
) -> DatasetDict:
    """Write a folder that `load_from_disk` reads; an existing one goes only when the new one is there.

    Args:
        output_dir: the folder.
        make_splits: the splits by name; called once.
        write_more: puts further files into the folder that it is given.
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        dataset = DatasetDict(make_splits())
        dataset.save_to_disk(temporary / "dataset")
        if write_more is not None:
            write_more(temporary / "dataset")
        if output_dir.exists():
            os.replace(output_dir, temporary / "replaced")
        os.replace(temporary / "dataset", output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataset


def describe_splits(output_dir: Path, dataset: DatasetDict) -> str:
    return f"{output_dir}: " + ", ".join(f"{len(rows)} {split}" for split, rows in dataset.items())
