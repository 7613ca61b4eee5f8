"""Faster R-CNN (Ren et al., arXiv:1506.01497) with a feature pyramid (Lin et al., arXiv:1612.03144).

The paper adds the region proposal network (`rpn.py`), and shares its features with Fast R-CNN's head
(`models/roi_heads`).
"""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..config import NumClasses
from ..models.assigners import MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.detectors import TwoStageDetector
from ..models.losses import CrossEntropy, SmoothL1
from ..models.roi_heads import BoxHead, RoICriterion, RoIExtractor, RoIHeads, RoIPostprocess, TwoFC
from ..models.samplers import RandomSampler
from . import common
from .experiment import Experiment
from .rpn import proposals, rpn_head


def box_head(
    *, positive_iou: float = 0.5, samples: int = 512, trunk: Any = None, levels: int = 4
) -> Partial[BoxHead]:
    """Fast R-CNN's head (arXiv:1504.08083) with the two layers of FPN (arXiv:1612.03144, Sec. 4.2)."""
    head = Partial(
        BoxHead,
        num_classes=common.COCO_CLASSES,
        coder=Config(DeltaCoder, stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=Config(
            RoICriterion,
            assigner=Config(MaxIoUAssigner, positive_iou=positive_iou, negative_iou=positive_iou),
            sampler=Config(RandomSampler, number=samples, positive_share=0.25),
            class_loss=Config(CrossEntropy),
            code_loss=Config(SmoothL1, beta=0.0),
        ),
        postprocess=Config(RoIPostprocess),
        extractor=Config(RoIExtractor, levels=levels),
    )
    if trunk is not None:
        head.trunk = trunk
    return common.with_tag(head, "num_classes", NumClasses)


def roi_heads(*stages: Partial[Any], mask: Any = None) -> Partial[RoIHeads]:
    """Box stages and, if wanted, a mask head."""
    return Partial(RoIHeads, stages=list(stages), mask=mask)


def faster_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 and FPN, 12 epochs on COCO (learning rate 0.02)."""
    model = Config(
        TwoStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(),
        rpn=rpn_head(),
        roi=roi_heads(box_head()),
        train_proposals=proposals(2000, 1000),
    )
    return common.schedule_1x(model, lr=0.02)


def faster_rcnn_r50_fpn_2x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 and FPN, 24 epochs on COCO."""
    return common.schedule_2x(faster_rcnn_r50_fpn_1x())


def faster_rcnn_r101_fpn_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-101 and FPN, 12 epochs on COCO."""
    recipe = faster_rcnn_r50_fpn_1x()
    recipe.model.backbone.depth = 101
    return recipe


def faster_rcnn_x101_32x4d_fpn_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNeXt-101 32x4d and FPN, 12 epochs on COCO."""
    return common.resnext(faster_rcnn_r50_fpn_1x(), groups=32)


def faster_rcnn_x101_64x4d_fpn_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNeXt-101 64x4d and FPN, 12 epochs on COCO."""
    return common.resnext(faster_rcnn_r50_fpn_1x(), groups=64)


def mobilenet_model() -> Config[TwoStageDetector]:
    """The detector of `faster_rcnn_mnv2_320`."""
    box = box_head(samples=128, levels=3, trunk=Partial(TwoFC, width=512))
    box.extractor.finest_scale = 28.0  # the finest level has stride 8, and objects are small at 320 pixels
    return Config(
        TwoStageDetector,
        backbone=common.mobilenet_v2(first_stride=8),
        neck=common.fpn(channels=128, outs=4),
        rpn=rpn_head(scales=(2.0, 4.0), channels=128, after_nms=300),  # anchors from 16 pixels on
        roi=roi_heads(box),
        train_proposals=proposals(500, 300),
    )


def faster_rcnn_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with MobileNetV2 at 320 pixels, for two CPU cores."""
    return common.small_320(mobilenet_model(), lr=0.02)
