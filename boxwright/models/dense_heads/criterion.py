"""Training of a dense head: assign, sample, compare. What a paper changes is a slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...distributed import mean_over_ranks, world_size
from ...ops.boxes import centres
from ...structures import Assignment, DensePredictions, Priors, Targets
from ..protocols import Assigner, BoxWeight, ClassLoss, Coder, ElementLoss, Quality, Sampler
from ..samplers import AllSampler
from ..targets import Filled, Sample, boxes_and_labels, gather_slots
from .sampled import of_sample, without_gradient

ALL = AllSampler()
Divisor = Callable[[Sample], Tensor]
"""Number by which summed losses are divided: `()` for the batch, or `(B,)` for each image."""


@dataclass(frozen=True)
class Positives:
    """The positives of the batch, at least one; their mean over ranks, so that DDP equals one process."""

    def __call__(self, sample: Sample) -> Tensor:
        """A scalar."""
        return mean_over_ranks(sample.positive.sum().float()).clamp(min=1)


POSITIVES = Positives()


@dataclass(frozen=True)
class Samples:
    """The positives and negatives of the batch, at least one; their mean over ranks."""

    def __call__(self, sample: Sample) -> Tensor:
        """A scalar."""
        return mean_over_ranks(sample.valid.sum().float()).clamp(min=1)


@dataclass(frozen=True)
class Summed:
    """No division: losses are summed over the images of all ranks (YOLOv3).

    Ranks take the mean of their gradients, so each multiplies its sum by their number, and DDP equals one
    process.
    """

    def __call__(self, sample: Sample) -> Tensor:
        """A scalar."""
        return sample.positive.new_ones((), dtype=torch.float32) / world_size()


@dataclass(frozen=True)
class PerImage:
    """Positives of each image times the number of images, as torchvision's RetinaNet divides."""

    def __call__(self, sample: Sample) -> Tensor:
        """`(B,)`."""
        return sample.positive.sum(1).clamp(min=1) * float(sample.positive.shape[0])


@dataclass(frozen=True)
class _BinaryQuality:
    """A quality between 0 and 1, trained by binary cross entropy.

    Args:
        weight: of the binary cross entropy.
    """

    weight: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets `(...)` to losses `(...)`."""
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none") * self.weight


@dataclass(frozen=True)
class Centreness(_BinaryQuality):
    """How near a point is to the middle of its box (FCOS, arXiv:1904.01355, Eq. 3)."""

    negatives: ClassVar[bool] = False

    def target(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Targets `(...)` in 0..1 for ground truth and priors `(..., 4)`."""
        centre = centres(priors)
        before, after = (centre - boxes[..., :2]).clamp(min=0), (boxes[..., 2:] - centre).clamp(min=0)
        ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
        return ratio.prod(-1).sqrt()


@dataclass(frozen=True)
class Objectness(_BinaryQuality):
    """Whether a prior is positive: 1, and 0 for negatives (YOLOv3, arXiv:1804.02767, Sec. 2.1)."""

    negatives: ClassVar[bool] = True

    def target(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Targets `(...)` of positives, with ground truth and priors `(..., 4)`."""
        return boxes.new_ones(boxes.shape[:-1])


def quality_target(scores: Tensor, quality: Tensor | None) -> Tensor:
    """Weigh the box losses by the quality's target, as FCOS's authors do."""
    assert quality is not None, "weighing boxes by their quality needs a quality branch"
    return quality


def best_score(scores: Tensor, quality: Tensor | None) -> Tensor:
    """Weigh the box losses by the highest class score (GFL, arXiv:2006.04388, below Eq. 8)."""
    return scores.amax(-1)


@dataclass(frozen=True)
class DenseCriterion:
    """Losses of a dense head from its predictions and the ground truth.

    Args:
        assigner: which prior is trained for which ground truth.
        class_loss: loss of the class scores, for positives and negatives.
        sampler: which of the assigned priors take part.
        code_loss: loss on box codes; may stand beside `box_loss`.
        box_loss: loss on decoded boxes.
        quality: loss and target of a quality branch.
        class_target: score that a positive's class is trained for, from predicted and true boxes
            `(P, 4)`; without it the assigner's score, or 1.
        box_weight: weight of each positive's box losses, whose sum, the mean over ranks, then divides them.
        min_box_weight: that sum is held above this; with 1, low weights make low losses.
        divisor: what summed losses are divided by.
        area: which priors may be trained; None for all.
        class_agnostic: every object is of class 0, as to a proposal network.
        class_negatives: negatives are trained to be of no class; False where objectness says so instead
            (YOLOv3, arXiv:1804.02767, Sec. 2.1).
    """

    assigner: Assigner
    class_loss: ClassLoss
    sampler: Sampler = ALL
    code_loss: ElementLoss | None = None
    box_loss: ElementLoss | None = None
    quality: Quality | None = None
    class_target: ElementLoss | None = None
    box_weight: BoxWeight | None = None
    min_box_weight: float = 1e-6
    divisor: Divisor = POSITIVES
    area: Callable[[Priors, Tensor], Priors] | None = None
    class_agnostic: bool = False
    class_negatives: bool = True

    def __call__(
        self, predictions: DensePredictions, priors: Priors, targets: Targets, sizes: Tensor, coder: Coder
    ) -> dict[str, Tensor]:
        """Losses of a batch: "loss/class", "loss/box" and "loss/quality".

        Beside them "stat/positives", of an image, and "stat/positive_share", among all that are trained.
        """
        if self.class_agnostic:
            targets = replace(targets, labels=torch.zeros_like(targets.labels))
        if self.area is not None:
            priors = self.area(priors, sizes)
        detached = without_gradient(predictions)
        assignment = self.assigner(priors, targets, detached)
        losses_of_all = partial(self._losses, detached.class_logits, assignment, targets)
        sample = self.sampler(assignment, losses_of_all, priors)
        outputs = of_sample(predictions, sample)
        gt_boxes, labels = boxes_and_labels(sample, targets)
        filled = Filled.of(sample.positive)
        shape = (*predictions.codes.shape[:2], 4)
        prior = filled.drop(sample.take(priors.boxes.expand(shape)))
        stride = filled.drop(sample.take(priors.strides.expand(shape[:2])))
        gt = filled.drop(gt_boxes)
        codes = filled.drop(outputs.codes)
        boxes = coder.decode(codes, prior, stride)
        divisor = self.divisor(sample)

        def total(losses: Tensor, counts: Tensor, by: Tensor) -> Tensor:
            return (torch.where(counts, losses, 0.0).sum(1) / by).sum()

        score = sample.positive.float()
        if self.class_target is not None:
            score = filled.restore(self.class_target(boxes.detach(), gt)) * score
        elif sample.score is not None:
            score = sample.score * score
        class_losses = self.class_loss(outputs.class_logits, labels, score)
        counts = sample.valid if self.class_negatives else sample.positive
        losses = {"loss/class": total(class_losses, counts, divisor)}
        quality = None
        if self.quality is not None:
            assert outputs.quality_logits is not None, "the head has no quality branch"
            quality = self.quality.target(gt, prior)
            counts = sample.valid if self.quality.negatives else sample.positive
            quality_losses = self.quality(outputs.quality_logits, filled.restore(quality))
            losses["loss/quality"] = total(quality_losses, counts, divisor)
        weight, box_divisor = gt.new_ones(()), divisor
        if self.box_weight is not None:
            scores = self.class_loss.scores(filled.drop(sample.take(detached.class_logits)))
            weight = self.box_weight(scores, quality)
            summed = torch.where(sample.positive, filled.restore(weight), 0.0).sum()
            box_divisor = mean_over_ranks(summed).clamp(min=self.min_box_weight)
        box_losses = gt.new_zeros(gt.shape[0])
        if self.box_loss is not None:
            box_losses = box_losses + self.box_loss(boxes, gt)
        if self.code_loss is not None:
            box_losses = box_losses + self.code_loss(codes, coder.encode(gt, prior, stride)).sum(-1)
        losses["loss/box"] = total(filled.restore(box_losses * weight), sample.positive, box_divisor)
        losses["stat/positives"] = sample.positive.sum() / float(sample.positive.shape[0])
        losses["stat/positive_share"] = sample.positive_share()
        return losses

    def _losses(self, logits: Tensor, assignment: Assignment, targets: Targets) -> Tensor:
        """Class losses `(B, A)` of all priors, for samplers that rank by them."""
        labels = gather_slots(targets.labels, assignment.gt_index)
        score = assignment.positive.float() if assignment.score is None else assignment.score
        return self.class_loss(logits, labels, score * assignment.positive)
