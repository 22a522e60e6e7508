"""Task 4, image and representation: does a generated embedding fit its image, and what does it say.

On CIFAR-10 the representation is an embedding of the image; on Fashion-MNIST that of a caption. A caption is a class and a
tone, so that it can be read off any image too, and an embedding says the nearest of all captions.
"""

import runpy
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import (
    accuracy,
    cosine_similarity,
    linear_probe,
    retrieval_accuracy,
)

from .data import Batch, to_pixels
from .masked import ddpm_quality
from .sampling import batches, check_size, sample_pipeline
from .scores import Embed, Judge, Rows
from .training import ROOT


SCALES = (1.0, 2.0)
Fit = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]


def add_joint_rows(pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, name: str, fit: Fit) -> None:
    """Of pairs that are drawn once: as they are, and with the vector called `name` read again off the image."""

    @cache
    def draw() -> Batch:
        return sample_pipeline(pipeline, judge.num_samples, num_inference_steps=judge.num_steps)

    def read_again() -> dict[str, float]:
        images = draw()["image"]
        return fit(images, sample_pipeline(pipeline, judge.num_samples, {"image": images})[name])

    rows.add("joint", lambda: fit(draw()["image"], draw()[name]))
    rows.add(f"joint, {name} read again", read_again)


def score_embedding(
    pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, train: Batch, embed: Embed
) -> None:
    """Rows of the joint model of CIFAR-10 images and their embeddings."""
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}
    true = judge.test["embedding"]

    def fit(images: torch.Tensor, embeddings: torch.Tensor) -> dict[str, float]:
        features = judge.features(images)
        seen = embed(images, features)
        return judge.quality(features) | {
            "cosine": cosine_similarity(embeddings, seen),
            "cosine_shuffled": cosine_similarity(embeddings, seen.roll(1, 0)),
            "retrieval": retrieval_accuracy(seen, embeddings),
        }

    def of_embeddings(scale: float) -> dict[str, float]:
        given = true[-judge.num_samples :]  # precision and recall are against the first
        samples = sample_pipeline(pipeline, len(given), {"embedding": given}, guidance_scale=scale, **steps)
        return fit(samples["image"], given)

    def perceived() -> dict[str, float]:
        samples = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})
        return embedding_scores(samples["embedding"], judge, train)

    rows.add("real pairs", lambda: embedding_scores(true, judge, train))
    rows.add("image given", perceived)
    add_joint_rows(pipeline, rows, judge, "embedding", fit)
    for scale in SCALES:
        rows.add(f"embedding given, guidance {scale:g}", lambda scale=scale: of_embeddings(scale))


def embedding_scores(embeddings: torch.Tensor, judge: Judge, train: Batch) -> dict[str, float]:
    """Of embeddings (n, d) of all held-out images."""
    true, unit = judge.test["embedding"], F.normalize(embeddings, dim=1)
    return {
        "cosine": cosine_similarity(unit, true),
        "cosine_shuffled": cosine_similarity(unit, true.roll(1, 0)),
        "probe_accuracy": linear_probe(train["embedding"], train["label"], unit, judge.test["label"]),
    }


@torch.no_grad()
def score_embedding_regression(model: nn.Module, rows: Rows, judge: Judge, train: Batch) -> None:
    pixels = to_pixels(judge.test["image"])

    def perceived() -> dict[str, float]:
        return embedding_scores(torch.cat([model(pixels[batch]) for batch, _ in batches(len(pixels))]), judge, train)

    rows.add("image given", perceived)


class Captions:
    """All captions of Fashion-MNIST, a tone and a class each, and which of them fits an image.

    Args:
        encode: texts -> their embeddings (K, D).
        classifier: the independent one, which reads the class; the tone is that of the rule by which captions are made.
    """

    def __init__(self, encode: Callable[[list[str]], np.ndarray], classifier: nn.Module):
        rules = runpy.run_path(str(ROOT / "examples/fashion_mnist/prepare.py"))
        self._tones, self._tone_of, self.classifier = list(rules["TONES"]), rules["tone_of"], classifier
        num_classes = len(rules["CLASS_NAMES"])
        texts = [rules["caption"](tone, label) for tone in self._tones for label in range(num_classes)]
        self.embeddings = torch.from_numpy(encode(texts))
        self.classes = torch.arange(len(texts)) % num_classes

    def of_images(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(n, 1, H, W) in [0, 1], and their classes (n,) -> indices of captions (n,)."""
        tones = [self._tones.index(self._tone_of(image)) for image in (images * 255).round().byte().numpy()]
        return torch.tensor(tones) * (len(self.classes) // len(self._tones)) + classes

    def read(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The same, without the classes: indices (n,), given the classifier's features too."""
        return self.of_images(images, self.classifier.head(features).argmax(1))

    def nearest(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, D) -> indices of captions (n,)."""
        return (F.normalize(embeddings, dim=1) @ F.normalize(self.embeddings, dim=1).T).argmax(1)

    def compare(self, embeddings: torch.Tensor, captions: torch.Tensor) -> dict[str, float]:
        """Embeddings (n, D) against captions (n,); `retrieval` is among all captions."""
        there, found = self.embeddings[captions], self.nearest(embeddings)
        return {
            "cosine": cosine_similarity(embeddings, there),
            "cosine_shuffled": cosine_similarity(embeddings, there.roll(1, 0)),
            "retrieval": accuracy(found, captions),
            "label_agreement": accuracy(self.classes[found], self.classes[captions]),
        }


def score_caption(pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, captions: Captions) -> None:
    """Rows of the joint model of Fashion-MNIST images and embeddings of their captions."""
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}
    true = captions.of_images(judge.images, judge.test["label"])

    def fit(images: torch.Tensor, embeddings: torch.Tensor) -> dict[str, float]:
        features = judge.features(images)
        return judge.quality(features) | captions.compare(embeddings, captions.read(images, features))

    def real_pairs() -> dict[str, float]:
        features = judge.real_features("test", judge.images)
        return captions.compare(captions.embeddings[true], captions.read(judge.images, features))

    def perceived() -> dict[str, float]:
        embeddings = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})["caption"]
        probe = linear_probe(captions.embeddings, captions.classes, embeddings, judge.test["label"])
        return captions.compare(embeddings, true) | {"probe_accuracy": probe}

    def of_captions(scale: float) -> dict[str, float]:
        given = captions.embeddings[true[: judge.num_samples]]
        samples = sample_pipeline(pipeline, len(given), {"caption": given}, guidance_scale=scale, **steps)
        return fit(samples["image"], given)

    rows.add("real pairs", real_pairs)
    rows.add("image given", perceived)
    add_joint_rows(pipeline, rows, judge, "caption", fit)
    for scale in SCALES:
        rows.add(f"caption given, guidance {scale:g}", lambda scale=scale: of_captions(scale))


def score_ddpm(model, rows: Rows, judge: Judge) -> None:
    rows.add("generation", lambda: ddpm_quality(model, judge))
