"""From raw outputs of a dense head to detections: choose, decode, suppress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.boxes import clip
from ...structures import DensePredictions, Detections, Priors
from ...values import Count
from ..protocols import ClassLoss, Coder, Suppression
from ..suppression import GreedyNMS
from ..targets import gather_priors, gather_slots


@dataclass(frozen=True)
class DensePostprocess:
    """The best candidates of each level, decoded, clipped, and freed of duplicates.

    Args:
        score_threshold: lower scores are dropped; None keeps all.
        candidates: the best this many (prior, class) pairs of a level are decoded.
        candidates_of: or of the image, all levels together.
        nms: what becomes of duplicates within a group.
        nms_groups: boxes compete within their class, or within their level (RPN).
        max_detections: slots an image.
        min_side: boxes must be wider and higher than this, px.
        quality_power: scores are (class * quality) ** this; 0.5 is the geometric mean.
        rank_with_quality: the quality takes part already in threshold and ranking.
        quality_threshold: priors of lower quality are dropped first; None keeps all.
        clip_last: boxes compete as they are decoded and are clipped to the image when that is done
            (Detectron2's RetinaNet), not before; boxes beside the image are dropped first all the same.

    Raises:
        ConfigError: groups by level, but candidates of the whole image.
    """

    score_threshold: float | None = 0.05
    candidates: Count = 1000
    candidates_of: Literal["level", "image"] = "level"
    nms: Suppression = GreedyNMS(iou=0.5)  # noqa: RUF009  frozen
    nms_groups: Literal["class", "level"] = "class"
    max_detections: Count = 100
    min_side: float = 0.0
    quality_power: float = 1.0
    rank_with_quality: bool = False
    quality_threshold: float | None = None
    clip_last: bool = False

    def __post_init__(self) -> None:
        if self.candidates_of == "image" and self.nms_groups == "level":
            raise ConfigError('nms_groups="level" needs candidates of each level: candidates_of="level"')

    def __call__(
        self,
        predictions: DensePredictions,
        priors: Priors,
        sizes: Tensor,
        coder: Coder,
        class_loss: ClassLoss,
    ) -> Detections:
        """Detections `(B, max_detections)` on images of `sizes` `(B, 2)`."""
        chosen = []
        start = 0
        whole = (sum(priors.num_per_level),)
        for level, count in enumerate(priors.num_per_level if self.candidates_of == "level" else whole):
            place = slice(start, start + count)
            chosen.append(self._choose(predictions, priors.valid, place, level, class_loss))
            start += count
        prior, score, label, group, valid = (torch.cat(part, dim=1) for part in zip(*chosen, strict=True))
        codes = gather_slots(predictions.codes, prior)
        decoded = coder.decode(codes, *gather_priors(priors, prior))
        boxes = clip(decoded, sizes)
        valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > self.min_side).all(-1)
        kept = self.nms(decoded if self.clip_last else boxes, score, group, valid, self.max_detections)
        found = kept.detections(label)
        return replace(found, boxes=clip(found.boxes, sizes)) if self.clip_last else found

    def _choose(
        self,
        predictions: DensePredictions,
        taking_part: Tensor | None,
        place: slice,
        level: int,
        class_loss: ClassLoss,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Prior, score, label, group and validity `(B, k)` of the best candidates among those priors."""
        logits = predictions.class_logits[:, place]  # (B, a, columns)
        quality = predictions.quality_logits
        quality = None if quality is None else quality[:, place].float().sigmoid()
        taking_part = None if taking_part is None else taking_part[:, place]
        first = None
        if logits.shape[1] > self.candidates:
            # The best pairs are pairs of the priors whose best pair is among the best: fewer to sort.
            best = self._rated(class_loss.best(logits)[..., None], quality, taking_part)[..., 0]
            first = best.topk(self.candidates, dim=1).indices
            logits = gather_slots(logits, first)
            quality = None if quality is None else quality.gather(1, first)
            taking_part = None if taking_part is None else taking_part.gather(1, first)
        scores = self._rated(class_loss.scores(logits), quality, taking_part)
        num_classes = scores.shape[-1]
        pairs = scores.flatten(1)
        score, pair = pairs.topk(min(self.candidates, pairs.shape[1]), dim=1)
        valid = score >= 0
        if self.score_threshold is not None:
            valid = score > self.score_threshold
        prior, label = pair // num_classes, pair % num_classes
        if quality is not None and not self.rank_with_quality:
            score = (score.clamp(min=0) * quality.gather(1, prior)).pow(self.quality_power)
        prior = prior if first is None else first.gather(1, prior)
        group = label if self.nms_groups == "class" else torch.full_like(label, level)
        return prior + place.start, score, label, group, valid

    def _rated(self, scores: Tensor, quality: Tensor | None, taking_part: Tensor | None) -> Tensor:
        """What pairs `(B, a, C)` are ranked by; -1 for priors that are dropped."""
        if quality is not None and self.rank_with_quality:
            scores = (scores * quality[..., None]).pow(self.quality_power)
        if quality is not None and self.quality_threshold is not None:
            scores = torch.where((quality >= self.quality_threshold)[..., None], scores, -1.0)
        if taking_part is not None:
            scores = torch.where(taking_part[..., None], scores, -1.0)
        return scores
