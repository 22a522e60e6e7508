"""Task 4, image and representation: does a generated embedding fit its image, and what does it say.

On CIFAR-10 the representation is an embedding of the image; on Fashion-MNIST that of a caption, which is read by its
nearest neighbour among all captions of the training data, and judged by the class that stands in it.
"""

import torch
import torch.nn.functional as F

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import (
    Projection,
    accuracy,
    cosine_similarity,
    linear_probe,
    retrieval_accuracy,
)

from .data import Batch
from .masked import ddpm_quality
from .sampling import check_size, sample_pipeline
from .scores import Judge, Rows


SCALES = (1.0, 2.0)


def score_embedding(
    pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, train: Batch, projection: Projection
) -> None:
    """Rows of the joint model of CIFAR-10 images and their embeddings."""
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}
    true, labels = judge.test["embedding"], judge.test["label"]

    def fit(images: torch.Tensor, embeddings: torch.Tensor) -> dict[str, float]:
        features = judge.features(images)
        seen = projection(features)
        return judge.quality(features) | {
            "cosine": cosine_similarity(embeddings, seen),
            "cosine_shuffled": cosine_similarity(embeddings, seen.roll(1, 0)),
            "retrieval": retrieval_accuracy(seen, embeddings),
        }

    def together() -> dict[str, float]:
        samples = sample_pipeline(pipeline, judge.num_samples, **steps)
        return fit(samples["image"], samples["embedding"])

    def of_embeddings(scale: float) -> dict[str, float]:
        given = true[: judge.num_samples]
        samples = sample_pipeline(pipeline, len(given), {"embedding": given}, guidance_scale=scale, **steps)
        return fit(samples["image"], given)

    def perceived() -> dict[str, float]:
        samples = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})
        return {
            "cosine": cosine_similarity(samples["embedding"], true),
            "cosine_shuffled": cosine_similarity(samples["embedding"], true.roll(1, 0)),
            "probe_accuracy": linear_probe(train["embedding"], train["label"], samples["embedding"], labels),
        }

    def real_pairs() -> dict[str, float]:
        return {
            "cosine": 1.0,
            "cosine_shuffled": cosine_similarity(true, true.roll(1, 0)),
            "probe_accuracy": linear_probe(train["embedding"], train["label"], true, labels),
        }

    rows.add("real pairs", real_pairs)
    rows.add("image given", perceived)
    rows.add("joint", together)
    for scale in SCALES:
        rows.add(f"embedding given, guidance {scale:g}", lambda scale=scale: of_embeddings(scale))


class Captions:
    """All captions of a data set, (K, D), and the class of each, (K,)."""

    def __init__(self, embeddings: torch.Tensor, classes: torch.Tensor):
        self.embeddings, self.classes = embeddings, classes

    def classes_of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, D) -> (n,), by the nearest caption."""
        return self.classes[self.nearest(embeddings)]

    def nearest(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (F.normalize(embeddings, dim=1) @ F.normalize(self.embeddings, dim=1).T).argmax(1)

    def __len__(self) -> int:
        return len(self.classes)


def score_caption(
    pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, captions: Captions, classifier
) -> None:
    """Rows of the joint model of Fashion-MNIST images and embeddings of their captions."""
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}

    def quality(images: torch.Tensor, classes: torch.Tensor, name: str) -> dict[str, float]:
        features = judge.features(images)
        return judge.quality(features) | {name: accuracy(classifier.head(features).argmax(1), classes)}

    def together() -> dict[str, float]:
        samples = sample_pipeline(pipeline, judge.num_samples, **steps)
        return quality(samples["image"], captions.classes_of(samples["caption"]), "label_agreement")

    def of_captions(scale: float) -> dict[str, float]:
        chosen = torch.arange(judge.num_samples) % len(captions)
        given = {"caption": captions.embeddings[chosen]}
        samples = sample_pipeline(pipeline, len(chosen), given, guidance_scale=scale, **steps)
        return quality(samples["image"], captions.classes[chosen], "label_accuracy")

    def perceived() -> dict[str, float]:
        samples = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})
        return {"label_accuracy": accuracy(captions.classes_of(samples["caption"]), judge.test["label"])}

    rows.add("image given", perceived)
    rows.add("joint", together)
    for scale in SCALES:
        rows.add(f"caption given, guidance {scale:g}", lambda scale=scale: of_captions(scale))


def score_ddpm(model, rows: Rows, judge: Judge) -> None:
    rows.add("generation", lambda: ddpm_quality(model, judge))
