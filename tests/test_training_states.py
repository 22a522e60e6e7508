import pytest
import torch

from mmdiff_pipelines import Presence
from mmdiff_pipelines.modalities import Geometry, MaskedImageModality
from mmdiff_pipelines.training.augmentation import crop_rows, flip_rows
from mmdiff_pipelines.training.states import PresenceShares, assign_states, draw_step, make_inputs, parse_shares


NAMES = ["label", "mask", "hole"]
JOINT = {"label": True, "mask": True, "hole": False}


def draw(batch_size=4000, seed=0, num_modalities=3):
    return draw_step(torch.Generator().manual_seed(seed), batch_size, (1, 1, 1), 1000, num_modalities)


def all_available(batch_size=4000):
    return {name: torch.ones(batch_size, dtype=torch.bool) for name in NAMES}


def shares_of(states):
    return [(states == state).float().mean().item() for state in Presence]


def test_shares_of_the_states():
    states = assign_states(draw(), all_available(), JOINT, 0.25, PresenceShares(0.5, 0.3, 0.2))
    assert shares_of(states["image"])[:2] == pytest.approx([0.75, 0.25], abs=0.03)
    joint_rows = states["image"] == Presence.JOINT
    assert shares_of(states["label"][joint_rows]) == pytest.approx([0.5, 0.3, 0, 0.2], abs=0.03)
    assert shares_of(states["hole"][joint_rows]) == pytest.approx([0, 0.3, 0, 0.7], abs=0.03)


def test_where_the_image_is_given_nothing_is_joint_and_something_is_queried():
    states = assign_states(draw(), all_available(), JOINT, 1.0, PresenceShares())
    stacked = torch.stack([states["label"], states["mask"]])
    assert (states["image"] == Presence.GIVEN).all()
    assert (states["hole"] == Presence.ABSENT).all()
    assert ((stacked == Presence.QUERIED) | (stacked == Presence.GIVEN)).all()
    assert (stacked == Presence.QUERIED).any(0).all()


def test_what_the_data_lack_is_absent_and_never_asked_for():
    available = all_available()
    available["label"][::2] = False
    available["mask"][::4] = False
    states = assign_states(draw(), available, JOINT, 0.5, PresenceShares())
    assert (states["label"][::2] == Presence.ABSENT).all()
    assert (states["image"][::4] == Presence.JOINT).all()  # nothing to query there


def test_without_modalities_it_is_plain_ddpm():
    states = assign_states(draw(num_modalities=0), {}, {}, 0.25, PresenceShares())
    assert list(states) == ["image"]
    assert (states["image"] == Presence.JOINT).all()


def test_rows_of_the_global_batch_are_those_of_the_processes():
    available = all_available(64)
    whole = draw(64)
    states = assign_states(whole, available, JOINT, 0.25, PresenceShares())
    parts = []
    for start in (0, 32):
        rows = {name: tensor[start : start + 32] for name, tensor in available.items()}
        parts.append(assign_states(draw(64).rows(start, start + 32), rows, JOINT, 0.25, PresenceShares()))
    for name, state in states.items():
        assert torch.equal(state, torch.cat([part[name] for part in parts]))


def test_inputs_made_of_the_image_do_not_depend_on_the_number_of_processes():
    modality = MaskedImageModality(Geometry(1, 16, 16, 1, 1, 1))
    images = torch.rand(8, 1, 16, 16)
    whole = make_inputs(modality, images, 0, 8, torch.Generator().manual_seed(1))
    halves = [make_inputs(modality, images[s : s + 4], s, 8, torch.Generator().manual_seed(1)) for s in (0, 4)]
    assert torch.equal(whole, torch.cat(halves))
    hidden = 1 - whole[:, -1].mean((1, 2))
    assert (hidden >= 0.09).all() and (hidden <= 0.76).all()


def test_parse_shares():
    assert parse_shares("joint=0.5,given=0.5,absent=0") == PresenceShares(0.5, 0.5, 0.0)


def test_flipped_rows_only():
    maps = torch.arange(12).view(2, 2, 3)
    flipped = flip_rows(maps, torch.tensor([True, False]))
    assert torch.equal(flipped[0], maps[0].flip(-1))
    assert torch.equal(flipped[1], maps[1])


def test_windows_reach_every_margin_and_no_further():
    maps = torch.arange(36).view(1, 6, 6).expand(3, 6, 6)
    windows = crop_rows(maps, torch.tensor([[0.0, 0.0], [0.9999, 0.9999], [0.5, 0.0]]), (4, 4))
    assert windows.shape == (3, 4, 4)
    assert torch.equal(windows[0], maps[0, :4, :4])
    assert torch.equal(windows[1], maps[0, 2:, 2:])
    assert torch.equal(windows[2], maps[0, 1:5, :4])
