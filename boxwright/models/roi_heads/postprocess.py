"""From class scores and box codes of regions to detections (Fast R-CNN, arXiv:1504.08083, Sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import clip
from ...structures import Detections
from ...values import Count
from ..protocols import ClassLoss, Coder, Suppression
from ..suppression import GreedyNMS
from ..targets import gather_slots

ScoreMean = Callable[[Sequence[Tensor], ClassLoss], Tensor]
"""Class logits of each stage `(B, R, columns)` and the loss they were trained with to scores `(B, R, C)`."""


@dataclass(frozen=True)
class MeanScores:
    """The mean of the stages' scores (Cascade R-CNN's authors, Detectron2)."""

    def __call__(self, logits: Sequence[Tensor], class_loss: ClassLoss) -> Tensor:
        """Scores `(B, R, C)` of logits `(B, R, columns)` of each stage."""
        return torch.stack([class_loss.scores(stage) for stage in logits]).mean(0)


@dataclass(frozen=True)
class MeanLogits:
    """The score of the stages' mean logits (MMDetection)."""

    def __call__(self, logits: Sequence[Tensor], class_loss: ClassLoss) -> Tensor:
        """Scores `(B, R, C)` of logits `(B, R, columns)` of each stage."""
        return class_loss.scores(torch.stack([stage.float() for stage in logits]).mean(0))


@dataclass(frozen=True)
class RoIPostprocess:
    """The best (region, class) pairs, decoded, clipped, and freed of duplicates class by class.

    Args:
        score_threshold: pairs must score more than this.
        nms: what becomes of duplicates within a class.
        max_detections: slots an image.
        candidates: at most this many pairs, the best ones, go into `nms`.
        min_side: boxes must be wider and higher than this, px.
    """

    score_threshold: float = 0.05
    nms: Suppression = GreedyNMS(iou=0.5)  # noqa: RUF009  frozen
    max_detections: Count = 100
    candidates: Count = 4096
    min_side: float = 0.0

    def __call__(
        self, scores: Tensor, codes: Tensor, boxes: Tensor, valid: Tensor, sizes: Tensor, coder: Coder
    ) -> Detections:
        """Detections of scores `(B, R, C)`, codes `(B, R, C or 1, 4)`, regions `(B, R, 4)` and `(B, R)`."""
        num_classes = scores.shape[-1]
        pairs = (scores * valid[..., None]).flatten(1)
        score, pair = pairs.topk(min(self.candidates, pairs.shape[1]), dim=1)
        region, label = pair // num_classes, pair % num_classes
        code = gather_slots(codes.flatten(1, 2), region if codes.shape[2] == 1 else pair)
        region_boxes = gather_slots(boxes, region)
        decoded = clip(coder.decode(code, region_boxes, score.new_ones(score.shape)), sizes)
        ok = (score > self.score_threshold) & ((decoded[..., 2:] - decoded[..., :2]) > self.min_side).all(-1)
        return self.nms(decoded, score, label, ok, self.max_detections).detections(label)
