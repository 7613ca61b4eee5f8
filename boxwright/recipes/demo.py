"""The detector of `boxwright demo`: FCOS small enough to learn digits from nothing in minutes on a CPU."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from fiddle import Config, Partial

from ..config import NumClasses
from ..data import folder
from ..data.canvas import Canvas
from ..engine.optim import adamw
from ..engine.schedule import CosineSchedule
from ..models.assigners import FCOSAssigner
from ..models.backbones.resnet import ResNet
from ..models.coders import DistanceCoder
from ..models.dense_heads import Centreness, DenseCriterion, DenseHead, DensePostprocess, quality_target
from ..models.detectors import OneStageDetector
from ..models.layers import group_norm
from ..models.losses import FocalLoss, GIoULoss
from ..models.priors import Points
from . import common
from .experiment import Experiment


def fcos_digits() -> Config[Experiment]:
    """FCOS (arXiv:1904.01355) on a ResNet-18 from scratch, at 160 pixels: about 3 minutes on two cores."""
    head = Partial(
        DenseHead,
        num_classes=10,
        priors=Config(Points),
        coder=Config(DistanceCoder, activation=F.relu, in_strides=True),
        criterion=Config(
            DenseCriterion,
            assigner=Config(FCOSAssigner, limits=(0.0, 48.0, math.inf), centre_radius=1.5),
            class_loss=Config(FocalLoss),
            box_loss=Config(GIoULoss, weight=2.0),
            quality=Config(Centreness),
            box_weight=quality_target,
        ),
        postprocess=Config(DensePostprocess),
        channels=64,
        tower_convs=2,
        norm=partial(group_norm, groups=16),
        quality_branch="box",
        scale_levels=True,
    )
    model = Config(
        OneStageDetector,
        backbone=Config(ResNet, depth=18, out_stages=(2, 3), frozen_stages=0, norm_eval=False),
        neck=common.fpn(channels=64, outs=2, extra=None),
        head=common.with_tag(head, "num_classes", NumClasses),
    )
    return Config(
        Experiment,
        model=model,
        data=Config(folder),
        train_transforms=[],
        eval_transforms=[],
        canvas=Config(Canvas, shapes=((160, 160),)),
        batch_size=16,
        base_batch_size=16,
        optimizer=Partial(adamw, lr=1e-3, weight_decay=0.05),
        schedule=Config(CosineSchedule, usual_warmup=50),
        epochs=10,
        evaluate_every=5,
        clip_norm=10.0,
        ema_decay=0.99,
    )
