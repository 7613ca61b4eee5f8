"""What becomes of duplicates: the parts for the slot `nms` of every post-process.

Each is called with candidates of a batch and gives the best of them, in decreasing order of score. Boxes
compete within their group (class, level) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..ops.box_voting import vote_boxes
from ..ops.nms import nms
from ..ops.soft_nms import Decay, soft_nms
from ..structures import Detections
from ..values import Share
from .targets import gather_slots


@dataclass(frozen=True)
class Kept:
    """What is left of N candidates an image, in K slots, in decreasing order of score.

    Args:
        index: `(B, K)` int64, which candidate; 0 in empty slots.
        boxes: `(B, K, 4)`, 0 in empty slots.
        scores: `(B, K)`, 0 in empty slots.
        keep: `(B, K)` bool, the slot is filled.
    """

    index: Tensor
    boxes: Tensor
    scores: Tensor
    keep: Tensor

    def detections(self, labels: Tensor) -> Detections:
        """Detections, given the candidates' labels `(B, N)`."""
        return Detections(self.boxes, self.scores, gather_slots(labels, self.index) * self.keep, self.keep)


@dataclass(frozen=True)
class GreedyNMS:
    """Of two boxes that overlap too much the lower score is dropped (R-CNN, arXiv:1311.2524, Sec. 2.2).

    Args:
        iou: boxes are dropped where they overlap a better one more than this.
    """

    iou: Share = 0.5

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Kept:
        """At most `max_output` of the valid boxes `(B, N, 4)` with scores and groups `(B, N)`."""
        index, keep = nms(boxes, scores, groups, valid, self.iou, max_output)
        return Kept(
            index, gather_slots(boxes, index) * keep[..., None], gather_slots(scores, index) * keep, keep
        )


@dataclass(frozen=True)
class SoftNMS:
    """Scores decay with the overlap with better boxes (Soft-NMS, arXiv:1704.04503, Sec. 3).

    Args:
        method: "linear", by `1 - IoU` where IoU is at least `iou`; "gaussian", by `exp(-IoU^2 / sigma)`.
        iou: N_t of the paper; only the linear decay has it.
        sigma: only the gaussian decay has it (Eq. 3; the paper takes 0.5).
        min_score: boxes whose score sinks below this are dropped.
    """

    method: Decay = "linear"
    iou: Share = 0.3
    sigma: float = 0.5
    min_score: float = 1e-3

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Kept:
        """At most `max_output` of the valid boxes `(B, N, 4)` with scores and groups `(B, N)`."""
        parameter = self.sigma if self.method == "gaussian" else self.iou
        index, score, keep = soft_nms(
            boxes, scores, groups, valid, self.method, parameter, self.min_score, max_output
        )
        return Kept(index, gather_slots(boxes, index) * keep[..., None], score, keep)


@dataclass(frozen=True)
class WeightedNMS:
    """Greedy suppression, then each box kept is the mean of those around it (arXiv:1505.01749, Sec. 5).

    The mean over all candidates of the group, suppressed ones too, that overlap the kept box more than
    `vote_iou` is weighted by their scores ("box voting"). Scores stay.

    Args:
        iou: boxes are dropped where they overlap a better one more than this; the paper has 0.3.
        vote_iou: boxes vote where they overlap the one kept more than this; the paper has 0.5.
    """

    iou: Share = 0.5
    vote_iou: Share = 0.5

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Kept:
        """At most `max_output` of the valid boxes `(B, N, 4)` with scores and groups `(B, N)`."""
        index, keep = nms(boxes, scores, groups, valid, self.iou, max_output)
        voted = vote_boxes(boxes, scores, groups, valid, index, self.vote_iou)
        return Kept(index, voted * keep[..., None], gather_slots(scores, index) * keep, keep)
