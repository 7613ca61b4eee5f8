"""Dynamic R-CNN (Zhang et al., arXiv:2004.06002).

The paper adds a threshold of the second stage that rises with the proposals (`models/assigners/dynamic.py`)
and a smooth L1 whose beta shrinks with the regression targets (`models/losses/dynamic.py`), to any two-stage
detector.
"""

from __future__ import annotations

from typing import Any

from fiddle import Config

from ..models.assigners import DynamicIoUAssigner
from ..models.losses import DynamicSmoothL1
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_mnv2_320, faster_rcnn_r50_fpn_1x
from .mask_rcnn import mask_rcnn_r50_fpn_1x


def dynamic_assignment(recipe: Config[Experiment], **settings: Any) -> Config[Experiment]:
    """Let the IoU threshold of a recipe's second stage follow the proposals (Sec. 4.1)."""
    for stage in recipe.model.roi.stages:
        stage.criterion.assigner = Config(DynamicIoUAssigner, rule=stage.criterion.assigner, **settings)
    return recipe


def dynamic_loss(recipe: Config[Experiment], **settings: Any) -> Config[Experiment]:
    """Train the boxes of a recipe's second stage with dynamic smooth L1 (Sec. 4.2)."""
    for stage in recipe.model.roi.stages:
        stage.criterion.code_loss = Config(DynamicSmoothL1, **settings)
    return recipe


def more_proposals(recipe: Config[Experiment]) -> Config[Experiment]:
    """Drop proposals as duplicates from an overlap of 0.85 on, as the authors and MMDetection do."""
    recipe.model.rpn.postprocess.nms.iou = 0.85
    recipe.model.train_proposals.nms.iou = 0.85
    return recipe


def dynamic_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Dynamic R-CNN on Faster R-CNN, ResNet-50 and FPN, 12 epochs on COCO."""
    return dynamic_loss(dynamic_assignment(more_proposals(faster_rcnn_r50_fpn_1x())))


def dynamic_rcnn_r50_fpn_dla_1x() -> Config[Experiment]:
    """Dynamic label assignment alone: Faster R-CNN's L1 loss, ResNet-50 and FPN, 12 epochs on COCO."""
    return dynamic_assignment(more_proposals(faster_rcnn_r50_fpn_1x()))


def dynamic_rcnn_r50_fpn_dsl_1x() -> Config[Experiment]:
    """Dynamic smooth L1 alone: Faster R-CNN's threshold of 0.5, ResNet-50 and FPN, 12 epochs on COCO."""
    return dynamic_loss(more_proposals(faster_rcnn_r50_fpn_1x()))


def dynamic_mask_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Dynamic R-CNN on Mask R-CNN, ResNet-50 and FPN, 12 epochs on COCO."""
    return dynamic_loss(dynamic_assignment(more_proposals(mask_rcnn_r50_fpn_1x())))


# K_I and C of the paper are for 1000 proposals and 90,000 steps, these for 300 and some hundreds. Both K have
# to exceed the ground truths of an image: these are proposals, too, with an IoU of 1 and targets of 0.
SMALL_ASSIGNMENT = {"top": 60, "interval": 20}
SMALL_LOSS = {"bottom": 10, "interval": 20}


def dynamic_rcnn_mnv2_320() -> Config[Experiment]:
    """Dynamic R-CNN with MobileNetV2 at 320 pixels, for two CPU cores."""
    return dynamic_loss(dynamic_rcnn_dla_mnv2_320(), **SMALL_LOSS)


def dynamic_rcnn_dla_mnv2_320() -> Config[Experiment]:
    """Dynamic label assignment alone, with MobileNetV2 at 320 pixels."""
    return dynamic_assignment(faster_rcnn_mnv2_320(), **SMALL_ASSIGNMENT)


def dynamic_rcnn_dsl_mnv2_320() -> Config[Experiment]:
    """Dynamic smooth L1 alone, with MobileNetV2 at 320 pixels."""
    return dynamic_loss(faster_rcnn_mnv2_320(), **SMALL_LOSS)
