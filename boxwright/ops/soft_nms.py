"""Soft non-maximum suppression of a padded batch (arXiv:1704.04503, Fig. 2), groups kept apart.

Greedy suppression drops a box that overlaps a better one too much; here its score decays instead. A round
takes the best box that is left and lowers the scores of those that overlap it, so there are as many rounds as
boxes are kept, whatever the scores: shapes and number of steps are fixed and no device waits for the host.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from boxwright.ops.boxes import EPS, area, as_float, pairwise_iou

Decay = Literal["linear", "gaussian"]
TAKEN = -1.0
"""Score of a box that is not, or no longer, to be had."""


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    decay: Decay,
    parameter: float,
    min_score: float,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take boxes in decreasing order of score, each lowering the scores of those that overlap it.

    Args:
        boxes: `(B, N, 4)` pixels.
        scores: `(B, N)`, none below 0. Of equal scores the lower index comes first.
        groups: `(B, N)` int64; a box lowers only the scores of its own group.
        valid: `(B, N)` bool; other slots neither lower scores nor are taken.
        decay: "linear", factor `1 - IoU` where IoU >= `parameter` (Sec. 3, the first s_i); "gaussian", factor
            `exp(-IoU^2 / parameter)` (Eq. 3).
        parameter: N_t or sigma of the paper.
        min_score: boxes whose score has sunk below this are not taken.
        max_output: how many boxes of an image are taken at most.

    Returns:
        index `(B, K)` int64 into N, decayed scores `(B, K)` float32 and keep `(B, K)` bool with
        K = min(max_output, N). Taken boxes come first, in decreasing order of decayed score; empty slots have
        index 0, score 0 and keep False.

    Raises:
        ValueError: there is no such decay, or sigma is not above 0.
    """
    if decay not in ("linear", "gaussian"):
        raise ValueError(f'decay is {decay!r}; soft-NMS has "linear" and "gaussian"')
    if decay == "gaussian" and parameter <= 0:
        raise ValueError(f"the gaussian decay divides by sigma, which is {parameter}; it has to be above 0")
    boxes, scores = as_float(boxes.detach()), scores.detach().float()
    return _soft_nms_op(boxes, scores, groups, valid, decay, float(parameter), float(min_score), max_output)


def soft_nms_reference(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    decay: Decay,
    parameter: float,
    min_score: float,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `soft_nms`, one pair of boxes after the other."""
    index, score, keep = _empty_output(boxes, max_output)
    for b in range(boxes.shape[0]):
        overlaps = pairwise_iou(boxes[b], boxes[b]).tolist()
        left = {i: float(s) for i, s in enumerate(scores[b].float().tolist()) if valid[b, i]}
        for k in range(index.shape[1]):
            best = max(left, key=lambda i: (left[i], -i), default=None)
            if best is None or left[best] < min_score:
                break
            index[b, k], score[b, k], keep[b, k] = best, left.pop(best), True
            for i in left:
                iou = overlaps[best][i]
                if groups[b, i] != groups[b, best]:
                    continue
                if decay == "gaussian":
                    left[i] *= math.exp(-(iou**2) / parameter)
                elif iou >= parameter:
                    left[i] *= 1 - iou
    return index, score, keep


@torch.library.custom_op("boxwright::soft_nms", mutates_args=())
def _soft_nms_op(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    decay: str,
    parameter: float,
    min_score: float,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    index, score, keep = _empty_output(boxes, max_output)
    if boxes.device.type != "cpu":
        _rounds(boxes, scores, groups, valid, decay, parameter, min_score, (index, score, keep))
        return index, score, keep
    # A CPU looks at no more slots, and goes through no more rounds, than the fullest image needs.
    most = int(valid.sum(1).max()) if valid.numel() else 0
    first = valid.byte().sort(dim=1, descending=True, stable=True)[1][:, :most]
    taken = slice(None), slice(min(most, index.shape[1]))
    output = index[taken], score[taken], keep[taken]
    corners = boxes.gather(1, first[..., None].expand(-1, -1, 4))
    others = [values.gather(1, first) for values in (scores, groups, valid)]
    _rounds(corners, others[0], others[1], others[2], decay, parameter, min_score, output)
    output[0].copy_(first.gather(1, output[0]) * output[2])
    return index, score, keep


@_soft_nms_op.register_fake
def _soft_nms_fake(boxes: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_output(boxes, max_output=others[-1])


def _empty_output(boxes: Tensor, max_output: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (boxes.shape[0], torch.sym_min(max_output, boxes.shape[1]))
    return (
        boxes.new_zeros(shape, dtype=torch.int64),
        boxes.new_zeros(shape, dtype=torch.float32),
        boxes.new_zeros(shape, dtype=torch.bool),
    )


def _rounds(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    decay: str,
    parameter: float,
    min_score: float,
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill index, score and keep `(B, K)`: K times, in all images, take the best box and decay the others."""
    index, score, keep = output
    left = torch.where(valid, scores, TAKEN)
    x1, y1, x2, y2 = (side.contiguous() for side in boxes.unbind(-1))
    areas = area(boxes)
    for k in range(index.shape[1]):
        best, place = left.max(1, keepdim=True)  # the first of several largest
        index[:, k : k + 1], score[:, k : k + 1] = place, best
        left.scatter_(1, place, TAKEN)
        width = torch.minimum(x2, x2.gather(1, place)) - torch.maximum(x1, x1.gather(1, place))
        height = torch.minimum(y2, y2.gather(1, place)) - torch.maximum(y1, y1.gather(1, place))
        shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
        iou = shared / (areas + areas.gather(1, place) - shared).clamp_(min=EPS)
        if decay == "gaussian":
            factor, decays = torch.exp(-iou.square() / parameter), left > 0
        else:
            factor, decays = 1 - iou, (left > 0) & (iou >= parameter)
        decays &= groups == groups.gather(1, place)
        left = torch.where(decays, left * factor, left)
    keep.copy_(score >= max(min_score, 0.0))
    score.mul_(keep)
    index.mul_(keep)
