"""Guided anchoring (Wang et al., Region Proposal by Guided Anchoring, arXiv:1901.03278).

The paper adds a head that predicts its anchors (`models/dense_heads/guided_anchoring.py`), what its two
branches are trained for (`models/assigners/guided_anchoring.py`) and the code of an anchor's shape
(`models/coders/guided_anchoring.py`). The head takes the place of RetinaNet's and of the proposal network in
Faster R-CNN.
"""

from __future__ import annotations

from typing import Any

import fiddle as fdl
from fiddle import Config, Partial

from ..config import NumClasses
from ..models.assigners import ApproxMaxIoUAssigner, MaxIoUAssigner
from ..models.coders import DeltaCoder, ShapeCoder
from ..models.dense_heads import (
    DenseCriterion,
    Guidance,
    GuidedAnchorHead,
    GuidedPostprocess,
    Samples,
)
from ..models.detectors import OneStageDetector, TwoStageDetector
from ..models.losses import BinaryCrossEntropy, FocalLoss, SmoothL1
from ..models.priors import Anchors
from ..models.roi_heads import BoxHead, TwoFC
from ..models.samplers import RandomSampler
from . import common, faster_rcnn, rpn
from .experiment import Experiment


def square(strides: float) -> Config[Anchors]:
    """One square a place, of that many strides (sigma in Eq. 2)."""
    return Config(Anchors, scales=(strides,), ratios=(1.0,))


def guidance(*, positive_iou: float, negative_iou: float, min_positive_iou: float) -> Config[Guidance]:
    """Locations by region; shapes by the best of nine anchors, of 256 squares an image (Sec. 3.4)."""
    rule = Config(
        MaxIoUAssigner,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        min_positive_iou=min_positive_iou,
        match_low_quality=True,
    )
    return Config(
        Guidance,
        shape_assigner=Config(ApproxMaxIoUAssigner, rule=rule),
        sampler=Config(RandomSampler, number=256, positive_share=0.5),
    )


def retina_head() -> Partial[GuidedAnchorHead]:
    """RetinaNet's towers and focal loss on guided anchors."""
    config = Partial(
        GuidedAnchorHead,
        num_classes=common.COCO_CLASSES,
        priors=square(4.0),
        shape_coder=Config(ShapeCoder),
        guidance=guidance(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.4),
        coder=Config(DeltaCoder),
        criterion=Config(
            DenseCriterion,
            assigner=Config(MaxIoUAssigner, positive_iou=0.5, negative_iou=0.5, match_low_quality=True),
            class_loss=Config(FocalLoss),
            code_loss=Config(SmoothL1, beta=0.04),
        ),
        postprocess=Config(GuidedPostprocess),
    )
    return common.with_tag(config, "num_classes", NumClasses)


def rpn_head(before_nms: int, after_nms: int) -> Partial[GuidedAnchorHead]:
    """A proposal network on guided anchors: one convolution, which all branches share."""
    postprocess = rpn.proposals(before_nms, after_nms)
    fdl.update_callable(postprocess, GuidedPostprocess)
    return Partial(
        GuidedAnchorHead,
        num_classes=1,
        priors=square(8.0),
        shape_coder=Config(ShapeCoder, stds=(0.14, 0.14)),
        guidance=guidance(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3),
        coder=Config(DeltaCoder, stds=(0.07, 0.07, 0.11, 0.11)),
        criterion=Config(
            DenseCriterion,
            assigner=rpn.assigner(),
            sampler=Config(RandomSampler, number=256, positive_share=0.5),
            class_loss=Config(BinaryCrossEntropy),
            code_loss=Config(SmoothL1),
            divisor=Config(Samples),
            class_agnostic=True,
        ),
        postprocess=postprocess,
        stem_convs=1,
        tower_convs=0,
        predictor_kernel=1,
        class_prior=None,
    )


def ga_retinanet_r50_fpn_1x() -> Config[Experiment]:
    """GA-RetinaNet, ResNet-50, 12 epochs on COCO (learning rate 0.01)."""
    model = Config(
        OneStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(start_level=1, extra="on_input"),
        head=retina_head(),
    )
    return _schedule(model, lr=0.01)


def ga_rpn_r50_fpn_1x() -> Config[Experiment]:
    """GA-RPN, ResNet-50 and FPN, 1000 proposals an image of one class, 12 epochs on COCO."""
    return _schedule(rpn.detector(rpn_head(2000, 1000)), lr=0.02)


def box_head(**arguments: Any) -> Partial[BoxHead]:
    """Fast R-CNN's head for better proposals: positives from an IoU of 0.6 on, finer codes (Sec. 3.5)."""
    box = faster_rcnn.box_head(positive_iou=0.6, **arguments)
    box.coder.stds = (0.05, 0.05, 0.1, 0.1)
    box.postprocess.score_threshold = 1e-3
    return box


def ga_faster_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """GA-Faster R-CNN, ResNet-50 and FPN: fewer and better proposals (Sec. 3.5), 12 epochs on COCO."""
    model = Config(
        TwoStageDetector,
        backbone=common.resnet(50),
        neck=common.fpn(),
        rpn=rpn_head(1000, 300),
        roi=faster_rcnn.roi_heads(box_head(samples=256)),
        train_proposals=rpn.proposals(2000, 300),
    )
    return _schedule(model, lr=0.02)


def ga_retinanet_mnv2_320() -> Config[Experiment]:
    """GA-RetinaNet with MobileNetV2 at 320 pixels, for two CPU cores."""
    head = retina_head()
    head.guidance.location_share = 0.02  # in small images a larger share of all places is near an object
    return common.dense_320(head, lr=0.01)


def ga_faster_rcnn_mnv2_320() -> Config[Experiment]:
    """GA-Faster R-CNN with MobileNetV2 at 320 pixels, for two CPU cores: GA-RPN's proposals, Fast R-CNN."""
    model = faster_rcnn.mobilenet_model()
    proposals = rpn_head(1000, 300)
    proposals.channels, proposals.priors = 128, square(3.0)  # anchors from 24 pixels on
    proposals.guidance.location_share = 0.02
    box = box_head(samples=128, levels=3, trunk=Partial(TwoFC, width=512))
    box.extractor = model.roi.stages[0].extractor
    model.rpn, model.roi = proposals, faster_rcnn.roi_heads(box)
    return common.small_320(model, lr=0.01)


def _schedule(model: Config, lr: float) -> Config[Experiment]:
    """The 1x schedule with MMDetection's bound on the gradient, which guided anchors need at first."""
    recipe = common.schedule_1x(model, lr=lr)
    recipe.clip_norm = 35.0
    return recipe
