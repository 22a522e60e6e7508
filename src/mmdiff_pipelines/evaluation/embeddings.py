"""How well embeddings fit the images that they come with, and how much they say."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class Projection(nn.Module):
    """Features (B, D) of any size -> embeddings (B, d) of L2 norm 1: the leading principal components of data.

    Args:
        mean: (D,).
        components: (d, D), orthonormal rows.
    """

    def __init__(self, mean: torch.Tensor, components: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    @classmethod
    def fit(cls, features: torch.Tensor, dim: int) -> "Projection":
        """The `dim` principal components of features (n, D).

        Raises:
            ValueError: if there are fewer features or rows than components.
        """
        if not 0 < dim <= min(features.shape):
            raise ValueError(
                f"`dim` is {dim} for features {tuple(features.shape)}; accepted: 1 to the lesser of both."
            )
        unit = F.normalize(features.double(), dim=1)
        centred = unit - unit.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        components = vectors[:, -dim:].T.flip(0)
        # signs are arbitrary: make the largest entry of each positive
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        return cls(unit.mean(0).float(), (components * signs).float())

    @classmethod
    def load(cls, path: str | Path) -> "Projection":
        """What `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        from safetensors.torch import load_file

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no projection at {path}.")
        return cls(**load_file(path))

    def save(self, path: str | Path) -> None:
        from safetensors.torch import save_file

        save_file({"mean": self.mean, "components": self.components.contiguous()}, path)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize((F.normalize(features, dim=1) - self.mean) @ self.components.T, dim=1)


def cosine_similarity(embeddings: torch.Tensor, references: torch.Tensor) -> float:
    """Mean cosine of the pairs of two lists, (n, D) both.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_pairs(embeddings, references)
    return F.cosine_similarity(embeddings, references, dim=1).mean().item()


def retrieval_accuracy(embeddings: torch.Tensor, references: torch.Tensor) -> float:
    """Retrieval@1: how often the reference of the highest cosine is its own; (n, D) both.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_pairs(embeddings, references)
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(references, dim=1).T
    return (cosines.argmax(1) == torch.arange(len(cosines), device=cosines.device)).float().mean().item()


def fit_linear_probe(embeddings: torch.Tensor, labels: torch.Tensor):
    """A logistic regression of scikit-learn on scaled embeddings (n, D), with `predict` and `score`.

    Entries that are constant, up to 1e-6 of the norm, are left out: scaled, they would be all noise.

    Raises:
        ValueError: if there is one class only, or all embeddings are equal.
    """
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(labels.unique()) < 2:
        raise ValueError("a linear probe needs examples of two classes or more.")
    threshold = 1e-12 * embeddings.square().sum(1).mean().item()
    if not (embeddings.double().var(0, correction=0) > threshold).any():
        raise ValueError("a linear probe needs embeddings that differ.")
    probe = make_pipeline(VarianceThreshold(threshold), StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(embeddings.numpy(), labels.numpy())


def linear_probe(
    embeddings: torch.Tensor, labels: torch.Tensor, test_embeddings: torch.Tensor, test_labels: torch.Tensor
) -> float:
    """Accuracy of a linear probe fitted to (n, D) and (n,), on (m, D) and (m,).

    Raises:
        ValueError: if there is one class only, or the shapes do not fit.
    """
    if embeddings.shape[1:] != test_embeddings.shape[1:]:
        raise ValueError(f"embeddings of {embeddings.shape[1:]} and {test_embeddings.shape[1:]} numbers.")
    return float(fit_linear_probe(embeddings, labels).score(test_embeddings.numpy(), test_labels.numpy()))


def _check_pairs(embeddings: torch.Tensor, references: torch.Tensor) -> None:
    if embeddings.shape != references.shape or embeddings.ndim != 2:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and references {tuple(references.shape)}; accepted: (n, D) both."
        )
