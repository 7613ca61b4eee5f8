"""Box voting: suppressed boxes have a say in where the one that was kept lies (arXiv:1505.01749, Sec. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from boxwright.ops.boxes import pairwise_iou


def vote_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, index: Tensor, iou_threshold: float
) -> Tensor:
    """Move chosen boxes to the mean of those around them, weighted by score (arXiv:1505.01749, Sec. 5).

    Args:
        boxes: `(B, N, 4)` pixels, all candidates.
        scores: `(B, N)`; those below 0 weigh nothing.
        groups: `(B, N)` int64; only boxes of the same group vote.
        valid: `(B, N)` bool; other slots do not vote.
        index: `(B, K)` int64, the chosen boxes.
        iou_threshold: a box votes where IoU > threshold.

    Returns:
        `(B, K, 4)` float32; a box for which none votes, as one without area, stays where it is.
    """
    boxes = torch.where(valid[..., None], boxes.float(), 0.0)
    chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    voters = (pairwise_iou(chosen, boxes) > iou_threshold) & valid[:, None]
    voters &= groups.gather(1, index)[..., None] == groups[:, None]
    weight = voters * scores.float().clamp(min=0)[:, None]
    total = weight.sum(-1).clamp(min=1e-12)
    # Relative to the box itself, so that large coordinates lose no bits; one side at a time, to save memory.
    moved = [
        own + (weight * (side[:, None] - own[..., None])).sum(-1) / total
        for side, own in zip(boxes.unbind(-1), chosen.unbind(-1), strict=True)
    ]
    return torch.stack(moved, -1)
