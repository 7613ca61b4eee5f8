"""Soft-NMS (Bodla et al., arXiv:1704.04503) on Faster R-CNN.

The paper changes what becomes of duplicates (`SoftNMS` in `models/suppression.py`); training stays as it is.
"""

from __future__ import annotations

from fiddle import Config

from ..models.suppression import SoftNMS
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_mnv2_320, faster_rcnn_r50_fpn_1x


def soften(recipe: Config[Experiment]) -> Config[Experiment]:
    """Let scores decay where greedy suppression would drop boxes: linearly, from an IoU of 0.5 on.

    That is MMDetection's setting; the paper has 0.3.
    """
    recipe.model.roi.stages[-1].postprocess.nms = Config(SoftNMS, method="linear", iou=0.5)
    return recipe


def faster_rcnn_r50_fpn_soft_nms_1x() -> Config[Experiment]:
    """Faster R-CNN with linear soft-NMS, ResNet-50 and FPN, 12 epochs on COCO."""
    return soften(faster_rcnn_r50_fpn_1x())


def faster_rcnn_soft_nms_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with linear soft-NMS and MobileNetV2 at 320 pixels, for two CPU cores."""
    return soften(faster_rcnn_mnv2_320())
