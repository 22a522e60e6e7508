"""A `vector` modality from a frozen encoder of transformers: `--modality NAME:vector:encoder=REPO,column=COLUMN`.

A column of images goes through a vision model (of CLIP-like models, `get_image_features`), a column of text through a
text encoder, with a mean over the tokens as sentence-transformers take it (of CLIP-like models, `get_text_features`).
Embeddings have the L2 norm 1, and are computed once for a dataset.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..modalities.image import is_deep
from .columns import array_of
from .data import HubDataset, image_columns
from .modality_options import ModalityOption
from .precompute import BATCH_SIZE, beside, cache_folder, precompute, weights_fingerprint


EMBEDDING = "embedding"  # the column, before it has the name of a modality
TEXTS = 1000  # rows of text among which one that repeats is embedded once


class FrozenEncoder:
    """Images or texts -> embeddings of L2 norm 1. Also for use at inference: `given={"embedding": encoder([caption])}`.

    Args:
        source: a repo or a folder.
        images: whether it is to embed images; else texts.

    Raises:
        ValueError: if there is no such encoder, or weights are missing.
    """

    def __init__(self, source: str, images: bool, device: torch.device | str = "cpu"):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer  # slow, and seldom needed

        self.images, self.device = images, device
        try:
            # PIL whether torchvision is there or not, so that embeddings do not depend on it
            arguments = {"backend": "pil"} if images else {}
            self.processor = (AutoImageProcessor if images else AutoTokenizer).from_pretrained(source, **arguments)
            self.model, loading = AutoModel.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError) as error:
            kind = "an image processor" if images else "a tokenizer"
            raise ValueError(f"encoder={source}: no model with {kind} could be loaded from there: {error}") from error
        self.random = sorted(loading["missing_keys"])  # a pooler that was not saved: it is not used
        if needed := [name for name in self.random if "pooler" not in name]:
            raise ValueError(f"encoder={source}: the weights lack {needed[0]!r}, and {len(needed) - 1} others.")
        self.model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, values: Sequence[Any]) -> np.ndarray:
        """PIL images, or strings -> (n, D) float32."""
        embeddings = self._embed_images(values) if self.images else self._embed_texts(values)
        return F.normalize(embeddings.float(), dim=1).cpu().numpy()

    def _embed_images(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        images = [image.convert("RGB") for image in images]
        pixels = self.processor(images=images, return_tensors="pt").pixel_values.to(self.device)
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and not self.random:
            return pooled.flatten(1)
        hidden = output.last_hidden_state  # (B, tokens, D), or (B, D, h, w)
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        tokens = self.processor(
            list(texts), padding=True, truncation=True, return_tensors="pt",
            max_length=min(self.processor.model_max_length, length or 512),
        ).to(self.device)  # fmt: skip
        if hasattr(self.model, "get_text_features"):
            return self.model.get_text_features(**tokens).pooler_output
        mask = tokens.attention_mask[..., None].float()
        return (self.model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)

    def fingerprint(self) -> tuple:
        """What embeddings depend on."""
        import transformers

        digest = hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder:
            self.processor.save_pretrained(folder)
            for path in sorted(Path(folder).rglob("*")):
                digest.update(path.read_bytes() if path.is_file() else b"")
        return self.images, weights_fingerprint(self.model, self.random), digest.hexdigest(), transformers.__version__


def add_embeddings(
    dataset: HubDataset, options: Sequence[ModalityOption], args: argparse.Namespace, device: torch.device | str
) -> tuple[HubDataset, list[ModalityOption]]:
    """Give each modality with an encoder a column of its embeddings, and the name of that column.

    Raises:
        ValueError: for a stream, a column that is missing or holds neither images nor text, or a wrong encoder.
    """
    extended, read = dataset, []
    for option in options:
        if option.encoder is not None:
            if isinstance(dataset, datasets.IterableDataset):
                raise ValueError(
                    f"--streaming: the embeddings of {option.name} are computed once for a whole dataset."
                )
            column = f"_{option.name}_embedding"
            embeddings = embeddings_of(dataset, option, args, device).rename_column(EMBEDDING, column)
            extended, option = beside(extended, embeddings), replace(option, column=column)
        read.append(option)
    return extended, read


def embeddings_of(
    dataset: datasets.Dataset, option: ModalityOption, args: argparse.Namespace, device: torch.device | str
) -> datasets.Dataset:
    """The embeddings of one column, as a dataset of one column; None stays None."""
    source = f"--modality {option.name}, column {option.column!r}"
    if option.column not in dataset.features:
        raise ValueError(f"{source}: the dataset has no such column; it has {', '.join(dataset.features)}.")
    if option.column == args.image_column:
        dataset = image_columns(dataset, [option.column])
    feature = dataset.features[option.column]
    is_text = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    encoder = FrozenEncoder(option.encoder, images=not is_text, device=device)

    def embed_images(values: list[Any]) -> list[Any]:
        present = [_as_picture(value, feature, source) for value in values if value is not None]
        embeddings = iter(encoder(present) if present else [])
        return [None if value is None else next(embeddings) for value in values]

    def embed_texts(values: list[str | None]) -> list[Any]:
        texts = sorted({value for value in values if value is not None}, key=lambda text: (len(text), text))
        batches = (texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
        embeddings = dict(zip(texts, chain.from_iterable(map(encoder, batches)), strict=True))
        return [embeddings.get(value) for value in values]

    output = (EMBEDDING, datasets.List(datasets.Value("float32")))
    return precompute(
        dataset,
        option.column,
        embed_texts if is_text else embed_images,
        output,
        cache_folder(args),
        encoder.fingerprint(),
        f"Embedding {option.column}",
        batch_size=TEXTS if is_text else BATCH_SIZE,
    )


def _as_picture(value: Any, feature: Any, source: str) -> PIL.Image.Image:
    if isinstance(value, PIL.Image.Image) and not is_deep(value):
        return value
    array = array_of(value, feature, 3)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"{source}: a value of type {type(value).__name__} is neither text nor a picture.")
    levels = np.clip(array * 255, 0, 255).round().astype(np.uint8)
    return PIL.Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)
