"""What is computed once for each row and kept on disk: latents of images, embeddings by frozen encoders.

A cache file is named by a hash of all that its content depends on, so it is never stale, and it gets that name only
when it is complete. It is memory-mapped, and shared by all runs that need the same.
"""

import argparse
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import datasets
import torch


BATCH_SIZE = 16
FORMAT = 1  # of the cache; to be counted up with every change of what is computed


def cache_folder(args: argparse.Namespace) -> Path:
    """In --cache_dir, or where `datasets` keeps its own."""
    return Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE) / "mmdiff_pipelines"


def precompute(
    dataset: datasets.Dataset,
    column: str,
    compute: Callable[[list[Any]], list[Any]],
    output: tuple[str, Any],
    folder: Path,
    identity: tuple,
    description: str,
    batch_size: int = BATCH_SIZE,
) -> datasets.Dataset:
    """A dataset of one column, made of another one: from the cache, or computed now and put there.

    Args:
        column: what is read.
        compute: its values in some rows -> the results.
        output: name and feature of the new column.
        folder: of the cache.
        identity: what the result depends on beside the data; its `repr` must say all.
        description: of the progress bar.
        batch_size: rows that `compute` has at once.
    """
    source = dataset.select_columns([column])
    key = fingerprint(FORMAT, identity, dataset._fingerprint, column, _files(source))
    name, feature = output
    folder.mkdir(parents=True, exist_ok=True)
    return source.map(
        lambda batch: {name: compute(batch[column])},
        batched=True,
        batch_size=batch_size,
        remove_columns=[column],
        features=datasets.Features({name: feature}),
        cache_file_name=str(folder / f"{name}-{key}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=key,
        desc=description,
    )


def beside(dataset: datasets.Dataset, column: datasets.Dataset) -> datasets.Dataset:
    """`dataset` with a column more."""
    return datasets.concatenate_datasets([dataset, column], axis=1) if dataset.column_names else column


def fingerprint(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def weights_fingerprint(module: torch.nn.Module, without: Collection[str] = ()) -> str:
    """Of all parameters and buffers but some, to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if name in without:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _files(source: datasets.Dataset) -> list[tuple]:
    """Path, size and time of every file that the dataset's one column is read from; `datasets` knows but the paths."""
    paths = [file["filename"] for file in source.cache_files]
    (feature,) = source.features.values()
    if isinstance(feature, datasets.Image):
        for batch in source.with_format("arrow").iter(1000):
            images = batch.column(0).combine_chunks()
            paths += images.field("path").filter(images.field("bytes").is_null()).to_pylist()
    return [(path, *_stat(path)) for path in paths if path is not None]


def _stat(path: str) -> tuple[int, ...]:
    """Nothing for what is not in the file system, as within an archive."""
    if not Path(path).exists():
        return ()
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns
