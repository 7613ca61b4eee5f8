"""Losses against torchvision's, against closed forms, and against numbers worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from boxwright.models.losses import (
    BalancedL1,
    BinaryCrossEntropy,
    BoundedIoULoss,
    CIoULoss,
    CrossEntropy,
    DIoULoss,
    FocalLoss,
    GIoULoss,
    IoULoss,
    SmoothL1,
)


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 50, 7, generator=generator)
    labels = torch.randint(0, 7, (6, 50), generator=generator)
    scores = (torch.rand(6, 50, generator=generator) < 0.3).float()
    return logits, labels, scores, F.one_hot(labels, 7) * scores[..., None]


def test_focal_equals_torchvision(case):
    logits, labels, scores, target = case
    logits.requires_grad_()
    ours = FocalLoss(alpha=0.3, gamma=1.5)(logits, labels, scores)
    theirs = sigmoid_focal_loss(logits, target, alpha=0.3, gamma=1.5).sum(-1)
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_binary_cross_entropy_takes_soft_scores(case):
    logits, labels, scores, target = case
    expected = F.binary_cross_entropy_with_logits(logits, target * 0.7, reduction="none").sum(-1)
    torch.testing.assert_close(BinaryCrossEntropy()(logits, labels, scores * 0.7), expected)


def test_cross_entropy_has_the_background_last(case):
    logits, labels, scores, _ = case
    wide = torch.cat((logits, logits[..., :1] * 0.5), dim=-1)
    column = torch.where(scores > 0, labels, 7)
    expected = F.cross_entropy(wide.flatten(0, 1), column.flatten(), reduction="none").reshape(6, 50)
    loss = CrossEntropy()
    torch.testing.assert_close(loss(wide, labels, scores), expected)
    assert loss.columns(7) == 8
    torch.testing.assert_close(loss.scores(wide).sum(-1), 1 - wide.softmax(-1)[..., -1])


def test_the_best_score_is_the_highest(case):
    logits = case[0]
    for loss in (FocalLoss(), BinaryCrossEntropy(), CrossEntropy()):
        torch.testing.assert_close(loss.best(logits), loss.scores(logits).amax(-1), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [FocalLoss(), BinaryCrossEntropy()])
@pytest.mark.parametrize("value", [-120.0, 0.0, 120.0])
def test_extreme_logits_stay_finite(loss, value: float):
    logits = torch.full((2, 3), value, requires_grad=True)
    result = loss(logits, torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    result.sum().backward()
    assert result.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_smooth_l1_equals_torch():
    a, b = torch.randn(30, 4), torch.randn(30, 4)
    torch.testing.assert_close(SmoothL1(beta=0.3)(a, b), F.smooth_l1_loss(a, b, beta=0.3, reduction="none"))
    torch.testing.assert_close(SmoothL1(beta=0.0, weight=2.0)(a, b), 2 * (a - b).abs())


def test_balanced_l1_is_continuous_and_bounded():
    loss = BalancedL1()
    below, above = torch.tensor([[1 - 1e-5]]), torch.tensor([[1 + 1e-5]])
    zero = torch.zeros(1, 1)
    torch.testing.assert_close(loss(below, zero), loss(above, zero), atol=1e-4, rtol=0)
    x = torch.tensor([[3.0]], requires_grad=True)
    loss(x, zero).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(1.5)
    x = torch.tensor([[0.5]], requires_grad=True)
    loss(x, zero).sum().backward()
    assert x.grad is not None
    b = math.exp(3.0) - 1
    assert x.grad.item() == pytest.approx(0.5 * math.log(b * 0.5 + 1), rel=1e-4)  # Eq. 6


def test_iou_losses():
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])  # IoU 1/3
    assert IoULoss()(a, b).item() == pytest.approx(math.log(3), rel=1e-4)
    assert IoULoss(mode="linear")(a, b).item() == pytest.approx(2 / 3, rel=1e-4)
    assert IoULoss(mode="square")(a, b).item() == pytest.approx(8 / 9, rel=1e-4)
    torch.testing.assert_close(GIoULoss()(a, b), generalized_box_iou_loss(a, b))


def test_bounded_iou_by_hand():
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    # Shift of 1 in x against a width of 2: 1 - (2-2)/(2+2) = 1, linear part 1 - 0.1; the rest nearly 0.
    assert BoundedIoULoss()(a, b).item() == pytest.approx(0.9, abs=1e-3)
    assert BoundedIoULoss()(b, b).item() == pytest.approx(0.0, abs=1e-3)


def test_the_aspect_ratio_counts_from_half_an_overlap_on():
    target = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    boxes = torch.tensor([[1.0, 0, 10, 8], [6, 0, 16, 4], [20, 20, 24, 40]])  # IoU 0.72, 0.12 and 0
    distance, complete = DIoULoss(eps=1e-6)(boxes, target), CIoULoss(eps=1e-6)(boxes, target)
    torch.testing.assert_close(distance, distance_box_iou_loss(boxes, target), atol=1e-5, rtol=1e-5)
    whole = complete_box_iou_loss(boxes, target)
    torch.testing.assert_close(complete[:1], whole[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(complete[1:], distance[1:])
    torch.testing.assert_close(CIoULoss(aspect_from=0.0)(boxes, target), whole, atol=1e-5, rtol=1e-5)
    assert (CIoULoss(weight=3.0)(boxes, target) > 2.9 * complete).all()
