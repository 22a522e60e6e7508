"""Rows of scores that are kept, and what judges images."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from mmdiff_pipelines.evaluation import Projection, extract_features, frechet_distance, precision_recall
from mmdiff_pipelines.training.precompute import weights_fingerprint

from .data import SIZES, Batch, load_arrays


Compute = Callable[[], dict[str, float]]
TEST_SPLITS = {"cifar10": "test", "fashion_mnist": "test", "camvid": "val"}


@dataclass
class Embed:
    """Images (n, 3, H, W) in [0, 1] -> the embeddings that CIFAR-10 was prepared with.

    Args:
        projection: of the features of its encoder.
        network: the encoder, unless the features that come with the images are its own.
    """

    projection: Projection
    network: nn.Module | None = None

    def __call__(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.projection(features if self.network is None else extract_features(self.network, images))


class Rows:
    """The scores of one arm and seed, in one JSON; a row that is there is not computed anew.

    Args:
        path: of the file.
        training: what its training took.
        settings: of the scores: digest of the weights, number of samples, features.

    Raises:
        ValueError: if the file has scores of other settings.
    """

    def __init__(self, path: Path, training: dict[str, float], settings: dict[str, str | int]):
        self.path = path
        record = json.loads(path.read_text()) if path.exists() else {"settings": settings, "scores": {}}
        if record["settings"] != settings:
            raise ValueError(f"{path} has scores of {record['settings']}, not {settings}; move it away.")
        self.record = {"training": training, "settings": settings, "scores": record["scores"]}

    def add(self, row: str, compute: Compute) -> None:
        if row in self.record["scores"]:
            return
        self.record["scores"][row] = {name: round(value, 5) for name, value in compute().items()}
        text = json.dumps(self.record, indent=2) + "\n"
        write_whole(self.path, lambda path: path.write_text(text))
        print(self.path.stem, row, self.record["scores"][row], flush=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)


@dataclass
class Judge:
    """Held-out data, and a frozen network that looks at real and generated images.

    Args:
        network: gives the features of the Frechet distance.
        test: the held-out split.
        num_samples: images to generate for a row.
        num_steps: denoising steps.
        cache: folder for the features of real images, which are computed once.
        limit: of held-out rows, for a test.
    """

    network: nn.Module
    data_dir: Path
    data: str
    num_samples: int
    num_steps: int
    cache: Path
    limit: int | None = None

    def __post_init__(self):
        test = load_arrays(self.data_dir / self.data, TEST_SPLITS[self.data], SIZES[self.data], self.limit)
        # files may be sorted by class, and some scores take the first images only
        order = torch.randperm(len(test["image"]), generator=torch.Generator().manual_seed(0))
        self.test: Batch = {name: values[order] for name, values in test.items()}
        self.images = self.test["image"].float() / 255

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, D) of images (n, C, H, W) in [0, 1]."""
        return extract_features(self.network, images)

    @cached_property
    def network_digest(self) -> str:
        return weights_fingerprint(self.network)[:16]

    def real_features(self, split: str, images: torch.Tensor) -> torch.Tensor:
        """Those of real images; kept on disk under a name made of what they show, and of who looks."""
        digest = hashlib.sha256(images.contiguous().numpy()).hexdigest()[:16]
        path = self.cache / f"{self.data}-{split}-{digest}-{self.network_digest}.pt"
        if not path.exists():
            features = self.features(images)
            write_whole(path, lambda path: torch.save(features, path))
        return torch.load(path, weights_only=True)

    def quality(self, features: torch.Tensor) -> dict[str, float]:
        """Of generated images, on their own, against all held-out ones."""
        real = self.real_features("test", self.images)
        precision, recall = precision_recall(features, real)
        return {"fd": frechet_distance(features, real), "precision": precision, "recall": recall}
