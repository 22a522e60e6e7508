"""From a dataset, wherever it is, to batches of input tensors. Deterministic: what is random happens in the step."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Dataset

from ..modalities import ANCHOR, MODALITY_TYPES, Geometry, ImageModality, Modality
from .columns import aligned, fit_map, height_width, label_of
from .modality_options import ModalityOption


FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
NUM_EXAMPLES = 256  # rows that are looked at to infer sizes and scales

HubDataset = datasets.Dataset | datasets.IterableDataset


def load_training_data(args: argparse.Namespace) -> HubDataset:
    """The split to train on, of a Hub dataset, a local folder, or files.

    Raises:
        ValueError: for files of an unknown format, a folder or a split that does not exist.
    """
    if args.data_files:
        suffix = Path(args.data_files[0]).suffix
        if suffix not in FILE_FORMATS:
            raise ValueError(f"--data_files: {suffix!r} is not known; accepted: {', '.join(FILE_FORMATS)}.")
        return datasets.load_dataset(
            FILE_FORMATS[suffix], data_files={args.split: args.data_files}, split=args.split,
            cache_dir=args.cache_dir, streaming=args.streaming,
        )  # fmt: skip
    source = args.dataset_name or args.train_data_dir
    if args.dataset_name is None and not Path(source).is_dir():
        raise ValueError(f"--train_data_dir {source}: there is no such folder; accepted: a folder, or --dataset_name.")
    if any((Path(source) / name).exists() for name in ("state.json", "dataset_dict.json")):
        return _load_saved(Path(source), args.split, args.streaming)
    return datasets.load_dataset(
        source, args.dataset_config_name, split=args.split, cache_dir=args.cache_dir, streaming=args.streaming
    )


def _load_saved(folder: Path, split: str, streaming: bool) -> HubDataset:
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"--split is {split!r}; {folder} has {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def select_rows(dataset: HubDataset, args: argparse.Namespace) -> HubDataset:
    """Take --max_train_samples."""
    if args.max_train_samples is None:
        return dataset
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(args.max_train_samples)
    return dataset.shuffle(seed=args.seed).select(range(min(args.max_train_samples, len(dataset))))


def shuffle_stream(dataset: HubDataset, args: argparse.Namespace) -> HubDataset:
    """Other datasets are shuffled by their loader, epoch by epoch."""
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.shuffle(seed=args.seed, buffer_size=args.shuffle_buffer_size)
    return dataset


def select_columns(dataset: HubDataset, image_column: str, options: Sequence[ModalityOption]) -> HubDataset:
    """Keep the columns that are needed; paths and bytes of images become images.

    Raises:
        ValueError: naming a column that is missing, and those that are there.
    """
    if dataset.features is None:
        dataset = dataset._resolve_features()
    columns = {image_column: f"--image_column {image_column}"}
    columns |= {o.column: f"--modality {o.name}, column {o.column!r}" for o in options if not o.from_image}
    for column, source in columns.items():
        if column not in dataset.features:
            raise ValueError(f"{source}: the dataset has no such column; it has {', '.join(dataset.features)}.")
    dataset = dataset.select_columns(list(columns))
    maps = {image_column} | {o.column for o in options if o.column in columns and MODALITY_TYPES[o.type].spatial}
    return image_columns(dataset, maps)


def image_columns(dataset: HubDataset, columns: Collection[str]) -> HubDataset:
    """Paths and bytes become images."""
    for column in columns:
        if _is_undecoded_image(dataset.features[column]):
            dataset = dataset.cast_column(column, datasets.Image())
    return dataset


def _is_undecoded_image(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "binary")


def example_rows(dataset: HubDataset) -> list[dict[str, Any]]:
    """Some rows, spread over the dataset; of a stream, the first ones."""
    if isinstance(dataset, datasets.IterableDataset):
        return list(dataset.take(NUM_EXAMPLES))
    indices = range(0, len(dataset), max(1, len(dataset) // NUM_EXAMPLES))
    return [_row(dataset, i) for i in indices[:NUM_EXAMPLES]]


def _row(dataset: datasets.Dataset, i: int) -> dict[str, Any]:
    try:
        return dataset[i]
    except (OSError, ValueError) as error:  # a picture that is missing or damaged
        raise ValueError(f"row {i} of the dataset: {error}") from error


class RowReader:
    """Rows of a dataset -> {"inputs": name -> (B, ...), "available": name -> (B,) bool}; the `collate_fn`.

    Args:
        columns: name -> column, "image" included.
        features: of the dataset.
        options: of the modalities; those made of the image are not read.
        num_channels: of the image.
        size: height and width to bring maps to; the resolution, and the margin of random crops.
        anchor: what reads the image column, where that holds no images.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        features: Mapping[str, Any],
        options: Sequence[ModalityOption],
        num_channels: int,
        size: tuple[int, int],
        anchor: Modality | None = None,
    ):
        self.size = size
        # a modality reads and checks values; what else it is given here is of no meaning for that
        geometry = Geometry(num_channels, *size, feature_channels=1, pooled_channels=1, embedding_dim=1)
        self.modalities: dict[str, Modality] = {ANCHOR: anchor or ImageModality(geometry, num_channels)}
        for option in options:
            if not option.from_image:
                self.modalities[option.name] = MODALITY_TYPES[option.type](geometry, **option.arguments)
        self.columns = {name: columns[name] for name in self.modalities}
        self.features = {name: features[column] for name, column in self.columns.items()}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
        inputs, available = {}, {}
        for name, column in self.columns.items():
            values = [row[column] for row in rows]
            try:
                inputs[name] = self._read(name, values)
            except (TypeError, ValueError) as error:
                raise ValueError(f"modality {name!r}, column {column!r}: {error}") from error
            available[name] = torch.tensor([value is not None for value in values])
        self._check_aligned(rows)
        return {"inputs": inputs, "available": available}

    def _read(self, name: str, values: list[Any]) -> torch.Tensor:
        """Missing values become placeholders."""
        present = [i for i, value in enumerate(values) if value is not None]
        if name == ANCHOR and len(present) < len(values):
            raise ValueError("a row has no image; every row needs one.")
        modality = self.modalities[name]
        batch = modality.placeholder(len(values))
        if present:
            batch[present] = modality.to_tensor([self._prepare(name, values[i]) for i in present])
        return batch

    def _prepare(self, name: str, value: Any) -> Any:
        modality = self.modalities[name]
        if modality.spatial:
            channels = getattr(modality, "num_channels", None)
            return fit_map(value, self.features[name], self.size, modality.discrete, channels)
        if modality.discrete:
            return label_of(value, self.features[name], getattr(modality, "class_names", None))
        return value

    def _check_aligned(self, rows: Sequence[Mapping[str, Any]]) -> None:
        maps = [name for name, modality in self.modalities.items() if modality.spatial and name != ANCHOR]
        for row in rows if maps else ():
            size = height_width(row[self.columns[ANCHOR]])
            for name in maps:
                value = row[self.columns[name]]
                if value is not None and not aligned(size, height_width(value)):
                    raise ValueError(
                        f"modality {name!r}, column {self.columns[name]!r}: a map of {height_width(value)} (height, "
                        f"width) beside an image of {size}; accepted: the same aspect ratio."
                    )


class MemoryDataset(Dataset):
    """All rows of a dataset, read once: pixels as bytes where that loses nothing, class indices as bytes."""

    def __init__(self, dataset: datasets.Dataset, reader: RowReader, num_workers: int = 0, batch_size: int = 256):
        parts: dict[str, dict[str, list[torch.Tensor]]] = {"inputs": {}, "available": {}}
        self.dtypes: dict[str, torch.dtype] = {}
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=reader, num_workers=num_workers):
            for name, tensor in batch["inputs"].items():
                self.dtypes[name] = tensor.dtype
                parts["inputs"].setdefault(name, []).append(_compact(tensor))
                parts["available"].setdefault(name, []).append(batch["available"][name])
        self.columns = {
            "inputs": {name: _join(tensors, self.dtypes[name]) for name, tensors in parts["inputs"].items()},
            "available": {name: torch.cat(tensors) for name, tensors in parts["available"].items()},
        }

    def __len__(self) -> int:
        return len(self.columns["inputs"][ANCHOR])

    def __getitems__(self, indices: list[int]) -> dict[str, dict[str, torch.Tensor]]:
        """A whole batch, as [`RowReader`] gives it."""
        batch = {
            kind: {name: tensor[indices] for name, tensor in tensors.items()} for kind, tensors in self.columns.items()
        }
        batch["inputs"] = {name: _expand(tensor, self.dtypes[name]) for name, tensor in batch["inputs"].items()}
        return batch


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    levels = ((tensor + 1) * 127.5).round() if tensor.is_floating_point() else tensor
    if levels.numel() and 0 <= levels.min() and levels.max() <= 255:
        compact = levels.to(torch.uint8)
        if torch.equal(_expand(compact, tensor.dtype), tensor):
            return compact
    return tensor


def _join(parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Compact if all parts are."""
    if len({part.dtype for part in parts}) > 1:
        parts = [_expand(part, dtype) for part in parts]
    return torch.cat(parts)


def _expand(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype == dtype:
        return tensor
    return tensor.to(dtype) / 127.5 - 1 if dtype.is_floating_point else tensor.to(dtype)


def as_batch(batch: Any) -> Any:
    """The `collate_fn` of a [`MemoryDataset`], whose items are batches already."""
    return batch


def build_dataloader(
    dataset: HubDataset | MemoryDataset, reader: RowReader, global_batch_size: int, num_workers: int
) -> DataLoader:
    """Batches of the global size, in an order that accelerate sets; incomplete ones are left out.

    Raises:
        ValueError: if there are fewer rows than a batch takes.
    """
    stream = isinstance(dataset, datasets.IterableDataset)
    if not stream and len(dataset) < global_batch_size:
        raise ValueError(
            f"the dataset has {len(dataset)} rows, fewer than the {global_batch_size} of one batch "
            "(--train_batch_size times processes)."
        )
    return DataLoader(
        dataset,
        batch_size=global_batch_size,
        shuffle=None if stream else True,
        drop_last=True,
        collate_fn=as_batch if isinstance(dataset, MemoryDataset) else reader,
        num_workers=num_workers,
    )
