"""FCOS (Tian et al., Fully Convolutional One-Stage Object Detection, arXiv:1904.01355).

The paper adds points instead of anchors (`models/priors/points.py`), assignment by the size of the box to
levels (`models/assigners/fcos.py`), distances to the sides (`models/coders/distance.py`) and the centreness
branch (`Centreness` in `models/dense_heads/criterion.py`).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from fiddle import Config, Partial

from ..config import Norm, NumClasses
from ..models.assigners import FCOSAssigner
from ..models.coders import DistanceCoder
from ..models.dense_heads import Centreness, DenseCriterion, DenseHead, DensePostprocess, quality_target
from ..models.detectors import Normalise, OneStageDetector
from ..models.layers import FrozenBatchNorm2d, group_norm
from ..models.losses import FocalLoss, GIoULoss, IoULoss
from ..models.priors import Points
from . import common
from .experiment import Experiment

CAFFE_WEIGHTS = {
    50: "https://download.openmmlab.com/pretrain/third_party/resnet50_caffe-788b5fa3.pth",
    101: "https://download.openmmlab.com/pretrain/third_party/resnet101_caffe-3ad79236.pth",
}
"""Detectron's ResNets of ImageNet, by depth, as MMDetection publishes them."""


def head() -> Partial[DenseHead]:
    """Towers with group norm, exp(scale * x) distances in pixels, centreness beside the classes (Sec. 3)."""
    config = Partial(
        DenseHead,
        num_classes=common.COCO_CLASSES,
        priors=Config(Points),
        coder=Config(DistanceCoder),
        criterion=Config(
            DenseCriterion,
            assigner=Config(FCOSAssigner),
            class_loss=Config(FocalLoss),
            box_loss=Config(IoULoss),
            quality=Config(Centreness),
            box_weight=quality_target,
        ),
        postprocess=Config(DensePostprocess),
        norm=group_norm,
        quality_branch="class",
        scale_levels=True,
    )
    return common.with_tag(common.with_tag(config, "num_classes", NumClasses), "norm", Norm)


def fcos_r50_fpn_1x() -> Config[Experiment]:
    """FCOS, ResNet-50 in Caffe's style, 12 epochs on COCO (learning rate 0.01, biases twice that)."""
    model = Config(
        OneStageDetector,
        backbone=common.resnet(50, style="caffe", norm=FrozenBatchNorm2d),
        neck=common.fpn(start_level=1, extra="on_output", relu_before_extra=True),
        head=head(),
        normalise=Config(Normalise, mean=(122.7717, 115.9465, 102.9801), std=(1.0, 1.0, 1.0), bgr=True),
    )
    model.backbone.weights = CAFFE_WEIGHTS[50]
    recipe = common.schedule_1x(model, lr=0.01)
    recipe.optimizer.bias_lr_factor = 2.0
    recipe.optimizer.bias_decay = 0.0
    recipe.clip_norm = 35.0
    return recipe


def fcos_r50_fpn_2x() -> Config[Experiment]:
    """FCOS, ResNet-50 in Caffe's style, 24 epochs on COCO."""
    return common.schedule_2x(fcos_r50_fpn_1x())


def fcos_r101_fpn_1x() -> Config[Experiment]:
    """FCOS, ResNet-101 in Caffe's style, 12 epochs on COCO."""
    recipe = fcos_r50_fpn_1x()
    recipe.model.backbone.depth, recipe.model.backbone.weights = 101, CAFFE_WEIGHTS[101]
    return recipe


def fcos_mnv2_320() -> Config[Experiment]:
    """FCOS with MobileNetV2 at 320 pixels, for two CPU cores; centre sampling, GIoU, distances in strides."""
    detector_head = head()
    detector_head.quality_branch = "box"
    detector_head.coder = Config(DistanceCoder, activation=F.relu, in_strides=True)
    detector_head.criterion.assigner = Config(
        FCOSAssigner, limits=(0.0, 64.0, 128.0, 256.0, math.inf), centre_radius=1.5
    )
    detector_head.criterion.box_loss = Config(GIoULoss, weight=2.0)
    return common.dense_320(detector_head, lr=0.02)
