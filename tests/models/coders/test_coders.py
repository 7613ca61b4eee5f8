"""Codes: encode then decode gives the box back; the numbers agree with torchvision's coder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from boxwright.models.coders import DeltaCoder, DistanceCoder


def random_boxes(count: int, seed: int, extent: float = 300.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    return torch.cat((corner, corner + 2 + torch.rand(count, 2, generator=generator) * extent), dim=-1)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_delta_round_trip(seed: int):
    boxes, priors = random_boxes(20, seed), random_boxes(20, seed + 1)
    coder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2), max_log_ratio=10, min_log_ratio=-10)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, priors), priors), boxes, atol=2e-3, rtol=1e-4)


def test_delta_equals_torchvision():
    boxes, priors = random_boxes(50, 3), random_boxes(50, 4)
    ours, theirs = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2)), BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(ours.encode(boxes, priors), theirs.encode_single(boxes, priors))
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))
    decoded = ours.decode(codes, priors)  # pixels up to some thousands, from which small ones may result
    torch.testing.assert_close(decoded, theirs.decode_single(codes, priors), atol=1e-3, rtol=1e-5)


def test_delta_by_hand():
    coder = DeltaCoder()
    prior, box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 20.0]])
    expected = torch.tensor([[1.0, 0.0, 0.693147, 0.0]])  # centre 5 -> 15 over width 10; width 10 -> 20
    torch.testing.assert_close(coder.encode(box, prior), expected)


def test_empty_boxes_give_finite_codes():
    zero = torch.zeros(1, 4)
    assert DeltaCoder().encode(zero, torch.tensor([[0.0, 0.0, 8.0, 8.0]])).isfinite().all()
    assert DeltaCoder().encode(zero, zero).isfinite().all()


@pytest.mark.parametrize("in_strides", [False, True])
def test_distance_round_trip(in_strides: bool):
    priors, strides = random_boxes(30, 5), torch.full((30,), 8.0)
    centre = (priors[:, :2] + priors[:, 2:]) / 2
    boxes = torch.cat((centre - 5, centre + 7), dim=-1)
    coder = DistanceCoder(activation=torch.relu, in_strides=in_strides)
    codes = coder.encode(boxes, priors, strides)
    torch.testing.assert_close(codes[:, 0], torch.full((30,), 5.0 / (8 if in_strides else 1)))
    torch.testing.assert_close(coder.decode(codes, priors, strides), boxes)
    logs = DistanceCoder(in_strides=in_strides)
    torch.testing.assert_close(logs.decode(codes.log(), priors, strides), boxes)
