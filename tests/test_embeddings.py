"""A vector modality from a frozen encoder of transformers: real classes with random weights."""

import ast
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

import mmdiff_pipelines
from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.training import embeddings, parse_args
from mmdiff_pipelines.training.components import build_components
from mmdiff_pipelines.training.embeddings import FrozenEncoder
from mmdiff_pipelines.training.modality_options import parse_modality

from .conftest import tiny_vae
from .training_case import TRUNK, example, run


CAPTIONS = ["a cat", "an owl and a dog", "a dog", None]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "and", "cat", "dog", "owl"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_text_encoder(folder, seed=0):
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    model = BertModel(BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=12)).eval()
    model.save_pretrained(folder)
    return model


def save_vision_encoder(folder):
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    model = ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)).eval()
    model.save_pretrained(folder)
    return model


def save_clip(folder):
    text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    ).save_pretrained(folder)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).eval()
    model.save_pretrained(folder)
    return model


def save_rows(folder, rows=16):
    examples = [{"image": example(i)["image"], "caption": CAPTIONS[i % 4]} for i in range(rows)]
    path = folder / "data"
    datasets.Dataset.from_list(examples).cast_column("image", datasets.Image()).save_to_disk(path)
    return ["--train_data_dir", path, "--cache_dir", folder / "cache"]


@pytest.fixture
def calls(monkeypatch):
    """How many values each call of an encoder has had."""
    counts = []
    call = FrozenEncoder.__call__

    def counting(self, values):
        counts.append(len(values))
        return call(self, values)

    monkeypatch.setattr(embeddings.FrozenEncoder, "__call__", counting)
    return counts


def components(*arguments):
    return build_components(parse_args([*TRUNK, *map(str, arguments)]))


def caption_of(encoder):
    return ["--modality", f"caption:vector:encoder={encoder},column=caption"]


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_text_is_embedded_by_the_mean_of_its_tokens(tmp_path):
    model = save_text_encoder(tmp_path / "encoder")
    built = components(*save_rows(tmp_path), *caption_of(tmp_path / "encoder"))
    assert built.unet.config.modalities["caption"] == {"type": "vector", "dim": 8, "norm": 1.0}
    batch = built.reader(list(built.dataset))
    expected = []
    for caption in CAPTIONS[:3]:  # one by one, so without padding
        ids = [WORDS.index(word) for word in ["[CLS]", *caption.split(), "[SEP]"]]
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0))
    torch.testing.assert_close(batch["inputs"]["caption"][:3], unit(torch.stack(expected)), atol=1e-5, rtol=1e-4)
    assert batch["available"]["caption"].tolist() == [True, True, True, False] * 4


def test_images_are_embedded_by_the_pooled_output(tmp_path):
    model = save_vision_encoder(tmp_path / "encoder")
    built = components(
        *save_rows(tmp_path), "--modality", f"look:vector:encoder={tmp_path / 'encoder'},column=image,channels=2"
    )
    pixels = []
    for i in range(4):
        image = example(i)["image"].convert("RGB").resize((8, 8), PIL.Image.Resampling.BILINEAR)
        pixels.append(torch.from_numpy(np.asarray(image) / 127.5 - 1).float().movedim(-1, 0))
    with torch.no_grad():
        expected = unit(model(pixel_values=torch.stack(pixels)).pooler_output)
    actual = built.reader([built.dataset[i] for i in range(4)])["inputs"]["look"]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    assert built.unet.config.modalities["look"] == {"type": "vector", "dim": 8, "norm": 1.0, "channels": 2}


def test_clip_gives_its_image_embeddings(tmp_path):
    model = save_clip(tmp_path / "encoder")
    images = [example(i)["image"].resize((8, 8)) for i in range(3)]
    actual = FrozenEncoder(str(tmp_path / "encoder"), images=True)(images)
    pixels = torch.stack([torch.from_numpy(np.asarray(i.convert("RGB")) / 255).float().movedim(-1, 0) for i in images])
    with torch.no_grad():
        embeds = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert actual.shape == (3, 6) and np.allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(actual, unit(embeds).numpy(), atol=1e-4)


def test_a_pooler_that_was_not_saved_is_not_used(tmp_path):
    """It would be random, and another one every time."""
    model = save_vision_encoder(tmp_path / "encoder")
    ViTModel.from_pretrained(tmp_path / "encoder", add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    first, second = (FrozenEncoder(str(tmp_path / "encoder"), images=True) for _ in range(2))
    image = PIL.Image.new("RGB", (8, 8), (255, 0, 0))
    assert np.array_equal(first([image]), second([image])) and first.fingerprint() == second.fingerprint()
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    with torch.no_grad():
        expected = unit(model(pixel_values=red).last_hidden_state.mean(1))
    np.testing.assert_allclose(first([image]), expected.numpy(), atol=1e-5)


def test_embeddings_are_computed_once_and_never_stale(tmp_path, calls):
    save_text_encoder(tmp_path / "encoder")
    rows = save_rows(tmp_path)
    first = components(*rows, *caption_of(tmp_path / "encoder"))
    assert sum(calls) == 3  # different captions, in 12 rows
    again = components(*rows, "--modality", f"words:vector:encoder={tmp_path / 'encoder'},column=caption,channels=2")
    assert sum(calls) == 3
    assert list(first.dataset["_caption_embedding"]) == list(again.dataset["_words_embedding"])
    save_text_encoder(tmp_path / "encoder", seed=1)
    components(*rows, *caption_of(tmp_path / "encoder"))
    assert sum(calls) == 6


def test_embeddings_and_latents_are_trained_on_together(tmp_path):
    tiny_vae(AutoencoderKL).save_pretrained(tmp_path / "vae")
    save_text_encoder(tmp_path / "encoder")
    run(
        *save_rows(tmp_path), *caption_of(tmp_path / "encoder"), "--vae", tmp_path / "vae", "--max_train_steps", 2,
        "--cache_in_memory", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    pipe = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "run"))
    pipe.set_progress_bar_config(disable=True)
    caption = FrozenEncoder(str(tmp_path / "encoder"), images=False)(["a cat"])
    output = pipe(given={"caption": caption}, num_inference_steps=1)
    assert output.images[0].size == (16, 16) and np.allclose(output.modalities["caption"], caption)


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ("a:vector:encoder=ENCODER,column=nothing", "--modality a, column 'nothing'.*it has image, caption"),
        ("a:vector:encoder=ENCODER,column=image", "encoder=.*an image processor"),
        ("a:vector:encoder=EMPTY,column=caption", "encoder=.*a tokenizer"),
    ],
)
def test_what_cannot_be_embedded_is_named(tmp_path, modality, message):
    save_text_encoder(tmp_path / "encoder")
    (tmp_path / "empty").mkdir()
    modality = modality.replace("ENCODER", str(tmp_path / "encoder")).replace("EMPTY", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=message):
        components(*save_rows(tmp_path), "--modality", modality)


def test_only_vectors_of_whole_datasets_have_an_encoder(tmp_path):
    with pytest.raises(ValueError, match="encoder makes embeddings; accepted: with the type vector"):
        parse_modality("a:image:encoder=user/model")
    assert parse_modality("a:vector:encoder=user/123,column=b").encoder == "user/123"
    with pytest.raises(ValueError, match="--streaming: the embeddings of caption"):
        components(*save_rows(tmp_path), *caption_of("x"), "--streaming", "--max_train_steps", 1)


def test_no_file_of_the_package_imports_transformers_when_it_is_loaded():
    """diffusers does where it is installed; where it is not, ours must load."""
    for path in Path(mmdiff_pipelines.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "transformers" for name in names), path
