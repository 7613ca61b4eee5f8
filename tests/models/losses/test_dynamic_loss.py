"""Dynamic smooth L1 (arXiv:2004.06002, Eq. 5, 6) against a reference with lists."""

import math

import numpy as np
import pytest
import torch

from boxwright.models.losses import DynamicSmoothL1, SmoothL1


def step(seed: int, images: int = 4, slots: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Code targets and which count; the first image has none."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(images, slots, 4, generator=generator)
    positive = torch.rand(images, slots, generator=generator) < 0.4
    positive[0] = False
    targets[~positive] = math.nan  # what stands there does not matter
    return targets, positive


@pytest.mark.parametrize("bottom", [1, 3, 100])
def test_beta_follows_the_targets(bottom: int):
    loss = DynamicSmoothL1(beta=1.0, bottom=bottom, interval=4)
    beta, kept = 1.0, []
    for number in range(10):
        targets, positive = step(number)
        loss.observe(targets, positive)
        errors = targets[positive][:, :2].abs().mean(1).sort().values
        place = min(bottom * int(positive.any(1).sum()), len(errors))
        kept.append(errors[place - 1].item())
        if len(kept) == 4:
            beta, kept = min(float(np.median(kept)), 1.0), []
        assert loss.statistics()["beta"].item() == pytest.approx(beta, abs=1e-6)


def test_no_positives_and_targets_of_zero_leave_beta():
    loss = DynamicSmoothL1(beta=0.7, interval=2)
    targets, positive = step(0)
    for _ in range(4):
        loss.observe(targets, torch.zeros_like(positive))
    assert loss.statistics()["beta"].item() == pytest.approx(0.7)
    for _ in range(2):
        loss.observe(torch.zeros_like(targets), positive)
    assert loss.statistics()["beta"].item() == pytest.approx(0.7)


def test_an_update_does_not_reach_into_the_step_before():
    loss = DynamicSmoothL1(beta=1.0, bottom=1, interval=1, weight=2.0)
    targets, positive = step(3)
    codes = torch.randn(5, 4, requires_grad=True)
    truth = torch.randn(5, 4) * 0.3
    values = loss(codes, truth)
    loss.observe(targets, positive)
    assert loss.statistics()["beta"] < 1
    values.sum().backward()
    again = codes.detach().clone().requires_grad_()
    expected = SmoothL1(beta=1.0, weight=2.0)(again, truth)
    expected.sum().backward()
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(codes.grad, again.grad)
    after = SmoothL1(beta=loss.statistics()["beta"].item(), weight=2.0)(again, truth)
    torch.testing.assert_close(loss(again, truth), after)


def test_one_graph():
    plain, compiled = (DynamicSmoothL1(bottom=2, interval=2) for _ in range(2))
    observe = torch.compile(compiled.observe, fullgraph=True, backend="aot_eager")
    for number in range(3):
        plain.observe(*step(number))
        observe(*step(number))
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), equal_nan=True)
