"""Every modality: linear encoders of unit RMS, losses by hand, users' values both ways, clear errors."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from mmdiff_pipelines import MODALITY_TYPES
from mmdiff_pipelines.modalities import Features, Geometry
from mmdiff_pipelines.modalities.masked_image import random_visibility
from mmdiff_pipelines.modalities.segmentation import class_codes


GEOMETRY = Geometry(anchor_channels=3, height=16, width=24, feature_channels=8, pooled_channels=24, embedding_dim=32)
ARGUMENTS = {
    "categorical": {"num_classes": 5, "class_names": ["a", "b", "c", "d", "e"]},
    "segmentation": {"num_classes": 4, "channels": 3},
    "image": {"num_channels": 2},
    "masked_image": {},
    "vector": {"dim": 20},
}
PLACES = [
    (name, space) for name in ARGUMENTS for space in ("own", "shared") if (name, space) != ("masked_image", "shared")
]
every_type = pytest.mark.parametrize("name", ARGUMENTS)
everywhere = pytest.mark.parametrize(("name", "space"), PLACES)


def build(name, **arguments):
    return MODALITY_TYPES[name](GEOMETRY, **{**ARGUMENTS[name], **arguments})


def random_inputs(modality, batch_size=6):
    if modality.input_dtype == torch.long:
        return torch.randint(0, modality.num_classes, (batch_size, *modality.input_shape))
    inputs = torch.randn(batch_size, *modality.input_shape).clamp(-1, 1)
    if modality.from_image:
        inputs[:, -1] = (inputs[:, -1] > 0).float()
    return inputs


def features(batch_size=6):
    return Features(torch.randn(batch_size, 8, 16, 24), torch.randn(batch_size, 24))


def test_every_type_is_tested():
    assert set(ARGUMENTS) == set(MODALITY_TYPES)


@everywhere
def test_shapes(name, space):
    modality = build(name, space=space)
    channels = 3 if space == "shared" else modality.channels
    inputs, prediction = random_inputs(modality), modality.predict(features())
    assert modality.encode(inputs).shape == (6, channels, 16, 24)
    assert modality.expected_encoding(prediction).shape == (6, channels, 16, 24)
    assert modality.loss(prediction, inputs).shape == modality.nll(prediction, inputs).shape == (6,)
    assert modality.estimate(prediction).shape == inputs.shape
    assert modality.placeholder(6).shape == inputs.shape and modality.placeholder(6).dtype == inputs.dtype
    modality.encode(modality.placeholder(6))
    condition = modality.condition(modality.encode(inputs))
    assert condition is None or condition.shape == (6, 32)


@everywhere
def test_encodings_have_unit_rms_by_a_constant(name, space):
    modality = build(name, space=space)
    inputs = random_inputs(modality, 200)
    if name == "image":
        inputs = torch.randn_like(inputs) * modality.rms
    elif name == "vector":
        inputs = F.normalize(torch.randn_like(inputs), dim=1)
    elif name == "masked_image":
        inputs[:, :-1] = inputs[:, :-1].sign()
        inputs[:, -1] = 1
    assert modality.encode(inputs).square().mean().sqrt().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["image", "vector"])
def test_encoders_of_numbers_are_linear_and_keep_the_scale(name):
    modality = build(name)
    x, y = random_inputs(modality, 2).split(1)
    torch.testing.assert_close(modality.encode(2 * x - y), 2 * modality.encode(x) - modality.encode(y))


@pytest.mark.parametrize("name", ["categorical", "segmentation"])
def test_expected_encoding_is_the_probability_weighted_sum(name):
    modality = build(name)
    prediction = modality.predict(features())
    probabilities = modality.probabilities(prediction)
    expected = 0
    for k in range(modality.num_classes):
        encoding = modality.encode(torch.full((6, *modality.input_shape), k))
        expected = expected + probabilities[:, k].reshape(6, 1, *probabilities.shape[2:] or (1, 1)) * encoding
    torch.testing.assert_close(modality.expected_encoding(prediction), expected)


def test_class_patterns_are_orthogonal_and_far_apart():
    modality = build("categorical")
    patterns = modality.encode(torch.arange(5)).flatten(1)
    gram = patterns @ patterns.T / patterns.shape[1]
    torch.testing.assert_close(gram, torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_classes", "channels"), [(2, 1), (3, 1), (11, 1), (4, 3), (11, 10), (3, 5)])
def test_class_codes_are_distinct(num_classes, channels):
    codes = class_codes(num_classes, channels)
    assert codes.square().mean().item() == pytest.approx(1)
    assert torch.pdist(codes).min() > 0.05
    if channels == num_classes - 1:  # a regular simplex
        distances = torch.pdist(codes)
        assert distances.max() - distances.min() < 1e-5
    if (num_classes, channels) == (2, 1):
        torch.testing.assert_close(codes.flatten(), torch.tensor([1.0, -1.0]))


def test_learned_patterns_keep_unit_rms_and_get_gradients():
    modality = build("categorical", learn_encoder=True)
    with torch.no_grad():
        modality.table.mul_(7)
    encoding = modality.encode(torch.arange(5))
    assert encoding.square().mean().item() == pytest.approx(1, abs=1e-5)
    encoding[0].sum().backward()
    assert modality.table.grad.abs().sum() > 0
    assert not build("categorical").table.requires_grad


def test_losses_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0]])
    expected = -2 + math.log(math.exp(2) + 4)
    assert build("categorical").loss(logits, torch.tensor([0])).item() == pytest.approx(expected)

    image = build("image")
    prediction, inputs = torch.zeros(1, 2, 16, 24), torch.full((1, 2, 16, 24), 0.5)
    assert image.loss(prediction, inputs).item() == pytest.approx(0.25)
    dims = 2 * 16 * 24
    assert image.nll(prediction, inputs).item() == pytest.approx(0.5 * dims * (0.25 + math.log(2 * math.pi)), rel=1e-5)

    vector = build("vector", norm=2.0)
    assert vector.loss(torch.zeros(1, 20), torch.ones(1, 20)).item() == pytest.approx(20 / 4)


def test_segmentation_loss_weighs_classes_and_ignores_pixels():
    modality = build("segmentation", class_weights=[1.0, 3.0, 1.0, 1.0], ignore_index=9)
    prediction = torch.zeros(1, 4, 16, 24)
    mask = torch.zeros(1, 16, 24, dtype=torch.long)
    mask[:, 8:] = 9
    assert modality.loss(prediction, mask).item() == pytest.approx(math.log(4))
    assert modality.nll(prediction, mask).item() == pytest.approx(8 * 24 * math.log(4), rel=1e-5)
    mask[:, :8] = 1
    assert modality.loss(prediction, mask).item() == pytest.approx(3 * math.log(4))
    assert modality.encode(mask)[:, :, 8:].abs().max() == 0
    assert modality.loss(prediction, modality.placeholder(1)).item() == 0


def test_draws_follow_the_probabilities():
    modality = build("categorical")
    logits = torch.tensor([[0.0, 2.0, -9.0, -9.0, -9.0]]).expand(4000, -1)
    drawn = modality.sample(logits, torch.Generator().manual_seed(0))
    share = (drawn == 1).float().mean().item()
    assert share == pytest.approx(math.exp(2) / (1 + math.exp(2)), abs=0.02)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@every_type
def test_values_survive_the_round_trip(name, output_type):
    modality = build(name, **({"num_channels": 3} if name == "image" else {}))
    inputs = random_inputs(modality)
    if name in ("image", "masked_image"):
        inputs = ((inputs + 1) * 127.5).round() / 127.5 - 1 if name == "image" else inputs
    values = modality.to_values(inputs, output_type)
    if name == "masked_image":
        return  # what is hidden does not come back
    back = modality.to_tensor(list(values))
    torch.testing.assert_close(back, inputs, atol=1e-5, rtol=0)


def test_masked_images_are_read_from_pairs():
    modality = build("masked_image")
    image = PIL.Image.fromarray(np.full((16, 24, 3), 255, np.uint8))
    visibility = np.zeros((16, 24), bool)
    visibility[:, :5] = True
    for value in [(image, visibility), {"image": image, "visibility": PIL.Image.fromarray(visibility)}]:
        tensor = modality.to_tensor([value])
        assert tensor.shape == (1, 4, 16, 24) and tensor[0, 3].sum() == 16 * 5 and tensor[0, :3].min() == 1
        encoding = modality.encode(tensor)
        assert encoding[0, :3, :, 5:].abs().max() == 0 and encoding[0, 3, :, 5:].max() == -1
    restored = modality.impose_on_anchor(torch.zeros(1, 3, 16, 24), tensor)
    assert restored[..., :5].min() == 1 and restored[..., 5:].abs().max() == 0


@pytest.mark.parametrize(("dim", "channels"), [(1, 1), (20, 2), (384, 6)])
def test_a_vector_conditions_by_a_code_of_norm_1(dim, channels):
    vector = build("vector", dim=dim, norm=3.0, channels=channels)
    seen = []
    vector.condition_proj.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    inputs = F.normalize(torch.randn(512, dim), dim=1) * 3
    vector.condition(vector.encode(inputs))
    assert seen[0].norm(dim=1).square().mean().sqrt().item() == pytest.approx(1, rel=0.1)


def test_tensors_of_any_dtype_are_read():
    """As an encoder in bfloat16 puts them out."""
    vector = torch.randn(20, requires_grad=True).bfloat16()
    assert torch.equal(build("vector").to_tensor([vector])[0], vector.float())
    visibility = torch.rand(16, 24).round()
    (value,) = build("masked_image").to_tensor([(torch.rand(3, 16, 24), visibility.bfloat16())])
    assert torch.equal(value[-1], visibility)


def test_random_visibility_hides_square_blocks_within_the_shares():
    visibility = random_visibility(200, 16, 24, 0.25, 0.75, generator=torch.Generator().manual_seed(0))
    hidden = 1 - visibility.mean((1, 2, 3))
    assert visibility.shape == (200, 1, 16, 24) and set(visibility.unique().tolist()) == {0.0, 1.0}
    assert 0.24 <= hidden.min() < 0.3 and 0.7 < hidden.max() <= 0.76
    blocks = visibility.view(200, 8, 2, 12, 2)
    assert torch.equal(blocks.amin((2, 4)), blocks.amax((2, 4)))


def test_masks_come_back_as_palette_pictures():
    modality = build("segmentation", palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    mask = torch.randint(0, 4, (1, 16, 24))
    (image,) = modality.to_values(mask, "pil")
    assert image.mode == "P" and image.getpalette()[:12] == [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]
    assert torch.equal(modality.to_tensor([image]), mask)
    assert len({tuple(color) for color in np.reshape(build("segmentation")._palette(), (-1, 3))}) == 4


def test_deep_pictures_keep_their_depth():
    """A depth map of 16 bits is read as in training, not clipped to 8."""
    levels = np.linspace(0, 65535, 16 * 24).astype(np.uint16).reshape(16, 24)
    modality = build("image", num_channels=1)
    expected = torch.from_numpy(levels / 65535).float()[None, None] * 2 - 1
    pictures = [PIL.Image.fromarray(levels), PIL.Image.fromarray((levels / 65535).astype(np.float32))]
    assert [picture.mode for picture in pictures] == ["I;16", "F"]
    for picture in pictures:
        torch.testing.assert_close(modality.to_tensor([picture]), expected)
    with pytest.raises(ValueError, match=r"\(1, 16, 24\).*2 channels"):
        build("image").to_tensor(pictures[:1])


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("categorical", "z", ValueError, "'z'.*0 to 4.*'a'"),
        ("categorical", 5, ValueError, "5.*0 to 4"),
        ("categorical", -1, ValueError, "-1.*0 to 4"),
        ("categorical", 1.5, TypeError, "1.5"),
        ("categorical", True, TypeError, "True"),
        ("segmentation", np.full((16, 24), 4), ValueError, "class 4.*0 to 3.*255"),
        ("segmentation", np.zeros((16, 23), int), ValueError, r"\(16, 23\).*\(16, 24\)"),
        ("segmentation", np.zeros((16, 24)), TypeError, "float64.*integer"),
        ("segmentation", PIL.Image.new("RGB", (24, 16)), TypeError, "RGB.*P, L"),
        ("image", np.zeros((16, 24, 3), np.uint8), ValueError, r"\(3, 16, 24\).*2 channels of 16x24"),
        ("image", np.full((16, 24, 2), 2.0), ValueError, r"2 to 2.*\[0, 1\]"),
        ("image", np.full((16, 24, 2), np.nan), ValueError, "nan"),
        ("image", np.zeros((16, 24, 2), np.int64), TypeError, "int64.*uint8"),
        ("image", "picture.png", TypeError, "str.*PIL image"),
        ("masked_image", np.zeros((16, 24, 3), np.uint8), TypeError, "ndarray.*pair"),
        ("masked_image", {"image": None}, ValueError, "image.*visibility"),
        ("masked_image", (np.zeros((16, 24, 3), np.uint8), np.ones((4, 4))), ValueError, r"\(4, 4\).*\(16, 24\)"),
        ("masked_image", torch.full((4, 16, 24), 7.0), ValueError, r"7 to 7.*\[-1, 1\].*0 and 1"),
        ("masked_image", torch.full((4, 16, 24), 0.5), ValueError, "visibility of 0 and 1"),
        ("vector", "a caption", TypeError, "str.*numbers"),
        ("vector", np.zeros(19), ValueError, r"\(19,\).*\(20,\)"),
        ("vector", np.full(20, np.inf), ValueError, "NaN or infinite"),
    ],
)
def test_wrong_values_are_named(name, value, error, message):
    with pytest.raises(error, match=message):
        build(name).to_tensor([value])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("categorical", {"space": "theirs"}, "space.*'theirs'.*'own'"),
        ("categorical", {"num_classes": 1, "class_names": None}, "num_classes.*1"),
        ("categorical", {"class_names": ["a", "a", "b", "c", "d"]}, "class_names.*4 different names for 5"),
        ("categorical", {"grid": 0}, "grid.*0"),
        ("image", {"rms": 0}, "rms.*0"),
        ("segmentation", {"num_classes": 300}, "ignore_index.*255.*300 classes.*-100"),
        ("segmentation", {"class_weights": [1.0]}, "class_weights.*1 entries for 4"),
        ("segmentation", {"channels": 0}, "channels.*0"),
        ("masked_image", {"space": "shared"}, "4 own channels"),
        ("masked_image", {"min_hidden": 0.9}, "min_hidden.*0.9"),
        ("vector", {"norm": 0.0}, "norm.*0.0"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
