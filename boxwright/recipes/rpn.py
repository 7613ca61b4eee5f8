"""The region proposal network as a detector of its own (Faster R-CNN, arXiv:1506.01497, Sec. 3.1).

It is a dense head of one class, the same that two-stage detectors carry (`common.rpn_head`). Its detections
are proposals, all of class 0; in training every object is of that class, whatever its label.
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import ClassAgnostic
from ..models.detectors import OneStageDetector
from . import common
from .experiment import Experiment


def detector(head: Partial) -> Config[OneStageDetector]:
    """ResNet-50, FPN and a class-agnostic head."""
    common.with_tag(head.criterion, "class_agnostic", ClassAgnostic)
    return Config(OneStageDetector, backbone=common.resnet(50), neck=common.fpn(), head=head)


def rpn_r50_fpn_1x() -> Config[Experiment]:
    """RPN, ResNet-50 and FPN, 1000 proposals an image, 12 epochs on COCO (learning rate 0.02)."""
    head = common.rpn_head()
    head.postprocess = common.proposals(2000, 1000)
    return common.schedule_1x(detector(head), lr=0.02)
