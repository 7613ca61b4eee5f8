"""ATSS (Zhang et al., arXiv:1912.02424): an assigner, and a recipe made of RetinaNet's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fiddle import Config

import boxwright as bw
from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import Centreness, quality_target
from boxwright.models.layers import group_norm
from boxwright.models.losses import GIoULoss
from boxwright.models.priors import Anchors
from boxwright.ops.boxes import pairwise_iou
from boxwright.structures import Assignment, DensePredictions, Priors, Targets


@dataclass(frozen=True)
class ATSSAssigner:
    """Positive from the mean plus the deviation of the nearest candidates' IoU on (ATSS, Alg. 1).

    Args:
        topk: candidates of each ground truth on each level, the nearest by their centres.

    Beyond the paper: a level with fewer than `topk` priors offers all of them.
    """

    topk: int = 9

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images."""
        centre = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2  # (A, 2)
        upper_left, lower_right = targets.boxes[:, :, None].split(2, dim=-1)  # (B, G, 1, 2)
        distance = (centre - (upper_left + lower_right) / 2).norm(dim=-1)  # (B, G, A)
        taking_part = targets.valid[..., None]
        if priors.valid is not None:
            taking_part = taking_part & priors.valid[:, None]
            distance = torch.where(priors.valid[:, None], distance, torch.inf)

        nearest, start = [], 0
        for count in priors.num_per_level:  # lines 3 to 6 of the algorithm
            part = distance[..., start : start + count]
            nearest.append(part.topk(min(self.topk, count), dim=-1, largest=False).indices + start)
            start += count
        candidate = torch.cat(nearest, dim=-1)  # (B, G, K)

        iou = pairwise_iou(targets.boxes, priors.boxes)  # (B, G, A)
        overlap = iou.gather(-1, candidate)
        threshold = overlap.mean(-1, keepdim=True) + overlap.std(-1, keepdim=True)  # lines 7 to 10
        inside = torch.cat((centre - upper_left, lower_right - centre), dim=-1).amin(-1) > 0.01
        chosen = torch.zeros_like(iou, dtype=torch.bool).scatter(-1, candidate, overlap >= threshold)
        chosen = chosen & inside & taking_part  # lines 11 to 15

        best, gt_index = torch.where(chosen, iou, -1.0).max(1)  # one ground truth a prior: the largest IoU
        positive = best >= 0
        ignore = torch.zeros_like(positive) if priors.valid is None else ~priors.valid
        return Assignment(gt_index, positive, ignore & ~positive)


def atss_r50_fpn_1x() -> Config[bw.Experiment]:
    """ATSS, ResNet-50, 12 epochs on COCO: one anchor a place, adaptive assignment, centreness (Sec. 3, 4)."""
    recipe = bw.recipe("retinanet_r50_fpn_1x")
    recipe.model.neck.extra = "on_output"
    head = recipe.model.head
    head.priors = Config(Anchors, scales=(8.0,), ratios=(1.0,))
    head.coder = Config(DeltaCoder, stds=(0.1, 0.1, 0.2, 0.2))
    head.norm, head.quality_branch, head.scale_levels = group_norm, "box", True
    head.criterion.assigner = Config(ATSSAssigner)
    head.criterion.code_loss = None
    head.criterion.box_loss = Config(GIoULoss, weight=2.0)
    head.criterion.quality = Config(Centreness)
    head.criterion.box_weight = quality_target
    head.postprocess.nms_iou = 0.6
    return recipe
