"""A modality from outside the package: one class, one entry, and it is trained, generated and saved like the others."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmdiff_pipelines import MODALITY_TYPES, Modality, MultimodalMultitaskPipeline, multitask_loss

from .conftest import build_pipeline


class AngleModality(Modality):
    """A direction in the plane, in degrees: kept as (cos, sin), painted over two own channels."""

    def __init__(self, geometry, space="own", channels=2):
        super().__init__(geometry, (2,), space, channels)
        self.head = nn.Linear(geometry.pooled_channels, 2)

    def encode(self, inputs):
        planes = inputs[:, :, None, None] * math.sqrt(2)
        return planes.expand(-1, -1, self.geometry.height, self.geometry.width)

    def loss(self, prediction, inputs):
        return (prediction.float() - inputs).square().sum(1)

    def value_to_tensor(self, value):
        if not -360 <= value <= 360:
            raise ValueError(f"an angle of {value}; accepted: -360 to 360 degrees.")
        return torch.tensor([math.cos(math.radians(value)), math.sin(math.radians(value))])

    def tensor_to_value(self, tensor, output_type):
        return np.degrees(np.arctan2(tensor[1].item(), tensor[0].item()))


@pytest.fixture(autouse=True)
def _entry(monkeypatch):
    monkeypatch.setitem(MODALITY_TYPES, "angle", AngleModality)


def gradient_images(angles):
    """Ramps of brightness along a direction."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    return (angles[:, :1, None, None] * x + angles[:, 1:, None, None] * y).clamp(-1, 1)


def test_it_is_trained_generated_given_and_saved(tmp_path):
    pipeline = build_pipeline({"angle": {"type": "angle"}})
    modality = pipeline.unet.modality_modules["angle"]
    optimizer = torch.optim.Adam(pipeline.unet.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        turns = torch.rand(16, 1, generator=generator) * 2 * math.pi
        angles = torch.cat([turns.cos(), turns.sin()], dim=1)
        noise, timesteps = torch.randn(16, 3, 16, 16, generator=generator), torch.zeros(16, dtype=torch.long)
        states = {"image": torch.full((16,), 1), "angle": torch.full((16,), 2)}  # image given, angle queried
        inputs = {"image": gradient_images(angles), "angle": angles}
        loss = multitask_loss(pipeline.unet, pipeline.scheduler, inputs, timesteps, noise, states).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])

    output = pipeline(given={"angle": [90, 0.0]}, num_inference_steps=2)
    assert output.modalities["angle"] == pytest.approx([90, 0], abs=1e-3)
    assert len(pipeline(num_inference_steps=2).modalities["angle"]) == 1
    with pytest.raises(ValueError, match=r"given\['angle'\].*720.*-360 to 360"):
        pipeline(given={"angle": 720})
    assert modality.to_tensor([45]).shape == (1, 2)

    pipeline.save_pretrained(str(tmp_path))
    assert "angle" in MultimodalMultitaskPipeline.from_pretrained(str(tmp_path)).unet.modality_modules


def test_loading_it_without_its_class_says_what_to_do(tmp_path, monkeypatch):
    build_pipeline({"angle": {"type": "angle"}}).save_pretrained(str(tmp_path))
    monkeypatch.delitem(MODALITY_TYPES, "angle")
    with pytest.raises(ValueError, match="'angle'.*MODALITY_TYPES.*before loading"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))
