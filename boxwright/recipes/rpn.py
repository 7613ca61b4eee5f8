"""The region proposal network (Faster R-CNN, arXiv:1506.01497, Sec. 3.1), of other detectors and alone.

It is a dense head of one class, and its detections are the proposals. In training every object is of that
class, whatever its label.
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import ClassAgnostic
from ..models.assigners import MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.dense_heads import DenseCriterion, DenseHead, DensePostprocess, Samples
from ..models.detectors import OneStageDetector
from ..models.losses import BinaryCrossEntropy, SmoothL1
from ..models.priors import Anchors, TrainableArea
from ..models.samplers import RandomSampler
from ..models.suppression import GreedyNMS
from . import common
from .experiment import Experiment


def rpn_head(
    *, scales: tuple[float, ...] = (8.0,), channels: int = 256, after_nms: int = 1000, positives: int = 256
) -> Partial[DenseHead]:
    """Region proposal network (Faster R-CNN, arXiv:1506.01497, Sec. 3.1; with FPN, arXiv:1612.03144)."""
    return Partial(
        DenseHead,
        num_classes=1,
        priors=Config(Anchors, scales=scales),
        coder=Config(DeltaCoder),
        criterion=Config(
            DenseCriterion,
            assigner=assigner(),
            sampler=Config(RandomSampler, number=positives, positive_share=0.5),
            class_loss=Config(BinaryCrossEntropy),
            code_loss=Config(SmoothL1, beta=0.0),
            divisor=Config(Samples),
            area=Config(TrainableArea),
            class_agnostic=True,
        ),
        postprocess=proposals(1000, after_nms),
        channels=channels,
        stem_convs=1,
        tower_convs=0,
        predictor_kernel=1,
        class_prior=None,
    )


def assigner() -> Config[MaxIoUAssigner]:
    """Positive from an IoU of 0.7 on, or the best of an object; negative below 0.3 (Sec. 3.1.2)."""
    return Config(
        MaxIoUAssigner, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3, match_low_quality=True
    )


def proposals(before_nms: int, after_nms: int) -> Config[DensePostprocess]:
    """The best boxes of each level, freed of duplicates at IoU 0.7 within the level."""
    return Config(
        DensePostprocess,
        score_threshold=None,
        candidates=before_nms,
        nms=Config(GreedyNMS, iou=0.7),
        nms_groups="level",
        max_detections=after_nms,
    )


def detector(head: Partial) -> Config[OneStageDetector]:
    """ResNet-50, FPN and a class-agnostic head."""
    common.with_tag(head.criterion, "class_agnostic", ClassAgnostic)
    return Config(OneStageDetector, backbone=common.resnet(50), neck=common.fpn(), head=head)


def rpn_r50_fpn_1x() -> Config[Experiment]:
    """RPN, ResNet-50 and FPN, 1000 proposals an image, 12 epochs on COCO (learning rate 0.02)."""
    head = rpn_head()
    head.postprocess = proposals(2000, 1000)
    return common.schedule_1x(detector(head), lr=0.02)
