"""The second half of a two-stage detector: box stages one after the other, then masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ...ops.boxes import clip
from ...structures import Detections, FeatureSpec, Targets
from ..targets import prefixed
from .box_head import BoxHead, RoIPredictions
from .mask_head import MaskHead


class RoIHeads(nn.Module):
    """A list of box stages, of which Faster R-CNN has one, and a mask head if wanted.

    Args:
        in_specs: feature levels.
        stages: makers of box heads, called with the levels. Each later stage looks at the boxes that the
            one before it refined (Cascade R-CNN, arXiv:1712.00726, Sec. 4.1).
        mask: maker of a mask head, called with the levels.
        loss_weights: of each stage's losses; 1 by default.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        stages: Sequence[Callable[[Sequence[FeatureSpec]], BoxHead]],
        mask: Callable[[Sequence[FeatureSpec]], MaskHead] | None = None,
        loss_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stage(in_specs) for stage in stages)
        self.mask = None if mask is None else mask(in_specs)
        self.loss_weights = tuple(loss_weights or [1.0] * len(self.stages))
        if len(self.loss_weights) != len(self.stages):
            raise ValueError(f"{len(self.stages)} stages but {len(self.loss_weights)} loss weights")

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
        regions, sample = boxes, None
        for number, (stage, weight) in enumerate(zip(self.stages, self.loss_weights, strict=True)):
            assert isinstance(stage, BoxHead)
            regions, sample = stage.criterion.sample(boxes, valid, targets, partial(stage, features))
            outputs = stage(features, regions, sample.valid)
            found = stage.criterion(outputs, regions, sample, targets, stage.coder)
            found = {k: v * weight if k.startswith("loss/") else v for k, v in found.items()}
            losses |= found if len(self.stages) == 1 else prefixed(f"stage{number}", found)
            if number + 1 < len(self.stages):
                added = sample.index is not None and sample.index >= boxes.shape[1]
                boxes, valid = refine(stage, outputs, regions, sizes), sample.valid & ~torch.as_tensor(added)
        if self.mask is not None:
            assert sample is not None
            # Samplers put positives first, so the slots behind the most there can be are left out.
            most = getattr(self.stages[-1].criterion.sampler, "max_positives", lambda count: count)  # pyright: ignore
            first = slice(None, most(regions.shape[1]))
            losses |= self.mask.loss(
                features,
                regions[:, first],
                sample.gt_index[:, first],
                sample.positive[:, first],
                targets,
                canvas,
            )
        return losses

    def predict(self, features: Sequence[Tensor], proposals: Detections, sizes: Tensor) -> Detections:
        """Detections of the proposals: scores are the mean over the stages, boxes the last stage's."""
        boxes, valid, scores = proposals.boxes, proposals.valid, []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, BoxHead)
            outputs = stage(features, boxes, valid)
            scores.append(stage.criterion.class_loss.scores(outputs.class_logits))
            if number + 1 < len(self.stages):
                boxes = refine(stage, outputs, boxes, sizes)
        last = self.stages[-1]
        assert isinstance(last, BoxHead)
        score = torch.stack(scores).mean(0)
        detections = last.postprocess(score, outputs.codes, boxes, valid, sizes, last.coder)  # pyright: ignore
        if self.mask is None:
            return detections
        return replace(detections, masks=self.mask.predict(features, detections))


def refine(stage: BoxHead, outputs: RoIPredictions, boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes `(B, R, 4)` as a stage regresses them for its best class, without gradient."""
    labels = stage.criterion.class_loss.scores(outputs.class_logits).argmax(-1)
    strides = boxes.new_ones(boxes.shape[:2])
    return clip(stage.coder.decode(outputs.codes_of(labels), boxes, strides), sizes).detach()
