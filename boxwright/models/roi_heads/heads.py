"""The second half of a two-stage detector: box stages one after the other, masks beside or behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ...ops.boxes import clip
from ...structures import Detections, FeatureSpec, Targets
from ..targets import Sample, gather_slots, prefixed
from .mask_head import MaskHead
from .postprocess import MeanScores, ScoreMean
from .predictions import RoIPredictions
from .stage import RoIStage

MaskMaker = Callable[[Sequence[FeatureSpec]], MaskHead]
"""Makes a mask head for the levels."""


class RoIHeads(nn.Module):
    """A list of box stages, of which Faster R-CNN has one, and mask heads if wanted.

    Args:
        in_specs: feature levels.
        stages: makers of box heads, called with the levels. Each later stage looks at the boxes that the
            one before it refined (Cascade R-CNN, arXiv:1712.00726, Sec. 4.1).
        mask: maker of a mask head that the last stage's regions train; or, for each stage, a maker or None
            (the strategies of Cascade Mask R-CNN, arXiv:1906.09756, Sec. 5). All of them predict inside the
            detected boxes, and the mean of their probabilities is the mask.
        loss_weights: of each stage's losses, its masks' included; 1 by default.
        average: how the class logits of several stages become one score.
        share_trunk: a mask head goes on from what its stage's trunk makes of a region (`BoxHead.maps`, run
            for its regions anew), and does not pool from the levels (C4, arXiv:1703.06870, Fig. 4, left).
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        stages: Sequence[Callable[[Sequence[FeatureSpec]], RoIStage]],
        mask: MaskMaker | Sequence[MaskMaker | None] | None = None,
        loss_weights: Sequence[float] | None = None,
        average: ScoreMean = MeanScores(),  # noqa: B008  frozen
        share_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stage(in_specs) for stage in stages)
        self.average, self.share_trunk = average, share_trunk
        self.loss_weights = tuple(loss_weights or [1.0] * len(self.stages))
        if len(self.loss_weights) != len(self.stages):
            raise ValueError(f"{len(self.stages)} stages but {len(self.loss_weights)} loss weights")
        if mask is None or callable(mask):
            self.mask = None if mask is None else mask(self.mask_specs(-1, in_specs))
        else:
            if len(mask) != len(self.stages):
                raise ValueError(f"{len(self.stages)} stages but {len(mask)} mask heads (None for no head)")
            makers = {str(i): make for i, make in enumerate(mask) if make is not None}
            heads = {i: make(self.mask_specs(int(i), in_specs)) for i, make in makers.items()}
            self.mask = nn.ModuleDict(heads)

    @property
    def masks(self) -> dict[int, MaskHead]:
        """The mask heads by the number of the stage whose regions train them."""
        if isinstance(self.mask, nn.ModuleDict):
            return {int(number): head for number, head in self.mask.items()}  # pyright: ignore
        return {} if self.mask is None else {len(self.stages) - 1: self.mask}

    def mask_specs(self, number: int, in_specs: Sequence[FeatureSpec]) -> Sequence[FeatureSpec]:
        """What a stage's mask head is made for: the levels, or the maps of the stage's trunk."""
        return self.stages[number].map_specs if self.share_trunk else in_specs  # pyright: ignore

    def pooled(self, number: int, features: Sequence[Tensor], boxes: Tensor, valid: Tensor) -> Tensor | None:
        """Maps of regions by a stage's trunk, for its mask head; None where that pools for itself."""
        return self.stages[number].maps(features, boxes, valid) if self.share_trunk else None  # pyright: ignore

    def loss(
        self,
        features: Sequence[Tensor],
        proposals: Detections,
        targets: Targets,
        sizes: Tensor,
        canvas: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses of all stages; keys carry the stage's number where there are several."""
        losses: dict[str, Tensor] = {}
        boxes, valid = proposals.boxes, proposals.valid
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, RoIStage)
            shared = stage.shared(features)
            regions, sample = stage.criterion.sample(
                boxes, valid, targets, partial(stage, shared), stage.coder
            )
            outputs = stage(shared, regions, sample.valid)
            found = stage.criterion(outputs, regions, sample, targets, stage.coder)
            if number in self.masks:
                inside, gt_index, positive = positives_first(stage, regions, sample)
                pooled = self.pooled(number, features, inside, positive)
                found |= self.masks[number].loss(
                    features, inside, gt_index, positive, targets, canvas, pooled
                )
            losses |= self.named(number, found)
            if number + 1 < len(self.stages):
                boxes, valid = refined(stage, outputs, regions, sample, targets, sizes, boxes.shape[1])
        return losses

    def named(self, number: int, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """A stage's losses, weighted, with its number in their names if there are several stages."""
        weight = self.loss_weights[number]
        found = {k: v * weight if k.startswith("loss/") else v for k, v in found.items()}
        return found if len(self.stages) == 1 else prefixed(f"stage{number}", found)

    def predict(self, features: Sequence[Tensor], proposals: Detections, sizes: Tensor) -> Detections:
        """Detections of the proposals, with masks where there is a head for them."""
        detections = self.detect(features, proposals, sizes)
        if not self.masks:
            return detections
        masks = []
        for number, head in self.masks.items():
            pooled = self.pooled(number, features, detections.boxes, detections.valid)
            masks.append(head.predict(features, detections, pooled))
        return replace(detections, masks=torch.stack(masks).mean(0))

    def detect(self, features: Sequence[Tensor], proposals: Detections, sizes: Tensor) -> Detections:
        """Detected boxes: the last stage's, scored by all stages, each at the boxes it was given."""
        boxes, valid, logits = proposals.boxes, proposals.valid, []
        *earlier, last = self.stages
        for stage in earlier:
            assert isinstance(stage, RoIStage)
            outputs = stage(stage.shared(features), boxes, valid)
            logits.append(outputs.class_logits)
            boxes = refine(stage, outputs, boxes, sizes, best_labels(stage, outputs))
        assert isinstance(last, RoIStage)
        outputs = last(last.shared(features), boxes, valid)
        score = self.average([*logits, outputs.class_logits], last.criterion.class_loss)
        return last.postprocess(score, outputs.codes, boxes, valid, sizes, last.coder)


def best_labels(stage: RoIStage, outputs: RoIPredictions) -> Tensor:
    """`(B, R)` int64, the class of the highest score of each region."""
    return stage.criterion.class_loss.scores(outputs.class_logits).argmax(-1)


def refine(stage: RoIStage, outputs: RoIPredictions, boxes: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
    """Boxes `(B, R, 4)` as a stage regresses them for labels `(B, R)`, without gradient."""
    strides = boxes.new_ones(boxes.shape[:2])
    return clip(stage.coder.decode(outputs.codes_of(labels), boxes, strides), sizes).detach()


def refined(
    stage: RoIStage,
    outputs: RoIPredictions,
    regions: Tensor,
    sample: Sample,
    targets: Targets,
    sizes: Tensor,
    num_proposals: int,
) -> tuple[Tensor, Tensor]:
    """What a stage's sampled regions leave to what comes after it in training: boxes and which are valid.

    Where each class has a box code of its own, a positive is regressed for the class of its object, the
    others for their best class. Ground truths among the regions (those that `RoICriterion.sample` added,
    behind the `num_proposals` given to it) are left out: the next stage adds them again as they are.
    """
    true = gather_slots(targets.labels, sample.gt_index)
    labels = torch.where(sample.positive, true, best_labels(stage, outputs))
    slot = torch.arange(regions.shape[1], device=regions.device) if sample.index is None else sample.index
    return refine(stage, outputs, regions, sizes, labels), sample.valid & (slot < num_proposals)


def positives_first(stage: RoIStage, regions: Tensor, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, ground truth and positivity of the regions that a mask head trains on.

    Samplers put positives first, so the slots behind the most there can be are left out.
    """
    most = getattr(stage.criterion.sampler, "max_positives", lambda count: count)
    first = slice(None, most(regions.shape[1]))
    return regions[:, first], sample.gt_index[:, first], sample.positive[:, first]
