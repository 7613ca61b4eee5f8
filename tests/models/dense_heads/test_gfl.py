"""GFL's recipe in the shared criterion, against a slow writing-out of the paper's Eq. 8 in float64.

Where the paper leaves a choice open it is that of MMDetection's `GFLHead`: targets of the sides stay 0.1
strides below the last one, and the sum of the box weights counts as 1 at least.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from boxwright.config import build
from boxwright.models.coders import DistributionCoder
from boxwright.models.dense_heads import DenseCriterion, best_score
from boxwright.models.priors import Anchors
from boxwright.recipes import recipe
from boxwright.structures import Assignment, DensePredictions, Priors, Targets

CLASSES, CODER = 3, DistributionCoder(last=16)
SIZES = torch.tensor([[96, 128], [64, 100]])


@pytest.fixture(scope="module")
def criterion() -> DenseCriterion:
    return build(recipe("gfl_r50_fpn_1x").model.head.criterion)


@pytest.fixture(scope="module")
def priors() -> Priors:
    return Anchors(scales=(8.0,), ratios=(1.0,))([(12, 16), (6, 8)], (8, 16), (96, 128))


def make_targets(count: int = 2) -> Targets:
    boxes = torch.tensor([[[6.0, 9, 70, 60], [40, 20, 121, 93]], [[10, 5, 80, 61], [0, 0, 100, 64]]])
    valid = torch.tensor([[True, True], [True, False]]) & (torch.arange(2) < count)
    ignore = torch.tensor([[False, False], [False, True]])
    return Targets(boxes, torch.tensor([[2, 0], [1, 0]]), valid, ignore)


def make_predictions(priors: Priors, bias: float) -> DensePredictions:
    generator = torch.Generator().manual_seed(0)
    number = len(priors.boxes)
    logits = torch.randn(2, number, CLASSES, generator=generator) + bias
    codes = torch.randn(2, number, CODER.size, generator=generator)
    return DensePredictions(logits.requires_grad_(), codes.requires_grad_())


def written_out(
    predictions: DensePredictions, priors: Priors, targets: Targets, assignment: Assignment
) -> tuple[Tensor, Tensor]:
    """Class loss and box loss, prior by prior."""
    class_loss, box_loss, weights, positives = (torch.zeros((), dtype=torch.float64) for _ in range(4))
    for image in range(2):
        for prior, anchor in enumerate(priors.boxes.double()):
            if assignment.ignore[image, prior]:
                continue
            logits = predictions.class_logits[image, prior].double()
            target = torch.zeros_like(logits)
            if assignment.positive[image, prior]:
                slot, stride = assignment.gt_index[image, prior], priors.strides[prior].double()
                truth = targets.boxes[image, slot].double() / stride
                centre = (anchor[:2] + anchor[2:]) / 2 / stride
                code = predictions.codes[image, prior].double().reshape(4, 17)
                reach = code.softmax(-1) @ torch.arange(17, dtype=torch.float64)
                box = torch.cat((centre - reach[:2], centre + reach[2:]))
                target[targets.labels[image, slot]] = box_iou(box.detach()[None], truth[None])[0, 0]
                sides = torch.cat((centre - truth[:2], truth[2:] - centre)).clamp(0, 15.9)
                below = sides.long()
                to_below = F.cross_entropy(code, below, reduction="none") * (below + 1 - sides)
                to_above = F.cross_entropy(code, below + 1, reduction="none") * (sides - below)
                distribution = (to_below + to_above).mean()
                overlap = generalized_box_iou(box[None], truth[None])[0, 0]
                weight = logits.detach().sigmoid().max()
                box_loss = box_loss + weight * (2 * (1 - overlap) + 0.25 * distribution)
                weights, positives = weights + weight, positives + 1
            cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            class_loss = class_loss + ((logits.sigmoid() - target) ** 2 * cross_entropy).sum()
    return class_loss / positives.clamp(min=1), box_loss / weights.clamp(min=1)


@pytest.mark.parametrize("bias", [-5.0, 0.0])
def test_losses_and_gradients(criterion: DenseCriterion, priors: Priors, bias: float) -> None:
    predictions, targets = make_predictions(priors, bias), make_targets()
    assert criterion.area is not None
    assignment = criterion.assigner(criterion.area(priors, SIZES), targets)
    assert assignment.positive.sum(1).min() > 0
    assert assignment.negative.any(1).all()
    assert not assignment.ignore[0].any()
    assert assignment.ignore[1].any()
    weights = best_score(predictions.class_logits.detach().sigmoid(), None)[assignment.positive].sum()
    assert (weights < 1) == (bias < 0)  # both sides of the bound on their sum

    losses = criterion(predictions, priors, targets, SIZES, CODER)
    expected = written_out(predictions, priors, targets, assignment)
    found = losses["loss/class"], losses["loss/box"]
    inputs = (predictions.class_logits, predictions.codes)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(sum(found), inputs)  # pyright: ignore
    for ours, theirs in zip(gradients, torch.autograd.grad(sum(expected), inputs), strict=True):  # pyright: ignore
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_scores_learn_the_overlap_alone(criterion: DenseCriterion, priors: Priors) -> None:
    """No gradient goes through the score's target or the boxes' weights."""
    predictions = make_predictions(priors, 0.0)
    losses = criterion(predictions, priors, make_targets(), SIZES, CODER)
    of_codes = torch.autograd.grad(
        losses["loss/class"], predictions.codes, retain_graph=True, allow_unused=True
    )
    of_logits = torch.autograd.grad(losses["loss/box"], predictions.class_logits, allow_unused=True)
    assert of_codes == of_logits == (None,)


def test_images_without_objects(criterion: DenseCriterion, priors: Priors) -> None:
    predictions, targets = make_predictions(priors, 0.0), make_targets(0)
    losses = criterion(predictions, priors, targets, SIZES, CODER)
    assert losses["loss/box"] == 0
    assert losses["loss/class"].isfinite()
    (losses["loss/box"] + losses["loss/class"]).backward()
    assert predictions.codes.grad is not None
    assert not predictions.codes.grad.any()
