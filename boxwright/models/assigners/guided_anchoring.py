"""What the two branches of guided anchoring are trained for (arXiv:1901.03278, Sec. 3.4).

Both rules look at squares, one at each place: whether an object's centre lies there, and which object an
anchor of the best shape would be for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import area, centres, from_cxcywh, pairwise_iou, to_cxcywh
from ...ops.constants import constant
from ...structures import Assignment, DensePredictions, Priors, Targets
from ...values import AllPositive
from .max_iou import MaxIoUAssigner
from .overlap import prior_overlaps


@dataclass(frozen=True)
class RegionAssigner:
    """Places in the middle of an object are positive, those around it ignored (Sec. 3.4, location targets).

    An object belongs to the level whose squares are nearest to it in size. There its centre region is
    positive and the rest of its ignore region is ignored, and so is its ignore region on the two neighbouring
    levels. Where objects overlap, positive goes before ignored. All other places are negative. A region is
    the box shrunk about its centre and rounded to whole cells, the cells of both its ends included.

    Beyond the paper: places inside an ignored region of the data that are not positive are ignored, too.

    Args:
        centre_ratio: sides of the centre region relative to the box, sigma_1.
        ignore_ratio: sides of the ignore region, sigma_2.
    """

    centre_ratio: float = 0.2
    ignore_ratio: float = 0.5

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A squares that the images share; from level to level their side doubles."""
        levels = priors.num_per_level
        of_object = self._levels(targets.boxes, priors.boxes[0], len(levels))
        inner, surroundings = [], []
        start = 0
        for level, count in enumerate(levels):
            stride = priors.strides[start]
            squares = priors.boxes[start : start + count]
            cells = (centres(squares) / stride).floor()
            boxes = targets.boxes / stride
            apart = (of_object - level).abs()
            own, near = targets.valid & (apart == 0), targets.valid & (apart <= 1)
            inner.append(_holds(_region(boxes, self.centre_ratio), cells) & own[..., None])
            around = _holds(_region(boxes, self.ignore_ratio), cells) & near[..., None]
            crowded = _holds(_region(boxes, 1.0), cells) & targets.ignore[..., None]
            surroundings.append((around | crowded).any(1))
            start += count
        centre = torch.cat(inner, 2)  # (B, G, A)
        positive = centre.any(1)
        ignore = torch.cat(surroundings, 1)
        if priors.valid is not None:
            positive, ignore = positive & priors.valid, ignore | ~priors.valid
        return Assignment(centre.byte().argmax(1), positive, ignore & ~positive)

    def _levels(self, boxes: Tensor, finest: Tensor, count: int) -> Tensor:
        """The level `(B, G)` of each object: squares of the finest level are `finest (4,)`."""
        octaves = area(boxes).sqrt().log2() - (finest[2] - finest[0]).log2()
        return (octaves + 0.5).floor().clamp(0, count - 1)


@dataclass(frozen=True)
class ApproxMaxIoUAssigner:
    """Max IoU over anchors of any shape at a place, of which some stand for all (Sec. 3.4, Eq. 5).

    The IoU of a place with an object is the largest that an anchor around the place can have; it is taken
    over a few shapes, nine in the paper.

    Args:
        rule: what is positive and negative by that IoU.
        scales: sides of the anchors relative to the square.
        ratios: height over width; all anchors of one scale have the same area.
    """

    rule: MaxIoUAssigner
    scales: AllPositive = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: AllPositive = (0.5, 1.0, 2.0)

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A squares; those that are not `valid` are ignored, like those in ignored regions."""
        square, in_ignored = prior_overlaps(priors, targets, self.rule.ignore_iof)
        centre, side = to_cxcywh(priors.boxes).split(2, dim=-1)
        iou = torch.zeros_like(square)
        for scale in self.scales:
            for ratio in self.ratios:
                shape = constant((scale / ratio**0.5, scale * ratio**0.5), side.device)
                anchors = from_cxcywh(torch.cat((centre, side * shape), dim=-1))
                iou = torch.maximum(iou, pairwise_iou(targets.boxes, anchors))
        # A square overlaps with -1 what it must not be matched with.
        return self.rule.by_overlap(torch.where(square < 0, -1.0, iou), in_ignored, priors.valid)


def _region(boxes: Tensor, ratio: float) -> Tensor:
    """Boxes `(..., 4)` in cells, shrunk to `ratio` of their sides, as the first and last cell in x and y."""
    share = (1 - ratio) / 2
    first, last = boxes.split(2, dim=-1)
    shrunk = torch.cat(((1 - share) * first + share * last, share * first + (1 - share) * last), dim=-1)
    return shrunk.round()


def _holds(regions: Tensor, cells: Tensor) -> Tensor:
    """Which of the cells `(A, 2)`, x and y, lie in each of the regions `(B, G, 4)`: `(B, G, A)` bool."""
    x, y = cells.unbind(-1)
    x1, y1, x2, y2 = regions[..., None, :].unbind(-1)
    return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
