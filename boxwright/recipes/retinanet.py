"""RetinaNet (Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002).

The paper adds the focal loss (`models/losses/classification.py`, Eq. 5) on a head with two towers of four
convolutions and nine anchors a place (Sec. 4).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import NumClasses
from ..models.assigners import MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.dense_heads import DenseCriterion, DenseHead, DensePostprocess
from ..models.detectors import OneStageDetector
from ..models.losses import FocalLoss, SmoothL1
from ..models.priors import Anchors, TrainableArea
from . import common
from .experiment import Experiment

SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
"""Three anchors an octave from 4 strides on (Sec. 4, "Anchors")."""
SMALL_SCALES = (2.0, 2.0 * 4 ** (1 / 3), 2.0 * 4 ** (2 / 3))
"""Three anchors in two octaves: at strides of 8 to 64 they are of 16 to 323 pixels."""


def head() -> Partial[DenseHead]:
    """Two towers, focal loss, L1 loss on the codes; a prior of 0.01 (Sec. 4.1)."""
    config = Partial(
        DenseHead,
        num_classes=common.COCO_CLASSES,
        priors=Config(Anchors, scales=SCALES),
        coder=Config(DeltaCoder),
        criterion=Config(
            DenseCriterion,
            assigner=Config(MaxIoUAssigner, positive_iou=0.5, negative_iou=0.4, match_low_quality=True),
            class_loss=Config(FocalLoss),
            code_loss=Config(SmoothL1, beta=0.0),
            area=Config(TrainableArea),
        ),
        postprocess=Config(DensePostprocess),
    )
    return common.with_tag(config, "num_classes", NumClasses)


def retinanet_r50_fpn_1x() -> Config[Experiment]:
    """RetinaNet, ResNet-50, 12 epochs on COCO (learning rate 0.01, Sec. 4.1)."""
    model = Config(
        OneStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(start_level=1, extra="on_input"),
        head=head(),
    )
    return common.schedule_1x(model, lr=0.01)


def retinanet_r50_fpn_2x() -> Config[Experiment]:
    """RetinaNet, ResNet-50, 24 epochs on COCO."""
    return common.schedule_2x(retinanet_r50_fpn_1x())


def retinanet_r101_fpn_1x() -> Config[Experiment]:
    """RetinaNet, ResNet-101, 12 epochs on COCO."""
    recipe = retinanet_r50_fpn_1x()
    recipe.model.backbone.depth = 101
    return recipe


def retinanet_x101_64x4d_fpn_1x() -> Config[Experiment]:
    """RetinaNet, ResNeXt-101 64x4d (arXiv:1611.05431), 12 epochs on COCO."""
    recipe = retinanet_r50_fpn_1x()
    common.resnext(recipe, groups=64)
    return recipe


def retinanet_mnv2_320() -> Config[Experiment]:
    """RetinaNet with MobileNetV2 at 320 pixels, for two CPU cores; anchors from 16 pixels on."""
    detector_head = head()
    detector_head.priors.scales = SMALL_SCALES
    return common.dense_320(detector_head, lr=0.01)
