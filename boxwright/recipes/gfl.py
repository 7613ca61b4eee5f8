"""GFL (Li et al., Generalized Focal Loss, arXiv:2006.04388).

The paper adds the quality focal loss towards the predicted box's IoU and the distribution focal loss
(`models/losses/gfl.py`, Eq. 2, 6), and boxes as distributions (`models/coders/distribution.py`, Eq. 5).
Anchors and assignment are those of ATSS.
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import Norm, NumClasses
from ..data.transforms import HorizontalFlip, ResizeByRange
from ..models.assigners import ATSSAssigner
from ..models.coders import DistributionCoder
from ..models.dense_heads import DenseCriterion, DenseHead, DensePostprocess, best_score
from ..models.detectors import OneStageDetector
from ..models.layers import group_norm
from ..models.losses import DistributionFocalLoss, GIoULoss, QualityFocalLoss
from ..models.priors import Anchors, TrainableArea
from ..models.suppression import GreedyNMS
from ..ops.boxes import iou
from . import common
from .experiment import Experiment


def head() -> Partial[DenseHead]:
    """ATSS without centreness: scores learn the IoU, sides are distributions over 0 to 16 strides."""
    config = Partial(
        DenseHead,
        num_classes=common.COCO_CLASSES,
        priors=Config(Anchors, scales=(8.0,), ratios=(1.0,)),
        coder=Config(DistributionCoder, last=16),
        criterion=Config(
            DenseCriterion,
            assigner=Config(ATSSAssigner, topk=9),
            class_loss=Config(QualityFocalLoss),
            class_target=iou,
            box_loss=Config(GIoULoss, weight=2.0),
            code_loss=Config(DistributionFocalLoss, weight=0.25),
            box_weight=best_score,
            min_box_weight=1.0,
            area=Config(TrainableArea),
        ),
        postprocess=Config(DensePostprocess, nms=Config(GreedyNMS, iou=0.6)),
        norm=group_norm,
        scale_levels=True,
    )
    return common.with_tag(common.with_tag(config, "num_classes", NumClasses), "norm", Norm)


def gfl_r50_fpn_1x() -> Config[Experiment]:
    """GFL, ResNet-50, 12 epochs on COCO (learning rate 0.01)."""
    model = Config(
        OneStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(start_level=1, extra="on_output"),
        head=head(),
    )
    return common.schedule_1x(model, lr=0.01)


def gfl_r50_fpn_2x() -> Config[Experiment]:
    """GFL, ResNet-50, 24 epochs on COCO, short sides from 480 to 800 pixels (Sec. 4)."""
    recipe = common.schedule_2x(gfl_r50_fpn_1x())
    recipe.train_transforms = [Config(ResizeByRange, shorts=(480, 800), long=1333), Config(HorizontalFlip)]
    return recipe


def gfl_r101_fpn_2x() -> Config[Experiment]:
    """GFL, ResNet-101, 24 epochs on COCO, short sides from 480 to 800 pixels."""
    recipe = gfl_r50_fpn_2x()
    recipe.model.backbone.depth = 101
    return recipe


def gfl_x101_32x4d_fpn_2x() -> Config[Experiment]:
    """GFL, ResNeXt-101 32x4d (arXiv:1611.05431), 24 epochs on COCO, short sides from 480 to 800 pixels."""
    return common.resnext(gfl_r50_fpn_2x(), groups=32)


def gfl_mnv2_320() -> Config[Experiment]:
    """GFL with MobileNetV2 at 320 pixels, for two CPU cores; Eq. 8 without weights on the boxes.

    A score is trained for the IoU of its box, and a box, weighted by its score, hardly at all while that is
    low: classes with few objects would leave that state only after more steps than this budget has.
    """
    detector_head = head()
    detector_head.criterion.box_weight = None
    return common.dense_320(detector_head, lr=0.02)
