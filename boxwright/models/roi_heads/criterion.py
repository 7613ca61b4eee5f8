"""Training of a RoI stage: assign and sample proposals, compare. The slots are those of dense heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...distributed import mean_over_ranks
from ...structures import Priors, Targets
from ..protocols import Assigner, ClassLoss, Coder, ElementLoss, Sampler
from ..targets import Filled, Sample, boxes_and_labels, gather_slots

if TYPE_CHECKING:
    from .box_head import RoIPredictions


@dataclass(frozen=True)
class RoICriterion:
    """Losses of a box head.

    Args:
        assigner: which proposal is trained for which ground truth.
        sampler: which proposals are trained in this step.
        class_loss: loss of the classes, for positives and negatives.
        code_loss: loss on box codes; may stand beside `box_loss`.
        box_loss: loss on decoded boxes.
        add_ground_truth: the true boxes are proposals, too, so that there are positives from the start.
    """

    assigner: Assigner
    sampler: Sampler
    class_loss: ClassLoss
    code_loss: ElementLoss | None = None
    box_loss: ElementLoss | None = None
    add_ground_truth: bool = True

    def sample(
        self,
        boxes: Tensor,
        valid: Tensor,
        targets: Targets,
        predict: Callable[[Tensor, Tensor], RoIPredictions] | None = None,
    ) -> tuple[Tensor, Sample]:
        """Regions `(B, S, 4)` to train on, from proposals `(B, R, 4)` with `valid (B, R)`, and their sample.

        An index of R or more in the sample is a ground truth that was added. `predict` gives the outputs for
        boxes and their validity, to samplers that rank by loss.
        """
        if self.add_ground_truth:
            boxes = torch.cat((boxes, targets.boxes), dim=1)
            valid = torch.cat((valid, targets.valid), dim=1)
        count = boxes.shape[1]
        assignment = self.assigner(Priors(boxes, boxes.new_ones(count), (count,), valid), targets)

        def losses() -> Tensor:
            assert predict is not None, "this sampler ranks by loss: give `predict`"
            with torch.no_grad():
                labels = gather_slots(targets.labels, assignment.gt_index)
                logits = predict(boxes, valid).class_logits
                return self.class_loss(logits, labels, assignment.positive.float())

        sample = self.sampler(assignment, losses)
        return sample.take(boxes), sample

    def __call__(
        self, predictions: RoIPredictions, boxes: Tensor, sample: Sample, targets: Targets, coder: Coder
    ) -> dict[str, Tensor]:
        """Losses of a batch: "loss/class" and "loss/box", divided by the number of sampled regions."""
        gt_boxes, labels = boxes_and_labels(sample, targets)
        divisor = mean_over_ranks(sample.valid.sum().float()).clamp(min=1)
        class_losses = self.class_loss(predictions.class_logits, labels, sample.positive.float())
        filled = Filled.of(sample.positive)
        gt, region = filled.drop(gt_boxes), filled.drop(boxes)
        codes = filled.drop(predictions.codes_of(labels))
        stride = gt.new_ones(gt.shape[0])
        box_losses = gt.new_zeros(gt.shape[0])
        if self.box_loss is not None:
            box_losses = box_losses + self.box_loss(coder.decode(codes, region, stride), gt)
        if self.code_loss is not None:
            box_losses = box_losses + self.code_loss(codes, coder.encode(gt, region, stride)).sum(-1)
        return {
            "loss/class": torch.where(sample.valid, class_losses, 0.0).sum() / divisor,
            "loss/box": filled.restore(box_losses).sum() / divisor,
            "stat/positives": sample.positive.sum() / float(sample.positive.shape[0]),
        }
