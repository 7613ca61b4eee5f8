"""Sides as distributions: means worked by hand, the round trip, and the layout of a code."""

from __future__ import annotations

import pytest
import torch

from boxwright.models.coders import DistributionCoder

PRIORS, STRIDES = torch.tensor([[8.0, 8, 24, 24], [0, 0, 64, 64]]), torch.tensor([8.0, 32.0])


def codes_of(distances: torch.Tensor, last: int) -> torch.Tensor:
    """Logits of the distributions over the two whole numbers around each distance that have it as mean."""
    below = distances.floor()
    probabilities = torch.zeros(*distances.shape, last + 1)
    probabilities.scatter_(-1, below.long()[..., None], (1 - (distances - below))[..., None])
    probabilities.scatter_add_(-1, below.long()[..., None] + 1, (distances - below)[..., None])
    return probabilities.log().flatten(-2)


def test_means_by_hand() -> None:
    coder = DistributionCoder(last=2)
    assert coder.size == 12
    # Left: equal logits, mean 1. Top: 0 for sure. Right: 2 for sure. Bottom: 1/4, 1/4, 1/2, mean 1.25.
    code = torch.tensor([[0.0, 0, 0, 90, 0, 0, 0, 0, 90, 0, 0, 0.6931472]])
    torch.testing.assert_close(coder.distances(code), torch.tensor([[1.0, 0.0, 2.0, 1.25]]))
    # From the centre (16, 16), in strides of 8.
    expected = torch.tensor([[8.0, 16.0, 32.0, 26.0]])
    torch.testing.assert_close(coder.decode(code, PRIORS[:1], STRIDES[:1]), expected)


def test_round_trip() -> None:
    coder = DistributionCoder()
    boxes = torch.tensor([[1.0, 3, 30, 50.5], [-100, 20, 90, 400]])
    distances = coder.encode(boxes, PRIORS, STRIDES)
    torch.testing.assert_close(distances[0], torch.tensor([15.0, 13, 14, 34.5]) / 8)
    torch.testing.assert_close(
        coder.decode(codes_of(distances, 16), PRIORS, STRIDES), boxes, atol=1e-3, rtol=0
    )


def test_targets_have_whole_numbers_on_both_sides() -> None:
    coder = DistributionCoder(last=4)
    # 12.5 strides to the left, outside at the top, exactly 4 at the right, 1 below.
    boxes = torch.tensor([[-84.0, 20, 48, 24]])
    expected = torch.tensor([[3.9, 0.0, 3.9, 1.0]])
    torch.testing.assert_close(coder.encode(boxes, PRIORS[:1], STRIDES[:1]), expected)


def test_low_precision_codes_give_float32_boxes() -> None:
    coder = DistributionCoder()
    code = torch.randn(2, coder.size, dtype=torch.bfloat16)
    found = coder.decode(code, PRIORS, STRIDES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, coder.decode(code.float(), PRIORS, STRIDES))


def test_extreme_logits_stay_finite() -> None:
    code = torch.full((2, 68), -1e4)
    code[:, ::3] = 1e4
    code.requires_grad_()
    boxes = DistributionCoder().decode(code, PRIORS, STRIDES)
    boxes.sum().backward()
    assert boxes.isfinite().all()
    assert code.grad is not None
    assert code.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    coder = DistributionCoder(last=3)
    codes, priors = torch.randn(*shape, 16), torch.rand(*shape, 4)
    assert coder.decode(codes, priors, torch.ones(shape)).shape == (*shape, 4)
