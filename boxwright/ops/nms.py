"""Greedy non-maximum suppression of a padded batch, groups (classes, levels) kept apart.

Groups are often kept apart by shifting their boxes far from each other in float32, which rounds the
coordinates and so changes IoUs. Here pairs of one group are compared (CPU, and CUDA with Triton), or boxes
are shifted in float64 by amounts that the coordinates survive (elsewhere).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torchvision  # registers torch.ops.torchvision.nms  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from boxwright.ops.backends import use_triton
from boxwright.ops.boxes import pairwise_iou

# torchvision's CUDA kernel holds one bit for each pair of boxes: this many boxes need 128 MiB.
MAX_JOINT_BOXES = 32768

BLOCK = 256
"""Boxes that a CPU looks at together: a matrix of their pairs lies in a core's second-level cache."""


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Keep boxes in decreasing order of score, each suppressing later ones that overlap it too much.

    Args:
        boxes: `(B, N, 4)` pixels.
        scores: `(B, N)`. Equal scores are taken in the order of their index.
        groups: `(B, N)` int64; a box suppresses only boxes of its own group.
        valid: `(B, N)` bool; other slots neither suppress nor are kept.
        iou_threshold: a box is suppressed where IoU > threshold.
        max_output: how many boxes of an image are kept at most.

    Returns:
        index `(B, K)` int64 into N and keep `(B, K)` bool, K = min(max_output, N). Kept boxes come first, in
        decreasing order of score; empty slots have index 0 and keep False.
    """
    return _nms_op(
        boxes.detach().float(), scores.detach().float(), groups, valid, float(iou_threshold), max_output
    )


def nms_reference(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """The definition of `nms`, one box after the other."""
    index, keep = _empty_output(boxes, max_output)
    for b in range(boxes.shape[0]):
        # Compared in float64, where the threshold is what was written and not its nearest float32.
        suppresses = pairwise_iou(boxes[b], boxes[b]).double() > iou_threshold
        suppresses &= groups[b][:, None] == groups[b][None, :]
        kept: list[int] = []
        for i in scores[b].float().argsort(descending=True, stable=True).tolist():
            if valid[b, i] and len(kept) < index.shape[1] and not any(suppresses[j, i] for j in kept):
                kept.append(i)
        index[b, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        keep[b, : len(kept)] = True
    return index, keep


@torch.library.custom_op("boxwright::nms", mutates_args=())
def _nms_op(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    run = _nms_by_blocks if boxes.device.type == "cpu" else _nms_by_offsets
    run = _nms_by_bits if use_triton(boxes.device) else run
    return run(boxes, scores, groups, valid, iou_threshold, max_output)


@_nms_op.register_fake
def _nms_fake(boxes: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _empty_output(boxes, max_output=others[-1])


def _empty_output(boxes: Tensor, max_output: int) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], torch.sym_min(max_output, boxes.shape[1]))
    return boxes.new_zeros(shape, dtype=torch.int64), boxes.new_zeros(shape, dtype=torch.bool)


def _nms_by_blocks(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Image by image and block by block in decreasing order of score, until enough are kept.

    What a box does to later ones is known once it is kept, so what comes after the last one wanted need not
    be looked at: with 100 of some thousand wanted, a few hundred pairs of a few hundred are all the work.
    """
    index, keep = _empty_output(boxes, max_output)
    for b in range(boxes.shape[0]):
        order = _descending(scores[b], valid[b])
        kept = _first_kept(boxes[b], groups[b], order, _below(iou_threshold), index.shape[1])
        index[b, : len(kept)] = kept
        keep[b, : len(kept)] = True
    return index, keep


def _descending(scores: Tensor, valid: Tensor) -> Tensor:
    """Indices of the valid of N scores, the highest first, equal ones by their index."""
    candidates = valid.nonzero()[:, 0]
    scores = scores[candidates]
    if bool((scores[1:] <= scores[:-1]).all()):  # as a post-process of one level hands them over
        return candidates
    return candidates[scores.argsort(descending=True, stable=True)]


def _first_kept(boxes: Tensor, groups: Tensor, order: Tensor, threshold: float, most: int) -> Tensor:
    """The first boxes `(k,)`, at most `most`, of those in `order` that greedy suppression keeps."""
    kept: list[Tensor] = []
    earlier: list[_Corners] = []
    left = most
    for block in order.split(BLOCK) if most > 0 else ():
        here = _Corners.of(boxes[block], groups[block])
        alive = torch.ones(len(block), dtype=torch.bool)
        for better in earlier:
            alive &= ~_suppresses(better, here, threshold).any(0)
        alive = _resolve(_suppresses(here, here, threshold), alive)
        kept.append(block[alive])
        left -= len(kept[-1])
        if left <= 0:
            break
        earlier.append(_Corners(*(value[alive] for value in here)))
    return torch.cat(kept)[:most] if kept else order[:0]


class _Corners(NamedTuple):
    """Boxes as five rows `(n,)` each, and their groups."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor
    group: Tensor

    @classmethod
    def of(cls, boxes: Tensor, groups: Tensor) -> _Corners:
        x1, y1, x2, y2 = boxes.t().contiguous().unbind()
        return cls(x1, y1, x2, y2, (x2 - x1) * (y2 - y1), groups)


def _suppresses(first: _Corners, second: _Corners, threshold: float) -> Tensor:
    """Which of the first boxes overlap which of the second of their group too much: `(n, m)` bool.

    The steps are those of torchvision's kernel, so that the last bit of an IoU is the same.
    """
    a, b = _Corners(*(value[:, None] for value in first)), second
    width = torch.minimum(a.x2, b.x2).sub_(torch.maximum(a.x1, b.x1)).clamp_(min=0)
    height = torch.minimum(a.y2, b.y2).sub_(torch.maximum(a.y1, b.y1)).clamp_(min=0)
    shared = width.mul_(height)
    overlap = shared.div_(torch.add(a.area, b.area, out=height).sub_(shared))
    return (overlap > threshold).logical_and_(a.group == b.group)


def _resolve(suppresses: Tensor, alive: Tensor) -> Tensor:
    """Which of n boxes `(n,)` are kept, given which are alive and which suppress which later ones `(n, n)`.

    The first n boxes are right once the first n - 1 are, so repeating the step ends at the greedy result; it
    takes as many rounds as the longest chain of boxes that suppress each other in turn.
    """
    matrix = suppresses.float().triu_(1)
    keep = alive
    while True:
        step = (keep.float() @ matrix == 0).logical_and_(alive)
        if torch.equal(step, keep):
            return keep
        keep = step


def _below(threshold: float) -> float:
    """The largest float32 that is not above a float64: to be above either is the same for a float32."""
    nearest = torch.tensor(threshold, dtype=torch.float32)
    if float(nearest) > threshold:
        nearest = torch.nextafter(nearest, nearest.new_tensor(-torch.inf))
    return float(nearest)


def _nms_by_bits(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """All images at once by Triton kernels; nothing waits for the host."""
    from boxwright.ops import _nms_triton

    order = torch.where(valid, scores, -torch.inf).argsort(dim=1, descending=True, stable=True)
    kept = _nms_triton.suppress(
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        groups.gather(1, order),
        valid.gather(1, order),
        _below(iou_threshold),
    )
    index, keep = _empty_output(boxes, max_output)
    slots = index.shape[1]
    number = kept.cumsum(1) - 1
    number = torch.where(kept & (number < slots), number, slots)  # the last column takes what is left over
    index = F.pad(index, (0, 1)).scatter(1, number, order)[:, :slots]
    keep = F.pad(keep, (0, 1)).scatter(1, number, torch.ones_like(kept))[:, :slots]
    return torch.where(keep, index, 0).contiguous(), keep.contiguous()


def _nms_by_offsets(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """One call for as many images as fit, their groups set side by side in float64.

    A coordinate of a magnitude over 2^-8 pixels keeps all its bits up to some 4 million pixels of offset.
    """
    index, keep = _empty_output(boxes, max_output)
    batch, slots = scores.shape
    step = max(1, MAX_JOINT_BOXES // max(slots, 1))
    for first in range(0, batch, step):
        chunk = slice(first, min(first + step, batch))
        image, slot = valid[chunk].nonzero().unbind(-1)
        if len(image) == 0:
            continue
        box, score = boxes[chunk][image, slot].double(), scores[chunk][image, slot]
        # Images and groups are numbered without gaps: group ids may be large or negative.
        key = torch.stack((image, groups[chunk][image, slot]), -1)
        place = torch.unique(key, dim=0, return_inverse=True)[1]
        span = torch.exp2(torch.ceil(torch.log2(box.max() - box.min() + 1)))
        shift = torch.zeros_like(box)
        shift[:, 0::2] = (place * span)[:, None]
        kept = torch.ops.torchvision.nms(box + shift, score.double(), iou_threshold)
        # Kept ones come in decreasing score; sorted by image they stay so, and get their number in it.
        kept = kept[image[kept].sort(stable=True)[1]]
        counts = torch.bincount(image[kept], minlength=chunk.stop - chunk.start)
        number = torch.arange(len(kept), device=box.device) - (counts.cumsum(0) - counts)[image[kept]]
        kept, number = kept[number < index.shape[1]], number[number < index.shape[1]]
        index[image[kept] + first, number] = slot[kept]
        keep[image[kept] + first, number] = True
    return index, keep
