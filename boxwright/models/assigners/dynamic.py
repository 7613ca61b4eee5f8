"""Dynamic label assignment (Dynamic R-CNN, arXiv:2004.06002, Sec. 4.1)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ...distributed import mean_over_ranks
from ...structures import Assignment, DensePredictions, Priors, Targets
from ..adaptive import AdaptiveValue
from .max_iou import MaxIoUAssigner

RULE = MaxIoUAssigner(0.5, 0.5)


class DynamicIoUAssigner(nn.Module):
    """Max IoU with a threshold that rises with the proposals (Eq. 3).

    In each step the K_I-th largest IoU of an image, averaged over the images with objects (of all ranks), is
    recorded. After every C steps the threshold between positives and negatives is the mean of what was
    recorded (Algorithm 1, line 8).

    Args:
        rule: how proposals are assigned but for the threshold, which is its `positive_iou` until the first
            update.
        top: K_I.
        interval: C, in steps.
        lowest: the threshold does not fall below this.
        count_ground_truth: ground truths count among the proposals, as those that a criterion adds do for the
            authors and in MMDetection: their IoU is 1.
    """

    def __init__(
        self,
        rule: MaxIoUAssigner = RULE,
        top: int = 75,
        interval: int = 100,
        lowest: float = 0.4,
        count_ground_truth: bool = True,
    ) -> None:
        super().__init__()
        self.rule, self.top, self.count_ground_truth = rule, top, count_ground_truth
        self.threshold = AdaptiveValue(float(rule.positive_iou), interval, torch.nanmean, lowest=lowest)

    def forward(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images; in training mode their overlaps are recorded."""
        iou = self.threshold.value.clone()
        rule = replace(self.rule, positive_iou=iou, negative_iou=iou, min_positive_iou=iou)
        assignment = rule(priors, targets, predictions)
        if self.training:
            assert assignment.overlap is not None
            overlap = assignment.overlap
            if self.count_ground_truth:
                overlap = torch.cat((overlap, torch.where(targets.valid, 1.0, -1.0)), dim=1)
            with_objects = targets.valid.any(1)
            found = torch.where(with_objects, kth_largest(overlap, self.top), 0.0)
            total, images = mean_over_ranks(torch.stack((found.sum(), with_objects.sum().float()))).unbind()
            self.threshold.record(total / torch.where(images > 0, images, 1.0), images > 0)
        return assignment

    def statistics(self) -> dict[str, Tensor]:
        """The threshold as the next step will have it."""
        return {"iou_threshold": self.threshold.value.clone()}


def kth_largest(overlap: Tensor, k: int) -> Tensor:
    """The k-th largest `(B,)` of overlaps `(B, A)`, negative ones left out; the least if there are fewer."""
    best = overlap.topk(min(k, overlap.shape[1]), dim=1).values
    last = ((best >= 0).sum(1, keepdim=True) - 1).clamp(min=0)
    return best.gather(1, last)[:, 0].clamp(min=0)
