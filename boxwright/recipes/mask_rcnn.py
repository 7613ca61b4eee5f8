"""Mask R-CNN (He et al., arXiv:1703.06870).

The paper adds a mask branch to Faster R-CNN (`models/roi_heads/mask_head.py`) and RoIAlign
(`ops/roi_align.py`).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import NumClasses
from ..models.roi_heads import MaskHead, RoIExtractor
from . import common
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_r50_fpn_1x, mobilenet_model


def mask_head(levels: int = 4) -> Partial[MaskHead]:
    """Four convolutions on 14 x 14 features, masks of 28 x 28 (Fig. 4, right)."""
    head = Partial(
        MaskHead, num_classes=common.COCO_CLASSES, extractor=Config(RoIExtractor, size=14, levels=levels)
    )
    return common.with_tag(head, "num_classes", NumClasses)


def mask_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 and FPN, 12 epochs on COCO (learning rate 0.02)."""
    recipe = faster_rcnn_r50_fpn_1x()
    recipe.model.roi.mask = mask_head()
    # MMDetection's settings, which the field's results have been trained with since.
    assigner = recipe.model.roi.stages[0].criterion.assigner
    assigner.match_low_quality, assigner.min_positive_iou = True, 0.5
    recipe.metrics = ("bbox", "segm")
    return recipe


def mask_rcnn_r50_fpn_2x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 and FPN, 24 epochs on COCO."""
    return common.schedule_2x(mask_rcnn_r50_fpn_1x())


def mask_rcnn_r101_fpn_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-101 and FPN, 12 epochs on COCO."""
    recipe = mask_rcnn_r50_fpn_1x()
    recipe.model.backbone.depth = 101
    return recipe


def mask_rcnn_x101_32x4d_fpn_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNeXt-101 32x4d and FPN, 12 epochs on COCO."""
    return common.resnext(mask_rcnn_r50_fpn_1x(), groups=32)


def mask_rcnn_x101_64x4d_fpn_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNeXt-101 64x4d and FPN, 12 epochs on COCO."""
    return common.resnext(mask_rcnn_r50_fpn_1x(), groups=64)


def mask_rcnn_mnv2_320() -> Config[Experiment]:
    """Mask R-CNN with MobileNetV2 at 320 pixels, for two CPU cores."""
    model = mobilenet_model()
    mask = mask_head(levels=3)
    mask.channels, mask.convs = 128, 2
    mask.extractor.finest_scale = 28.0
    model.roi.mask = mask
    return common.small_320(model, lr=0.02, metrics=("bbox", "segm"))
