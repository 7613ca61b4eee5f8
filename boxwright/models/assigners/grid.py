"""Assignment of anchors in the cell that holds an object's centre (YOLOv3, arXiv:1804.02767, Sec. 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import centres
from ...structures import Assignment, DensePredictions, Priors, Targets
from .overlap import last_finder, prior_overlaps


@dataclass(frozen=True)
class GridAssigner:
    """Of the priors in the cells that hold its centre, one a level, the best overlapping is a ground truth's.

    Every other prior that overlaps a ground truth more than `ignore_iou` is ignored, the rest are negative.
    Priors stand at the centres of their cells, and a cell is one stride wide. Of two ground truths that find
    the same prior the later takes it; priors that a ground truth overlaps equally are all its positives.

    The paper's rule is `positive_iou=None, shared_cells=False`; MMDetection has 0.5 and True.

    Args:
        ignore_iou: the paper's threshold of 0.5.
        positive_iou: further priors of the cells are positive where they overlap more than this; None for
            none ("our system only assigns one bounding box prior for each ground truth object").
        shared_cells: a prior in the cell of one ground truth may be found by all, too; the target of its
            centre then lies at the border of the cell.
        ignore_iof: a prior, not positive, with this share of its area in an ignored region is ignored.
    """

    ignore_iou: float = 0.5
    positive_iou: float | None = None
    shared_cells: bool = False
    ignore_iof: float = 0.5

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images; priors that are not `valid` are ignored."""
        iou, in_ignored = prior_overlaps(priors, targets, self.ignore_iof)
        near = _in_cell(priors, targets)
        if self.shared_cells:
            near = near.any(1, keepdim=True)
        ignore = in_ignored | (iou.amax(1) > self.ignore_iou)
        iou = torch.where(near, iou, -1.0)
        best, gt_index = iou.max(1)
        most = iou.amax(2, keepdim=True)
        finds = (iou == most) & (most > 0)
        positive = finds.any(1)
        gt_index = torch.where(positive, last_finder(finds), gt_index)
        if self.positive_iou is not None:
            positive = positive | (best > self.positive_iou)
        if priors.valid is not None:
            ignore = ignore | ~priors.valid
        return Assignment(gt_index, positive, ignore & ~positive)


def _in_cell(priors: Priors, targets: Targets) -> Tensor:
    """Whether the cell of a prior `(B, G, A)` holds the centre of a ground truth."""
    centre = centres(targets.boxes)[..., None, :]  # (B, G, 1, 2)
    strides = priors.strides[:, None]
    first = (centres(priors.boxes) / strides).floor() * strides  # (A, 2)
    last = first + strides
    x, y = centre.unbind(-1)
    in_column = (x >= first[:, 0]) & (x < last[:, 0])
    return in_column & (y >= first[:, 1]) & (y < last[:, 1]) & targets.valid[..., None]
