"""Hybrid Task Cascade (Chen et al., arXiv:1901.07518).

The paper lets the box and mask stages of Cascade Mask R-CNN take turns, feeds mask features on from stage to
stage, and adds a semantic segmentation branch (`models/roi_heads/htc.py`). The branch is trained on maps of
semantic classes: `data.semantic=stuffthingmaps`.
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..models.roi_heads import HTC, FusedExtractor, SemanticBranch
from . import cascade_rcnn
from .experiment import Experiment


def interleaved(recipe: Config[Experiment]) -> Config[Experiment]:
    """Let the stages of a Cascade Mask R-CNN work as HTC does (Sec. 3.1)."""
    old = recipe.model.roi
    recipe.model.roi = Partial(
        HTC, stages=old.stages, mask=old.mask, loss_weights=old.loss_weights, average=old.average
    )
    for stage, (iou, _) in zip(old.stages, cascade_rcnn.STAGES, strict=True):
        # MMDetection's settings: a ground truth also gets its best proposal, and weak detections are kept.
        stage.criterion.assigner.match_low_quality, stage.criterion.assigner.min_positive_iou = True, iou
        stage.postprocess.score_threshold = 0.001
    return recipe


def htc_without_semantic_r50_fpn_1x() -> Config[Experiment]:
    """HTC without the semantic branch, ResNet-50 and FPN, 12 epochs on COCO (learning rate 0.02)."""
    return interleaved(cascade_rcnn.cascade_mask_rcnn_r50_fpn_1x())


def htc_r50_fpn_1x() -> Config[Experiment]:
    """HTC, ResNet-50 and FPN, 12 epochs on COCO with COCO-Stuff's maps (learning rate 0.02)."""
    recipe = htc_without_semantic_r50_fpn_1x()
    roi = recipe.model.roi
    roi.semantic = Partial(SemanticBranch)
    for head in roi.stages:
        head.extractor = Config(FusedExtractor, size=7)
    for head in roi.mask:
        head.extractor = Config(FusedExtractor, size=14)
    return recipe


def htc_r50_fpn_20e() -> Config[Experiment]:
    """HTC, ResNet-50 and FPN, 20 epochs on COCO with COCO-Stuff's maps."""
    recipe = htc_r50_fpn_1x()
    recipe.schedule.milestones, recipe.epochs = (16, 19), 20
    return recipe


def htc_r101_fpn_20e() -> Config[Experiment]:
    """HTC, ResNet-101 and FPN, 20 epochs on COCO with COCO-Stuff's maps."""
    recipe = htc_r50_fpn_20e()
    recipe.model.backbone.depth = 101
    return recipe


def htc_without_semantic_mnv2_320() -> Config[Experiment]:
    """HTC without the semantic branch, with MobileNetV2 at 320 pixels, for two CPU cores."""
    return interleaved(cascade_rcnn.cascade_mask_rcnn_mnv2_320())
