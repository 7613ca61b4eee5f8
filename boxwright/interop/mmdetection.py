"""MMDetection 3.x checkpoints: their names as rules, loaded strictly into our detectors.

A rule says what a part is called there and here, not which method it belongs to, so methods share them.
Layouts need no change: boxes are x1, y1, x2, y2 and the background is the last column in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..models.dense_heads import YOLOHead
from ..models.detectors import TwoStageDetector
from ..models.necks import YOLONeck
from .renaming import LoadReport, Rule, load_renamed

BACKBONE = (
    # A norm is called bn or gn after its kind, at the numbers that torchvision's ResNet has, as ours does.
    Rule(r"backbone\.(.*\.)?gn(\d)\.(.+)", r"backbone.\1bn\2.\3"),
    # Without a number it is that of a convolution module, which is called norm here.
    Rule(r"backbone\.(.+)\.(?:bn|gn)\.(.+)", r"backbone.\1.norm.\2"),
    Rule(r"backbone\.(.+)", r"backbone.\1"),
)

HEAD_TOWERS = (
    Rule(r"bbox_head\.cls_convs\.(\d+)\.conv\.(.+)", r"head.class_tower.\1.conv.\2"),
    Rule(r"bbox_head\.cls_convs\.(\d+)\.(?:bn|gn)\.(.+)", r"head.class_tower.\1.norm.\2"),
    Rule(r"bbox_head\.reg_convs\.(\d+)\.conv\.(.+)", r"head.box_tower.\1.conv.\2"),
    Rule(r"bbox_head\.reg_convs\.(\d+)\.(?:bn|gn)\.(.+)", r"head.box_tower.\1.norm.\2"),
)
HEAD_PREDICTORS = (
    Rule(r"bbox_head\.(?:retina_cls|conv_cls)\.(.+)", r"head.class_predictor.\1"),
    Rule(r"bbox_head\.(?:retina_reg|conv_reg)\.(.+)", r"head.box_predictor.\1"),
    Rule(r"bbox_head\.conv_centerness\.(.+)", r"head.quality_predictor.\1"),
    Rule(r"bbox_head\.scales\.(\d+)\.scale", r"head.scales.\1.scale"),
)

RPN = (
    Rule(r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.stem.0.conv.\1"),
    Rule(r"rpn_head\.rpn_conv\.(\d+)\.conv\.(.+)", r"rpn.stem.\1.conv.\2"),
    Rule(r"rpn_head\.rpn_cls\.(.+)", r"rpn.class_predictor.\1"),
    Rule(r"rpn_head\.rpn_reg\.(.+)", r"rpn.box_predictor.\1"),
)

MASK = (
    Rule(r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(.+)", r"roi.mask.convs.\1.conv.\2"),
    Rule(r"roi_head\.mask_head\.convs\.(\d+)\.(?:bn|gn)\.(.+)", r"roi.mask.convs.\1.norm.\2"),
    Rule(r"roi_head\.mask_head\.upsample\.(.+)", r"roi.mask.upsample.\1"),
    Rule(r"roi_head\.mask_head\.conv_logits\.(.+)", r"roi.mask.predictor.\1"),
)

# What is kept in a checkpoint but is no weight: the preprocessor's mean and deviation.
NO_WEIGHTS = (Rule(r"data_preprocessor\..+", None),)


def from_mmdetection(checkpoint: Mapping[str, Any], model: nn.Module) -> LoadReport:
    """Fill one of our detectors with the weights of an MMDetection checkpoint.

    Args:
        checkpoint: a state dict, or what `torch.load(file, weights_only=True)` gives of a checkpoint file,
            which has it under "state_dict".
        model: a detector of the same architecture, such as the recipe of the same name builds.

    Raises:
        CheckpointError: a weight has no place in the model, or the model one that the checkpoint does not
            fill, or shapes differ; all are listed, and the model is left as it was.
    """
    state: Mapping[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    return load_renamed(model, state, rules_for(model), "the MMDetection checkpoint")


def rules_for(model: nn.Module) -> list[Rule]:
    """The table of names for this model.

    Most rules hold for any model. How many of the neck's convolutions make extra levels, and where the
    trunk's layers stand, is read off the model.
    """
    rules = [*BACKBONE, *_neck(model), *_yolo(model), *HEAD_TOWERS, *HEAD_PREDICTORS, *NO_WEIGHTS]
    if isinstance(model, TwoStageDetector):
        for number, stage in enumerate(model.roi.stages):
            # A single stage stands there by itself, several in a list.
            there = (
                r"roi_head\.bbox_head" if len(model.roi.stages) == 1 else rf"roi_head\.bbox_head\.{number}"
            )
            rules += _box_stage(there, f"roi.stages.{number}", stage)
        rules += [*RPN, *MASK]
    return rules


def _neck(model: nn.Module) -> list[Rule]:
    """FPN: its output convolutions and those of the extra levels are one list there."""
    neck = getattr(model, "neck", None)
    outputs = len(getattr(neck, "outputs", ()))
    rules = []
    for theirs, part in (("conv", "conv"), ("(?:bn|gn)", "norm")):
        rules.append(Rule(rf"neck\.lateral_convs\.(\d+)\.{theirs}\.(.+)", rf"neck.laterals.\1.{part}.\2"))
        for i in range(outputs + len(getattr(neck, "extras", ()))):
            ours = f"neck.outputs.{i}" if i < outputs else f"neck.extras.{i - outputs}"
            rules.append(Rule(rf"neck\.fpn_convs\.{i}\.{theirs}\.(.+)", rf"{ours}.{part}.\1"))
    return rules


def _yolo(model: nn.Module) -> list[Rule]:
    """YOLOv3's neck and head: their levels go from coarse to fine, and a neck's convolutions count from 1."""
    neck, head = getattr(model, "neck", None), getattr(model, "head", None)
    rules = []
    for theirs, part in (("conv", "conv"), ("(?:bn|gn)", "norm")):
        if isinstance(neck, YOLONeck):
            for level in range(len(neck.blocks)):
                number = len(neck.blocks) - level
                ours = f"neck.blocks.{level}"
                rules += [
                    Rule(rf"neck\.detect{number}\.conv{i + 1}\.{theirs}\.(.+)", rf"{ours}.{i}.{part}.\1")
                    for i in range(5)
                ]
                rules.append(
                    Rule(rf"neck\.conv{number - 1}\.{theirs}\.(.+)", rf"neck.laterals.{level}.{part}.\1")
                )
        if isinstance(head, YOLOHead):
            for level in range(len(head.bridges)):
                number = len(head.bridges) - level - 1
                ours = f"head.bridges.{level}.{part}"
                rules.append(Rule(rf"bbox_head\.convs_bridge\.{number}\.{theirs}\.(.+)", rf"{ours}.\1"))
                rules.append(Rule(rf"bbox_head\.convs_pred\.{number}\.(.+)", rf"head.predictors.{level}.\1"))
    return rules


def _box_stage(there: str, ours: str, stage: nn.Module) -> list[Rule]:
    """Names of one box stage; its trunk is a sequence in which convolutions and linear layers are counted."""
    rules = [
        Rule(rf"{there}\.fc_cls\.(.+)", rf"{ours}.class_predictor.\1"),
        Rule(rf"{there}\.fc_reg\.(.+)", rf"{ours}.box_predictor.\1"),
        Rule(rf"{there}\.shared_convs\.(\d+)\.conv\.(.+)", rf"{ours}.trunk.\1.conv.\2"),
        Rule(rf"{there}\.shared_convs\.(\d+)\.(?:bn|gn)\.(.+)", rf"{ours}.trunk.\1.norm.\2"),
    ]
    trunk = stage.get_submodule("trunk")
    linear = [name for name, layer in trunk.named_children() if isinstance(layer, nn.Linear)]
    for i, name in enumerate(linear):
        rules.append(Rule(rf"{there}\.shared_fcs\.{i}\.(.+)", rf"{ours}.trunk.{re.escape(name)}.\1"))
    return rules
