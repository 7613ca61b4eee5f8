"""ATSS (Zhang et al., Adaptive Training Sample Selection, arXiv:1912.02424).

The paper adds the assignment rule (`models/assigners/atss.py`, Alg. 1). Its detector is RetinaNet's with one
anchor a place, the towers and the centreness of FCOS, and a GIoU loss (Sec. 3.2, Table 1).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import Norm, NumClasses
from ..models.assigners import ATSSAssigner
from ..models.coders import DeltaCoder
from ..models.dense_heads import Centreness, DenseCriterion, DenseHead, DensePostprocess, quality_target
from ..models.detectors import OneStageDetector
from ..models.layers import group_norm
from ..models.losses import FocalLoss, GIoULoss
from ..models.priors import Anchors, TrainableArea
from ..models.suppression import GreedyNMS
from . import common
from .experiment import Experiment


def head() -> Partial[DenseHead]:
    """One square anchor of eight strides a place, adaptive assignment, centreness beside the boxes."""
    config = Partial(
        DenseHead,
        num_classes=common.COCO_CLASSES,
        priors=Config(Anchors, scales=(8.0,), ratios=(1.0,)),
        coder=Config(DeltaCoder, stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=Config(
            DenseCriterion,
            assigner=Config(ATSSAssigner, topk=9),
            class_loss=Config(FocalLoss),
            box_loss=Config(GIoULoss, weight=2.0),
            quality=Config(Centreness),
            box_weight=quality_target,
            min_box_weight=1.0,
            area=Config(TrainableArea),
        ),
        postprocess=Config(DensePostprocess, nms=Config(GreedyNMS, iou=0.6)),
        norm=group_norm,
        quality_branch="box",
        scale_levels=True,
    )
    return common.with_tag(common.with_tag(config, "num_classes", NumClasses), "norm", Norm)


def atss_r50_fpn_1x() -> Config[Experiment]:
    """ATSS, ResNet-50, 12 epochs on COCO (learning rate 0.01)."""
    model = Config(
        OneStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(start_level=1, extra="on_output"),
        head=head(),
    )
    return common.schedule_1x(model, lr=0.01)


def atss_r101_fpn_1x() -> Config[Experiment]:
    """ATSS, ResNet-101, 12 epochs on COCO."""
    recipe = atss_r50_fpn_1x()
    recipe.model.backbone.depth = 101
    return recipe


def atss_mnv2_320() -> Config[Experiment]:
    """ATSS with MobileNetV2 at 320 pixels, for two CPU cores."""
    return common.dense_320(head(), lr=0.02)
