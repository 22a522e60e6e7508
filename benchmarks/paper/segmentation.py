"""Task 3, image and segmentation mask: masks read, masks given, pairs generated; and whether scenes are remembered.

"judge" is a wider segmenter, trained by itself, that reads generated images. 367 training scenes can be learned by heart:
`memorisation` is the median distance from a sample to the nearest training scene, in features, divided by that of
held-out scenes; far below 1 is a copy.
"""

from pathlib import Path

import torch
from torch import nn

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.evaluation import mean_intersection_over_union, nearest_neighbours

from .data import NUM_SCENE_CLASSES, one_hot_channels
from .pictures import COLUMNS, draw_sheet
from .sampling import batches, check_size, conditioned, plain, sample_ddpm, sample_pipeline, to_unit
from .scores import Judge, Rows


SCALES = (1.0, 1.5, 2.0)


@torch.no_grad()
def read_masks(segmenter: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) in [0, 1] -> (n, H, W) classes."""
    masks = [segmenter(images[rows] * 2 - 1, 0).sample.argmax(1) for rows, _ in batches(len(images))]
    return torch.cat(masks)


def miou(masks: torch.Tensor, references: torch.Tensor) -> float:
    return mean_intersection_over_union(masks, references, NUM_SCENE_CLASSES)


class SceneJudge:
    """What scores generated scenes.

    Args:
        judge: held-out scenes and features.
        segmenter: the judge of masks.
        train_images: (n, 3, H, W) in [0, 1].
        pictures: folder of the pictures of nearest neighbours.
    """

    def __init__(self, judge: Judge, segmenter: nn.Module, train_images: torch.Tensor, pictures: Path):
        self.judge, self.segmenter, self.train_images, self.pictures = judge, segmenter, train_images, pictures

    def given_masks(self) -> torch.Tensor:
        """The held-out masks, over and over, as many as there are samples."""
        masks = self.judge.test["mask"]
        return masks[torch.arange(self.judge.num_samples) % len(masks)]

    def scenes(self, images: torch.Tensor, masks: torch.Tensor, picture: str | None = None) -> dict[str, float]:
        """Quality, agreement of image and mask, memorisation; draws samples above their nearest neighbours."""
        features = self.judge.features(images)
        agreement = miou(read_masks(self.segmenter, images), masks)
        distances, nearest = nearest_neighbours(features, self._train_features())
        real, _ = nearest_neighbours(self.judge.real_features("test", self.judge.images), self._train_features())
        if picture is not None:
            shown = [images[:COLUMNS], self.train_images[nearest[:COLUMNS]]]
            draw_sheet(shown, self.pictures / f"{picture}, nearest training scenes.png")
        memorisation = (distances.median() / real.median()).item()
        return self.judge.quality(features) | {"mask_agreement": agreement, "memorisation": memorisation}

    def _train_features(self) -> torch.Tensor:
        return self.judge.real_features("train", self.train_images)


def score_joint(pipeline: MultimodalMultitaskPipeline, rows: Rows, scene_judge: SceneJudge) -> None:
    judge = scene_judge.judge
    check_size(pipeline, judge.images)
    steps = {"num_inference_steps": judge.num_steps}

    def perceived() -> dict[str, float]:
        samples = sample_pipeline(pipeline, len(judge.images), {"image": judge.images})
        return {"miou": miou(samples["mask"], judge.test["mask"])}

    def together(**arguments) -> dict[str, float]:
        samples = sample_pipeline(pipeline, judge.num_samples, **steps, **arguments)
        return scene_judge.scenes(samples["image"], samples["mask"], rows.path.stem)

    def of_masks(scale: float) -> dict[str, float]:
        masks = scene_judge.given_masks()
        samples = sample_pipeline(pipeline, len(masks), {"mask": masks}, guidance_scale=scale, **steps)
        return scene_judge.scenes(samples["image"], masks)

    rows.add("image given", perceived)
    rows.add("joint", together)
    for scale in SCALES:
        rows.add(f"mask given, guidance {scale:g}", lambda scale=scale: of_masks(scale))


def score_segmenter(model: nn.Module, rows: Rows, scene_judge: SceneJudge) -> None:
    judge = scene_judge.judge
    rows.add("image given", lambda: {"miou": miou(read_masks(model, judge.images), judge.test["mask"])})


def score_mask_to_image(model: nn.Module, rows: Rows, scene_judge: SceneJudge) -> None:
    judge, masks = scene_judge.judge, scene_judge.given_masks()

    def of_masks() -> dict[str, float]:
        denoise = conditioned(model, one_hot_channels(masks))
        return scene_judge.scenes(
            to_unit(sample_ddpm(denoise, judge.images.shape[1:], len(masks), judge.num_steps)), masks
        )

    rows.add("mask given, guidance 1", of_masks)


def score_concatenated(model: nn.Module, rows: Rows, scene_judge: SceneJudge) -> None:
    judge = scene_judge.judge
    shape = (3 + NUM_SCENE_CLASSES, *judge.images.shape[2:])

    def together() -> dict[str, float]:
        samples = sample_ddpm(plain(model), shape, judge.num_samples, judge.num_steps)
        return scene_judge.scenes(to_unit(samples[:, :3]), samples[:, 3:].argmax(1), rows.path.stem)

    rows.add("joint", together)


SCORERS = {
    "camvid-segmentation": score_joint,
    "segmenter": score_segmenter,
    "segmenter_judge": score_segmenter,
    "mask_to_image": score_mask_to_image,
    "concatenated": score_concatenated,
}


def score(name: str, model, rows: Rows, scene_judge: SceneJudge) -> None:
    """All rows of an arm of this task."""
    SCORERS[name](model, rows, scene_judge)
