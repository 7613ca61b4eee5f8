"""From class scores and box codes of regions to detections (Fast R-CNN, arXiv:1504.08083, Sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...ops.boxes import clip
from ...ops.nms import nms
from ...structures import Detections
from ..protocols import Coder
from ..targets import gather_slots


@dataclass(frozen=True)
class RoIPostprocess:
    """The best (region, class) pairs, decoded, clipped, and freed of duplicates class by class.

    Args:
        score_threshold: pairs must score more than this.
        nms_iou: of two boxes of one class that overlap more than this, the lower score is dropped.
        max_detections: slots an image.
        candidates: at most this many pairs, the best ones, go into NMS.
        min_side: boxes must be wider and higher than this, px.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    candidates: int = 4096
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
        index, keep = nms(decoded, score, label, ok, self.nms_iou, self.max_detections)
        return Detections(
            gather_slots(decoded, index) * keep[..., None],
            gather_slots(score, index) * keep,
            gather_slots(label, index) * keep,
            keep,
        )
