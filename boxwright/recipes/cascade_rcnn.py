"""Cascade R-CNN (Cai and Vasconcelos, arXiv:1712.00726) and Cascade Mask R-CNN (arXiv:1906.09756).

The paper puts further box stages behind Faster R-CNN's, each looking at the boxes of the one before it and
trained for a higher IoU: a list of stages in `RoIHeads`. With masks, each stage has a mask head.
"""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..models.roi_heads import BoxHead, MeanLogits, TwoFC
from . import common, faster_rcnn, mask_rcnn, rpn
from .experiment import Experiment

STAGES = (
    (0.5, (0.1, 0.1, 0.2, 0.2)),
    (0.6, (0.05, 0.05, 0.1, 0.1)),
    (0.7, (0.033, 0.033, 0.067, 0.067)),
)
"""IoU from which a stage's proposals are positive (Sec. 5.1), and deviations of its box codes (Sec. 4.1)."""
LOSS_WEIGHTS = (1.0, 0.5, 0.25)


def box_stages(trunk: Any = None, **arguments: Any) -> list[Partial[BoxHead]]:
    """The box heads, all classes sharing one box code (Sec. 5.1); arguments as of `faster_rcnn.box_head`."""
    stages = []
    for iou, stds in STAGES:
        head = faster_rcnn.box_head(positive_iou=iou, trunk=trunk, **arguments)
        head.class_agnostic, head.coder.stds = True, stds
        head.criterion.code_loss.beta = 1.0
        stages.append(head)
    return stages


def cascaded(recipe: Config[Experiment], stages: list[Partial[BoxHead]]) -> Config[Experiment]:
    """Exchange a Faster R-CNN's box head for these stages, weighted as MMDetection does."""
    model = recipe.model
    model.roi = faster_rcnn.roi_heads(*stages)
    model.roi.loss_weights, model.roi.average = LOSS_WEIGHTS, Config(MeanLogits)
    return recipe


def with_masks(recipe: Config[Experiment], levels: int = 4, **changes: Any) -> Config[Experiment]:
    """Add a mask head to each stage; `changes` are arguments of `MaskHead`."""
    recipe.model.roi.mask = [mask_rcnn.mask_head(levels) for _ in STAGES]
    for head in recipe.model.roi.mask:
        for name, value in changes.items():
            setattr(head, name, value)
    recipe.metrics = ("bbox", "segm")
    return recipe


def cascade_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Cascade R-CNN, ResNet-50 and FPN, 12 epochs on COCO (learning rate 0.02)."""
    recipe = cascaded(faster_rcnn.faster_rcnn_r50_fpn_1x(), box_stages())
    # MMDetection's settings of the proposal network.
    recipe.model.rpn.criterion.code_loss.beta = 1 / 9
    recipe.model.rpn.criterion.area.allowed_border = 0.0
    recipe.model.train_proposals = rpn.proposals(2000, 2000)
    return recipe


def cascade_rcnn_r101_fpn_1x() -> Config[Experiment]:
    """Cascade R-CNN, ResNet-101 and FPN, 12 epochs on COCO."""
    recipe = cascade_rcnn_r50_fpn_1x()
    recipe.model.backbone.depth = 101
    return recipe


def cascade_mask_rcnn_r50_fpn_1x() -> Config[Experiment]:
    """Cascade Mask R-CNN, ResNet-50 and FPN, 12 epochs on COCO (learning rate 0.02)."""
    return with_masks(cascade_rcnn_r50_fpn_1x())


def cascade_mask_rcnn_r101_fpn_1x() -> Config[Experiment]:
    """Cascade Mask R-CNN, ResNet-101 and FPN, 12 epochs on COCO."""
    return with_masks(cascade_rcnn_r101_fpn_1x())


def cascade_mask_rcnn_x101_64x4d_fpn_1x() -> Config[Experiment]:
    """Cascade Mask R-CNN, ResNeXt-101 64x4d and FPN, 12 epochs on COCO."""
    return common.resnext(cascade_mask_rcnn_r50_fpn_1x(), groups=64)


def cascade_rcnn_mnv2_320() -> Config[Experiment]:
    """Cascade R-CNN with MobileNetV2 at 320 pixels, for two CPU cores."""
    stages = box_stages(trunk=Partial(TwoFC, width=512), samples=128, levels=3)
    for stage in stages:
        stage.extractor.finest_scale = 28.0
    return cascaded(faster_rcnn.faster_rcnn_mnv2_320(), stages)


def cascade_mask_rcnn_mnv2_320() -> Config[Experiment]:
    """Cascade Mask R-CNN with MobileNetV2 at 320 pixels, for two CPU cores."""
    recipe = with_masks(cascade_rcnn_mnv2_320(), levels=3, channels=128, convs=2)
    for head in recipe.model.roi.mask:
        head.extractor.finest_scale = 28.0
    return recipe
