"""Wasserstein distance for tiny objects (arXiv:2110.13389, 2206.13996): an assigner, a loss, a recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fiddle import Config
from torch import Tensor

import boxwright as bw
from boxwright.ops.boxes import pairwise_iof, to_cxcywh
from boxwright.structures import Assignment, DensePredictions, Priors, Targets


def wasserstein(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Distance `(...)`, px, of boxes `(..., 4)` taken as Gaussians (NWD, arXiv:2110.13389, Sec. 3.2).

    It is that of four coordinates: the centre's two, and half the width and height.
    """
    centre, size = (to_cxcywh(boxes1) - to_cxcywh(boxes2)).split(2, dim=-1)
    return torch.linalg.vector_norm(torch.cat((centre, size / 2), dim=-1), dim=-1)


@dataclass(frozen=True)
class RankingAssigner:
    """The nearest priors of each object are its positives, however small it is (NWD-RKA, arXiv:2206.13996).

    Args:
        topk: positives of each ground truth. Of several that choose a prior, the nearest has it.
        ignore_iof: a prior, not positive, with this share of its area in an ignored region is ignored.
    """

    topk: int = 3
    ignore_iof: float = 0.5

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images."""
        distance = wasserstein(targets.boxes[:, :, None], priors.boxes)  # (B, G, A)
        taking_part = targets.valid[..., None]
        if priors.valid is not None:
            taking_part = taking_part & priors.valid[:, None]
        distance = torch.where(taking_part, distance, torch.inf)

        nearest, prior = distance.topk(min(self.topk, distance.shape[-1]), dim=-1, largest=False)
        chosen = torch.full_like(distance, torch.inf).scatter(-1, prior, nearest)
        least, gt_index = chosen.min(1)
        positive = least < torch.inf

        share = pairwise_iof(priors.boxes, targets.boxes)  # (B, A, G)
        ignore = ((share >= self.ignore_iof) & targets.ignore[:, None]).any(-1)
        if priors.valid is not None:
            ignore = ignore | ~priors.valid
        return Assignment(gt_index, positive, ignore & ~positive)


@dataclass(frozen=True)
class NWDLoss:
    """`1 - exp(-distance / scale)`, which falls also where boxes do not touch (NWD, Sec. 3.3).

    Args:
        scale: C of the paper, px: about the size of the data set's objects.
    """

    weight: float = 1.0
    scale: float = 12.8

    def __call__(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Boxes and targets `(..., 4)` xyxy to losses `(...)`."""
        return (1 - (-wasserstein(boxes, targets) / self.scale).exp()) * self.weight


def retinanet_nwd_r50_fpn_1x() -> Config[bw.Experiment]:
    """RetinaNet for tiny objects, ResNet-50, 12 epochs: ranked assignment, Wasserstein loss."""
    recipe = bw.recipe("retinanet_r50_fpn_1x")
    criterion = recipe.model.head.criterion
    criterion.assigner = Config(RankingAssigner)
    criterion.code_loss = None
    criterion.box_loss = Config(NWDLoss)
    return recipe
