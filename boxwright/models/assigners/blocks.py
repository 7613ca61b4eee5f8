"""Overlaps of many priors in blocks that lie in a core's cache, for eager execution on a CPU.

A matrix of the IoU of 200,000 anchors with 100 objects has 80 MB, and the dozen steps that lead to it wait
for memory. Here each block of anchors goes through all of them at once and leaves a few numbers an anchor and
an object behind. The values are those of the whole matrix, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.backends import eager_on_cpu
from ...structures import Priors, Targets
from .overlap import (
    in_ignored_regions,
    iou_with_priors,
    last_finder,
    slice_priors,
    take_slots,
)

BLOCK = 1 << 16
"""Pairs of a block: 256 kB a matrix."""

NEVER = 2.0
"""No IoU equals this."""


@dataclass(frozen=True)
class OverlapBlocks:
    """What is left of the overlaps `(B, G, A)`.

    Args:
        best: `(B, A)`, highest overlap of each prior.
        gt_index: `(B, A)` int64, the first ground truth that has it.
        in_ignored: `(B, A)` bool, priors in ignored regions.
        most: `(n, B, G)`, highest overlap of each ground truth in each of n blocks.
        size: priors of a block.
        priors: as given.
        targets: as given.
    """

    best: Tensor
    gt_index: Tensor
    in_ignored: Tensor
    most: Tensor
    size: int
    priors: Priors
    targets: Targets

    def last_finder(self, finds: Callable[[Tensor, Tensor], Tensor], ties: bool) -> Tensor:
        """Slot `(B, A)` of the last ground truth that finds a prior, -1 if none.

        Args:
            finds: overlaps `(B, g, a)` and the highest ones `(B, g, 1)` to who finds whom, `(B, g, a)` bool.
                It is asked about the blocks and ground truths alone where an overlap equals the highest.
            ties: a ground truth finds priors in every block that has its highest overlap, not in the first
                of them alone.
        """
        found = torch.full_like(self.gt_index, -1)
        highest = self.most.amax(0)
        here = (self.most == highest) & (highest > 0)
        if not ties:
            here &= here.cumsum(0) == 1
        for number, slots in _grouped(here.any(1)):
            block = slice(number * self.size, (number + 1) * self.size)
            iou = iou_with_priors(slice_priors(self.priors, block), take_slots(self.targets, slots))
            finder = last_finder(finds(iou, torch.where(here[number], highest, NEVER)[:, slots, None]))
            found[:, block] = torch.where(finder >= 0, slots[finder], -1)
        return found


def pays(priors: Priors, targets: Targets) -> bool:
    """Whether these are so many pairs, and so executed, that blocks are faster than one matrix."""
    pairs = targets.valid.numel() * priors.boxes.shape[-2]
    return eager_on_cpu(priors.boxes.device) and pairs > 2 * BLOCK


def overlap_blocks(priors: Priors, targets: Targets, ignore_iof: float) -> OverlapBlocks:
    """What `prior_overlaps` tells, and each block's highest overlaps; arguments as there."""
    count, slots = priors.boxes.shape[-2], targets.valid.numel()
    size = max(BLOCK // slots, 64)
    # Each coordinate in one piece: steps over every fourth number are not vectorised.
    priors = replace(priors, boxes=priors.boxes.movedim(-1, 0).contiguous().movedim(0, -1))
    all_valid = priors.valid is None and bool(targets.valid.all())
    best, index, most = [], [], []
    for start in range(0, count, size):
        iou = iou_with_priors(slice_priors(priors, slice(start, start + size)), targets, all_valid)
        best_here, index_here = iou.max(1)
        best.append(best_here)
        index.append(index_here)
        most.append(iou.amax(2))
    highest = torch.cat(best, 1)
    ignored = torch.zeros_like(highest, dtype=torch.bool)
    regions = targets.ignore.any(0).nonzero()[:, 0]
    if len(regions) > 0:
        ignored = in_ignored_regions(priors, take_slots(targets, regions), ignore_iof)
    return OverlapBlocks(highest, torch.cat(index, 1), ignored, torch.stack(most), size, priors, targets)


def _grouped(asked: Tensor) -> list[tuple[int, Tensor]]:
    """The rows of `(n, G)` bool that have true places, and the places."""
    rows, places = asked.nonzero().unbind(1)
    numbers, counts = rows.unique_consecutive(return_counts=True)
    return list(zip(numbers.tolist(), places.split(counts.tolist()), strict=True))
