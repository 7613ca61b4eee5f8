"""Training of a RoI stage: assign and sample proposals, compare. The slots are those of dense heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ...distributed import mean_over_ranks
from ...ops.boxes import area
from ...structures import Assignment, Priors, Targets
from ..protocols import Assigner, ClassLoss, Coder, ElementLoss, Sampler
from ..targets import Filled, Sample, boxes_and_labels
from .predictions import RoIPredictions


def _priors(boxes: Tensor, valid: Tensor) -> Priors:
    count = boxes.shape[1]
    return Priors(boxes, boxes.new_ones(count), (count,), valid)


def _with_ground_truth(assignment: Assignment, targets: Targets) -> Assignment:
    """G true boxes behind the R proposals, each positive for itself; without area it counts neither way."""
    itself = targets.valid & (area(targets.boxes) > 0)
    index = torch.arange(itself.shape[1], device=itself.device).expand_as(itself)
    score, overlap = assignment.score, assignment.overlap
    return Assignment(
        torch.cat((assignment.gt_index, index), dim=1),
        torch.cat((assignment.positive, itself), dim=1),
        torch.cat((assignment.ignore, ~itself), dim=1),
        None if score is None else torch.cat((score, itself.to(score.dtype)), dim=1),
        None if overlap is None else torch.cat((overlap, torch.where(itself, 1.0, -1.0)), dim=1),
    )


@dataclass(frozen=True)
class RoICriterion:
    """Losses of a box head.

    A slot whose settings follow the training (Dynamic R-CNN) is an `nn.Module`; the box head registers it.
    Its `statistics()` are logged, and a code loss that has `observe(targets, positive)` is shown each step's
    code targets `(B, S, 4)` and positives `(B, S)` once its losses are computed.

    Args:
        assigner: which proposal is trained for which ground truth.
        sampler: which proposals are trained in this step.
        class_loss: loss of the classes, for positives and negatives.
        code_loss: loss on box codes; may stand beside `box_loss`.
        box_loss: loss on decoded boxes.
        add_ground_truth: the true boxes are proposals, too, so that there are positives from the start. They
            are added once the others are assigned, as in MMDetection: each is trained for itself, and none
            takes its rule (i) (`match_low_quality`) from the proposals.
        rank_with_box_loss: samplers that rank by loss see the sum of class and box loss (OHEM,
            arXiv:1604.03540, Sec. 4.1), not the class loss alone (MMDetection).
    """

    assigner: Assigner
    sampler: Sampler
    class_loss: ClassLoss
    code_loss: ElementLoss | None = None
    box_loss: ElementLoss | None = None
    add_ground_truth: bool = True
    rank_with_box_loss: bool = False

    def sample(
        self,
        boxes: Tensor,
        valid: Tensor,
        targets: Targets,
        predict: Callable[[Tensor, Tensor], RoIPredictions] | None = None,
        coder: Coder | None = None,
    ) -> tuple[Tensor, Sample]:
        """Regions `(B, S, 4)` to train on, from proposals `(B, R, 4)` with `valid (B, R)`, and their sample.

        An index of R or more in the sample is a ground truth that was added. `predict` gives the outputs for
        boxes and their validity, and `coder` reads their codes, for samplers that rank by loss.
        """
        assignment = self.assigner(_priors(boxes, valid), targets)
        if self.add_ground_truth:
            assignment = _with_ground_truth(assignment, targets)
            boxes = torch.cat((boxes, targets.boxes), dim=1)
            valid = torch.cat((valid, targets.valid), dim=1)
        priors = _priors(boxes, valid)

        def losses() -> Tensor:
            assert predict is not None and coder is not None, "this sampler ranks by loss"  # noqa: PT018
            every = Sample(None, assignment.gt_index, assignment.positive, assignment.negative)
            with torch.no_grad():
                of_class, of_box = self.each(predict(boxes, valid), boxes, every, targets, coder)
            return of_class + of_box if self.rank_with_box_loss else of_class

        sample = self.sampler(assignment, losses, priors)
        return sample.take(boxes), sample

    def __call__(
        self, predictions: RoIPredictions, boxes: Tensor, sample: Sample, targets: Targets, coder: Coder
    ) -> dict[str, Tensor]:
        """Losses of a batch: "loss/class" and "loss/box", divided by the number of sampled regions.

        Beside them "stat/positives", of an image, and "stat/positive_share", among the sampled regions.
        """
        class_losses, box_losses = self.each(predictions, boxes, sample, targets, coder)
        divisor = mean_over_ranks(sample.valid.sum().float()).clamp(min=1)
        return {
            "loss/class": torch.where(sample.valid, class_losses, 0.0).sum() / divisor,
            "loss/box": box_losses.sum() / divisor,
            "stat/positives": sample.positive.sum() / float(sample.positive.shape[0]),
            "stat/positive_share": sample.positive_share(),
            **self.follow(boxes, sample, targets, coder),
        }

    def stateful(self) -> dict[str, nn.Module]:
        """The slots that keep state from step to step, by name."""
        slots = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: slot for name, slot in slots.items() if isinstance(slot, nn.Module)}

    def follow(self, boxes: Tensor, sample: Sample, targets: Targets, coder: Coder) -> dict[str, Tensor]:
        """Show a step's regions `(B, S, 4)` to slots that follow the training; returns their statistics."""
        observe = getattr(self.code_loss, "observe", None)
        if observe is not None:
            gt_boxes, _ = boxes_and_labels(sample, targets)
            observe(coder.encode(gt_boxes, boxes, boxes.new_ones(boxes.shape[:2])), sample.positive)
        asked = [getattr(slot, "statistics", dict) for slot in self.stateful().values()]
        return {f"stat/{name}": value for ask in asked for name, value in ask().items()}

    def each(
        self, predictions: RoIPredictions, boxes: Tensor, sample: Sample, targets: Targets, coder: Coder
    ) -> tuple[Tensor, Tensor]:
        """Class losses and box losses `(B, S)` of each region; box losses are 0 where it is not positive."""
        gt_boxes, labels = boxes_and_labels(sample, targets)
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
        return class_losses, filled.restore(box_losses)
