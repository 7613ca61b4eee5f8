"""Hybrid Task Cascade (Chen et al., arXiv:1901.07518): what it adds to a cascade with a mask head a stage.

Box and mask branch take turns, mask features flow from stage to stage, and a semantic segmentation of the
whole image is pooled for every region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import DataError
from ...ops.roi_align import roi_align
from ...structures import NO_CLASS, Detections, FeatureSpec, Targets
from ..layers import ConvNorm, NormLayer, conv_tower
from ..targets import Filled, gather_slots
from .box_head import RoIExtractor
from .heads import MaskMaker, RoIHeads, positives_first, refined
from .postprocess import MeanScores, ScoreMean
from .stage import RoIStage


class SemanticBranch(nn.Module):
    """Semantic segmentation from all levels, and features of it (arXiv:1901.07518, Sec. 3.2, Fig. 3).

    Every level is brought to the size of one of them, embedded, and summed; convolutions lead to the class
    logits and, besides, to the features that the regions are given.

    Args:
        in_specs: feature levels, all of one width.
        num_classes: semantic classes, things and stuff; COCO's maps count from 0 to 182.
        level: index of the level whose size the others are brought to.
        convs: convolutions after the sum.
        norm: norm of each convolution; None for none.
        weight: of the loss.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: int = 183,
        level: int = 1,
        convs: int = 4,
        norm: NormLayer | None = None,
        weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.spec, self.level, self.weight = in_specs[level], level, weight
        width = self.spec.channels
        self.laterals = nn.ModuleList(ConvNorm(spec.channels, width, 1, norm=norm) for spec in in_specs)
        self.convs = conv_tower([width] * (convs + 1), norm=norm)
        self.embedding = ConvNorm(width, width, 1, norm=norm)
        self.predictor = nn.Conv2d(width, num_classes, 1)
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `(B, num_classes, H, W)` and features `(B, channels, H, W)` of the size of `level`."""
        size = features[self.level].shape[-2:]
        parts = []
        for number, (lateral, feature) in enumerate(zip(self.laterals, features, strict=True)):
            if number != self.level:
                feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=True)
            parts.append(lateral(feature))
        hidden = self.convs(torch.stack(parts).sum(0))
        return self.predictor(hidden), self.embedding(hidden)

    def loss(self, logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss "loss/semantic": the mean cross entropy over all cells, 0 where the map has no class.

        A cell is trained for the class of the pixel at its centre.

        Raises:
            DataError: the ground truth has no semantic maps.
        """
        if targets.semantic is None:
            raise DataError(
                "the semantic branch of HTC is trained on maps of semantic classes, but this data set has "
                "none: open it with folder(..., semantic=FOLDER of the maps), or take a recipe without the "
                "branch, such as htc_without_semantic_r50_fpn_1x"
            )
        stride = self.spec.stride
        cells = targets.semantic[:, stride // 2 :: stride, stride // 2 :: stride].long()
        losses = F.cross_entropy(logits.float(), cells, ignore_index=NO_CLASS, reduction="none")
        return {"loss/semantic": self.weight * losses.mean()}


@dataclass(frozen=True)
class FusedExtractor(RoIExtractor):
    """A region's features from its pyramid level, plus those of the semantic branch: the last level given.

    They are the sum `P(x, r) + P(S(x), r)` of arXiv:1901.07518, Sec. 3.2.

    Args:
        semantic_size: side at which semantic features are pooled, before they are averaged to `size`.
    """

    semantic_size: int = 14

    def __call__(
        self, features: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, valid: Tensor
    ) -> Tensor:
        """`(B, R, channels, size, size)` for boxes `(B, R, 4)`; zero in empty slots."""
        pooled = super().__call__(features, strides, boxes, valid)
        only = torch.where(valid, 0, -1)
        semantic = roi_align(
            *([features[-1]], boxes, only, [strides[-1]]),
            *(self.semantic_size, self.sampling_ratio, self.aligned),
        )
        if self.semantic_size != self.size:
            semantic = F.adaptive_avg_pool2d(semantic.flatten(0, 1), self.size).unflatten(0, valid.shape)
        return pooled + semantic


class HTC(RoIHeads):
    """Interleaved box and mask stages with a flow of mask features (arXiv:1901.07518, Sec. 3.1).

    A stage's masks are trained inside the boxes that the same stage has just refined, assigned and sampled
    anew. The head of stage t sees the pooled features plus an embedding of what the head before it makes of
    the same region, and so on back to the first. The mask is the last head's.

    Args:
        in_specs: feature levels.
        stages: makers of box heads, called with the levels.
        mask: maker of a mask head for each stage, called with the levels.
        semantic: maker of the semantic branch, called with the levels; None to do without. With it, box and
            mask heads are given its features as one more level, the last; `FusedExtractor` pools from it.
        flow_norm: norm of the 1x1 convolutions that embed mask features; None for none.
        loss_weights: of each stage's losses, box and mask; 1 by default.
        average: how the class logits of the stages become one score.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        stages: Sequence[Callable[[Sequence[FeatureSpec]], RoIStage]],
        mask: Sequence[MaskMaker],
        semantic: Callable[[Sequence[FeatureSpec]], SemanticBranch] | None = None,
        flow_norm: NormLayer | None = None,
        loss_weights: Sequence[float] | None = None,
        average: ScoreMean = MeanScores(),  # noqa: B008  frozen
    ) -> None:
        branch = None if semantic is None else semantic(in_specs)
        levels = [*in_specs] if branch is None else [*in_specs, branch.spec]
        super().__init__(levels, stages=stages, mask=mask, loss_weights=loss_weights, average=average)
        self.semantic = branch
        heads = self.masks
        if len(heads) != len(self.stages):
            raise ValueError(f"HTC needs a mask head in each of {len(self.stages)} stages, not {len(heads)}")
        widths = {i: heads[i - 1].upsample.in_channels for i in heads if i}
        self.flow = nn.ModuleDict(
            {str(i): ConvNorm(width, in_specs[0].channels, 1, norm=flow_norm) for i, width in widths.items()}
        )

    def loss(
        self,
        features: Sequence[Tensor],
        proposals: Detections,
        targets: Targets,
        sizes: Tensor,
        canvas: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses of all stages and of the semantic branch; keys carry the stage's number."""
        losses: dict[str, Tensor] = {}
        if self.semantic is not None:
            logits, semantic = self.semantic(features)
            losses, features = self.semantic.loss(logits, targets), [*features, semantic]
        boxes, valid = proposals.boxes, proposals.valid
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, RoIStage)
            shared = stage.shared(features)
            sample_from = partial(
                stage.criterion.sample, targets=targets, predict=partial(stage, shared), coder=stage.coder
            )
            regions, sample = sample_from(boxes, valid)
            outputs = stage(shared, regions, sample.valid)
            found = stage.criterion(outputs, regions, sample, targets, stage.coder)
            boxes, valid = refined(stage, outputs, regions, sample, targets, sizes, boxes.shape[1])
            inside, gt_index, positive = positives_first(stage, *sample_from(boxes, valid))
            labels = gather_slots(targets.labels, gt_index)
            masks = self.mask_logits(features, inside, labels, positive, number)
            found |= self.masks[number].compare(masks, inside, gt_index, positive, targets, canvas)
            losses |= self.named(number, found)
        return losses

    def predict(self, features: Sequence[Tensor], proposals: Detections, sizes: Tensor) -> Detections:
        """Detections of the proposals, with the masks of the last stage."""
        if self.semantic is not None:
            features = [*features, self.semantic(features)[1]]
        found = self.detect(features, proposals, sizes)
        last = len(self.stages) - 1
        masks = self.mask_logits(features, found.boxes, found.labels, found.valid, last).sigmoid()
        return replace(found, masks=masks)

    def mask_logits(
        self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor, valid: Tensor, stage: int
    ) -> Tensor:
        """Mask logits `(B, R, S, S)` of a stage's head, which the features of all heads before it reach.

        Args:
            features: levels of `(B, channels, H, W)`, the semantic branch's behind them.
            boxes: `(B, R, 4)`.
            labels: `(B, R)`, whose masks.
            valid: `(B, R)`; zero where not.
            stage: number of the stage.
        """
        heads, filled = self.masks, Filled.of(valid)
        head = heads[stage]
        pooled = filled.drop(head.extractor(features, head.strides, boxes, valid))
        hidden = heads[0].convs(pooled)
        for number in range(1, stage + 1):
            hidden = heads[number].convs(pooled + self.flow[str(number)](hidden))
        return head.logits(hidden, labels, filled)
