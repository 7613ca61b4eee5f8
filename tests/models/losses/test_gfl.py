"""GFL's losses: closed forms worked by hand, slow references of the paper's equations, gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from boxwright.models.losses import BinaryCrossEntropy, DistributionFocalLoss, FocalLoss, QualityFocalLoss


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 50, 7, generator=generator)
    labels = torch.randint(0, 7, (6, 50), generator=generator)
    scores = torch.rand(6, 50, generator=generator)
    return logits, labels, scores * (torch.rand(6, 50, generator=generator) < 0.4)


def quality_focal(probability: float, score: float, beta: float) -> float:
    """Eq. 2 for one class."""
    cross_entropy = (1 - score) * math.log(1 - probability) + score * math.log(probability)
    return -(abs(score - probability) ** beta) * cross_entropy


def test_quality_focal_by_hand() -> None:
    # Scores 1/2 and 1/4. Class 0 should have 3/4: (1/4)^2 * log 2. Class 1 should have 0: -(1/4)^2 * log 3/4.
    logits = torch.tensor([[0.0, -math.log(3)]])
    found = QualityFocalLoss()(logits, torch.tensor([0]), torch.tensor([0.75])).item()
    assert found == pytest.approx((math.log(2) + math.log(4 / 3)) / 16, rel=1e-5)
    # A negative: both should have 0.
    found = QualityFocalLoss(weight=3.0)(logits, torch.tensor([0]), torch.tensor([0.0])).item()
    assert found == pytest.approx(3 * (math.log(2) / 4 + math.log(4 / 3) / 16), rel=1e-5)


@pytest.mark.parametrize("beta", [1.0, 2.0, 2.5])
def test_quality_focal_equals_a_slow_reference(case, beta: float) -> None:
    logits, labels, scores = (t[:2] for t in case)
    found = QualityFocalLoss(beta=beta)(logits, labels, scores)
    for image in range(2):
        for i, row in enumerate(logits[image].double().sigmoid().tolist()):
            target = [0.0] * 7
            target[labels[image, i]] = scores[image, i].item()
            expected = sum(quality_focal(p, y, beta) for p, y in zip(row, target, strict=True))
            assert found[image, i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_quality_focal_is_the_focal_loss_of_whole_scores(case) -> None:
    logits, labels, scores = case
    whole = (scores > 0).float()
    torch.testing.assert_close(
        QualityFocalLoss()(logits, labels, whole), 2 * FocalLoss(alpha=0.5)(logits, labels, whole)
    )
    torch.testing.assert_close(
        QualityFocalLoss(beta=0.0)(logits, labels, scores), BinaryCrossEntropy()(logits, labels, scores)
    )


def test_quality_focal_gradient(case) -> None:
    logits, labels, scores = (t[:1, :8] for t in case)
    target = F.one_hot(labels, 7) * scores[..., None]
    loss = QualityFocalLoss()
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, labels, scores).sum(), logits)
    # d/dx of (p - y)^2 * BCE(x, y) is (p - y)^2 * (p - y) + 2 * (p - y) * p * (1 - p) * BCE.
    p = logits.detach().sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
    expected = (p - target) ** 3 + 2 * (p - target) * p * (1 - p) * cross_entropy
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [-120.0, 0.0, 120.0])
def test_extreme_logits_stay_finite(value: float) -> None:
    logits = torch.full((2, 3), value, requires_grad=True)
    result = QualityFocalLoss()(logits, torch.tensor([0, 1]), torch.tensor([0.0, 0.6]))
    result.sum().backward()
    assert result.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_distribution_focal_by_hand() -> None:
    # Three distances, probabilities 1/2, 1/4, 1/4 on each side; targets 0.25, 1, 1.5, 0.
    code = torch.tensor([0.5, 0.25, 0.25]).log().repeat(4)[None]
    found = DistributionFocalLoss(weight=1.0)(code, torch.tensor([[0.25, 1.0, 1.5, 0.0]]))
    one = math.log(2)
    # -(3/4 log 1/2 + 1/4 log 1/4), -log 1/4, -(1/2 log 1/4 + 1/2 log 1/4), -log 1/2; a quarter of each.
    expected = torch.tensor([[1.25 * one, 2 * one, 2 * one, one]]) / 4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        DistributionFocalLoss()(code, torch.tensor([[0.25, 1.0, 1.5, 0.0]])), expected / 4
    )


def test_distribution_focal_equals_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(20, 4 * 17, generator=generator)
    targets = torch.rand(20, 4, generator=generator) * 15.9
    found = DistributionFocalLoss(weight=1.0)(codes, targets)
    for i in range(20):
        for side in range(4):
            logarithms = codes[i, 17 * side : 17 * (side + 1)].double().log_softmax(0).tolist()
            y = targets[i, side].item()
            low = int(y)
            expected = -((low + 1 - y) * logarithms[low] + (y - low) * logarithms[low + 1])  # Eq. 6
            assert found[i, side].item() == pytest.approx(expected / 4, rel=1e-4)


def test_the_best_distribution_has_the_target_as_its_mean() -> None:
    """The minimum of Eq. 6 is reached where the two neighbours share the probability by their nearness."""
    target = torch.tensor([[2.3, 0.0, 3.75, 1.5]])
    code = torch.zeros(1, 20, requires_grad=True)
    optimizer = torch.optim.LBFGS([code], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = DistributionFocalLoss(weight=4.0)(code, target).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    probabilities = code.detach().unflatten(-1, (4, 5)).softmax(-1)
    torch.testing.assert_close((probabilities * torch.arange(5.0)).sum(-1), target, atol=0.01, rtol=0)
    assert probabilities[0, 0, 2].item() == pytest.approx(0.7, abs=0.01)


def test_no_positives_no_losses() -> None:
    assert DistributionFocalLoss()(torch.zeros(0, 68), torch.zeros(0, 4)).shape == (0, 4)
    assert QualityFocalLoss()(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0)).shape == (0,)
