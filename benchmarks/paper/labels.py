"""Task 2, image and label: quality of images, agreement of the pair, labels given and labels read.

The reader of images is a logistic regression on the embeddings of a frozen encoder, independent of all arms.
"""

from functools import partial

import torch
from baselines import NULL_CLASS
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import accuracy, calibration_error, fit_linear_probe

from .data import Batch, to_pixels
from .masked import ddpm_quality
from .sampling import batches, check_size, guided, sample_ddpm, sample_pipeline, to_unit
from .scores import Embed, Judge, Rows


SCALES = (1.0, 1.5, 2.0, 3.0)


class LabelReader:
    """Images -> classes.

    Args:
        train: of CIFAR-10, with embeddings.
        embed: makes embeddings of images and their features, as those were made.
    """

    def __init__(self, train: Batch, embed: Embed):
        self.embed = embed
        self.probe = fit_linear_probe(train["embedding"], train["label"])

    def __call__(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.of_embeddings(self.embed(images, features))

    def of_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.probe.predict(embeddings.numpy()))


def balanced_labels(count: int) -> torch.Tensor:
    return torch.arange(count) % 10


def with_labels(images: torch.Tensor, labels: torch.Tensor, name: str, judge: Judge, read: LabelReader):
    """Quality, and how often the reader sees the label in the image."""
    features = judge.features(images)
    return judge.quality(features) | {name: accuracy(read(images, features), labels)}


def score_joint(pipeline: MultimodalMultitaskPipeline, rows: Rows, judge: Judge, read: LabelReader) -> None:
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}

    def perceived() -> dict[str, float]:
        samples = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})
        return label_scores(samples["label_probabilities"], judge.test["label"])

    def together(**arguments) -> dict[str, float]:
        samples = sample_pipeline(pipeline, judge.num_samples, **steps, **arguments)
        return with_labels(samples["image"], samples["label"], "label_agreement", judge, read)

    def of_labels(scale: float) -> dict[str, float]:
        labels = balanced_labels(judge.num_samples)
        samples = sample_pipeline(pipeline, len(labels), {"label": labels}, guidance_scale=scale, **steps)
        return with_labels(samples["image"], labels, "label_accuracy", judge, read)

    rows.add("image given", perceived)
    rows.add("joint, expected", together)
    for scale in SCALES[:3]:
        rows.add(
            f"joint, draw first, guidance {scale:g}",
            lambda scale=scale: together(discrete="draw_first", guidance_scale=scale),
        )
    for scale in SCALES:
        rows.add(f"label given, guidance {scale:g}", lambda scale=scale: of_labels(scale))


def label_scores(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return {
        "label_accuracy": accuracy(probabilities.argmax(1), labels),
        "calibration_error": calibration_error(probabilities, labels),
    }


def score_class_conditional(model: nn.Module, rows: Rows, judge: Judge, read: LabelReader) -> None:
    drawn = torch.randint(0, 10, (judge.num_samples,), generator=torch.Generator().manual_seed(0))

    def of_labels(labels: torch.Tensor, scale: float, score: str) -> dict[str, float]:
        denoise = guided(model, labels, NULL_CLASS, scale)
        images = to_unit(sample_ddpm(denoise, judge.images.shape[1:], judge.num_samples, judge.num_steps))
        return with_labels(images, labels, score, judge, read)

    for scale in SCALES[:3]:  # pairs: the label is drawn from the data's classes
        rows.add(f"joint, draw first, guidance {scale:g}", partial(of_labels, drawn, scale, "label_agreement"))
    for scale in SCALES:
        labels = balanced_labels(judge.num_samples)
        rows.add(f"label given, guidance {scale:g}", partial(of_labels, labels, scale, "label_accuracy"))


def score_classifier(model: nn.Module, rows: Rows, judge: Judge) -> None:
    pixels, labels = to_pixels(judge.test["image"]), judge.test["label"]

    @torch.no_grad()
    def perceived() -> dict[str, float]:
        logits = torch.cat([model(pixels[batch]) for batch, _ in batches(len(pixels))])
        return label_scores(logits.softmax(1), labels)

    rows.add("image given", perceived)


def score_reader(rows: Rows, judge: Judge, read: LabelReader) -> None:
    """Of the reader itself, on real images."""
    rows.add(
        "image given, the reader of these tables",
        lambda: {"label_accuracy": accuracy(read.of_embeddings(judge.test["embedding"]), judge.test["label"])},
    )


def score(name: str, model, rows: Rows, judge: Judge, read: LabelReader) -> None:
    """All rows of an arm of this task."""
    if isinstance(model, MultimodalMultitaskPipeline):
        score_joint(model, rows, judge, read)
    elif name.startswith("class_conditional"):
        score_class_conditional(model, rows, judge, read)
    elif name == "classifier":
        score_classifier(model, rows, judge)
        score_reader(rows, judge, read)
    else:
        rows.add("generation", lambda: ddpm_quality(model, judge))
