"""Small box and mask heads, and regions for them: what the tests of cascades share."""

from typing import Any

import torch
from torch import Tensor

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.coders import DeltaCoder
from boxwright.models.losses import CrossEntropy, SmoothL1
from boxwright.models.roi_heads import BoxHead, MaskHead, RoICriterion, RoIExtractor, RoIPostprocess, TwoFC
from boxwright.models.samplers import RandomSampler
from boxwright.ops.masks import pack
from boxwright.structures import Detections, FeatureSpec, Targets

SPECS = (FeatureSpec(8, 4), FeatureSpec(8, 8))
SIZES = torch.tensor([[48, 64], [40, 50]])
CLASSES = 3


def box_head(specs: Any = SPECS, iou: float = 0.5, sampler: Any = None, extractor: Any = None, **more: Any):
    return BoxHead(
        specs,
        num_classes=CLASSES,
        coder=DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=RoICriterion(
            MaxIoUAssigner(iou, iou), sampler or RandomSampler(12, 0.5), CrossEntropy(), SmoothL1()
        ),
        postprocess=RoIPostprocess(score_threshold=0.0, max_detections=6),
        extractor=extractor or RoIExtractor(size=4, levels=2, finest_scale=16.0),
        trunk=lambda channels, size: TwoFC(channels, size, 16),
        **more,
    )


def mask_head(specs: Any = SPECS, extractor: Any = None) -> MaskHead:
    extractor = extractor or RoIExtractor(size=6, levels=2, finest_scale=16.0)
    return MaskHead(specs, num_classes=CLASSES, extractor=extractor, channels=8, convs=2)


def inputs() -> tuple[list[Tensor], Detections, Targets]:
    g = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 8, 48 // s.stride, 64 // s.stride, generator=g) for s in SPECS]
    truth = torch.tensor([[[4.0, 6, 30, 28], [20, 10, 48, 40]], [[10, 8, 40, 30], [0, 0, 0, 0]]])
    there = torch.tensor([[True, True], [True, False]])
    labels = torch.tensor([[0, 2], [1, 0]])
    near = truth[:, [0, 0, 0, 1, 1]] + torch.randn(2, 5, 4, generator=g)
    anywhere = torch.tensor([[[2.0, 2, 12, 14], [30, 4, 60, 20]]]).expand(2, -1, -1)
    boxes = torch.cat((near, anywhere), 1).clamp(0, 48)
    valid = torch.tensor([[True] * 7, [True] * 3 + [False] * 2 + [True] * 2])
    bitmaps = [torch.zeros(int(t.sum()), 48, 64, dtype=torch.uint8) for t in there]
    for image, bitmap in enumerate(bitmaps):
        for slot, (x1, y1, x2, y2) in enumerate(truth[image, : len(bitmap)].int().tolist()):
            bitmap[slot, y1:y2, x1:x2] = 1
    targets = Targets(truth, labels, there, torch.zeros_like(there), pack(bitmaps, 2))
    return features, Detections(boxes, valid.float(), valid.long() * 0, valid), targets
