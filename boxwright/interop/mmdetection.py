"""MMDetection 3.x checkpoints: their names as rules, loaded strictly into our detectors.

A rule says what a part is called there and here, not which method it belongs to, so methods share them.
Layouts need no change: boxes are x1, y1, x2, y2 and the background is the last column in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..models.backbones.resnet import ResNet
from ..models.dense_heads import YOLOHead
from ..models.detectors import TwoStageDetector
from ..models.necks import SSDNeck, YOLONeck
from .renaming import LoadReport, Rule, load_renamed

BACKBONE = (
    # DCN's offsets stood beside their convolution before MMDetection 2; GCNet's block is a plugin here.
    Rule(r"backbone\.(.+)\.conv(\d)_offset\.(.+)", r"backbone.\1.conv\2.conv_offset.\3"),
    Rule(r"backbone\.(.+)\.context_block\.conv_mask\.(.+)", r"backbone.\1.plugin.attention.\2"),
    Rule(r"backbone\.(.+)\.context_block\.channel_add_conv\.(.+)", r"backbone.\1.plugin.add.\2"),
    Rule(r"backbone\.(.+)\.context_block\.channel_mul_conv\.(.+)", r"backbone.\1.plugin.scale.\2"),
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
    Rule(r"bbox_head\.(?:retina|conv|atss|gfl|fcos)_cls\.(.+)", r"head.class_predictor.\1"),
    Rule(r"bbox_head\.(?:retina|conv|atss|gfl|fcos)_reg\.(.+)", r"head.box_predictor.\1"),
    Rule(r"bbox_head\.(?:conv|atss|fcos)_centerness\.(.+)", r"head.quality_predictor.\1"),
    Rule(r"bbox_head\.scales\.(\d+)\.scale", r"head.scales.\1.scale"),
)

# A stage of the backbone in the RoI head, which there stands beside the box head.
SHARED_HEAD = (
    Rule(r"roi_head\.shared_head\.layer\d\.(.+)\.gn(\d)\.(.+)", r"roi.stages.0.trunk.stage.\1.bn\2.\3"),
    Rule(r"roi_head\.shared_head\.layer\d\.(.+)", r"roi.stages.0.trunk.stage.\1"),
)

# One mask head, or in a cascade one a stage with its number; HTC's are joined by `conv_res`.
MASK = (
    Rule(r"roi_head\.mask_head\.(\d+\.)?convs\.(\d+)\.conv\.(.+)", r"roi.mask.\1convs.\2.conv.\3"),
    Rule(r"roi_head\.mask_head\.(\d+\.)?convs\.(\d+)\.(?:bn|gn)\.(.+)", r"roi.mask.\1convs.\2.norm.\3"),
    Rule(r"roi_head\.mask_head\.(\d+\.)?upsample\.(.+)", r"roi.mask.\1upsample.\2"),
    Rule(r"roi_head\.mask_head\.(\d+\.)?conv_logits\.(.+)", r"roi.mask.\1predictor.\2"),
    Rule(r"roi_head\.mask_head\.0\.conv_res\..+", None),  # nothing flows into the first
    Rule(r"roi_head\.mask_head\.(\d+)\.conv_res\.conv\.(.+)", r"roi.flow.\1.conv.\2"),
    Rule(r"roi_head\.mask_head\.(\d+)\.conv_res\.(?:bn|gn)\.(.+)", r"roi.flow.\1.norm.\2"),
)
SEMANTIC = (
    Rule(r"roi_head\.semantic_head\.lateral_convs\.(\d+)\.conv\.(.+)", r"roi.semantic.laterals.\1.conv.\2"),
    Rule(
        r"roi_head\.semantic_head\.lateral_convs\.(\d+)\.(?:bn|gn)\.(.+)", r"roi.semantic.laterals.\1.norm.\2"
    ),
    Rule(r"roi_head\.semantic_head\.convs\.(\d+)\.conv\.(.+)", r"roi.semantic.convs.\1.conv.\2"),
    Rule(r"roi_head\.semantic_head\.convs\.(\d+)\.(?:bn|gn)\.(.+)", r"roi.semantic.convs.\1.norm.\2"),
    Rule(r"roi_head\.semantic_head\.conv_embedding\.conv\.(.+)", r"roi.semantic.embedding.conv.\1"),
    Rule(r"roi_head\.semantic_head\.conv_embedding\.(?:bn|gn)\.(.+)", r"roi.semantic.embedding.norm.\1"),
    Rule(r"roi_head\.semantic_head\.conv_logits\.(.+)", r"roi.semantic.predictor.\1"),
)

# What is kept in a checkpoint but is no weight: the preprocessor's mean and deviation, and the whole
# distances that GFL's distributions are over, whose number the box predictor's shape says.
NO_WEIGHTS = (
    Rule(r"data_preprocessor\..+", None),
    Rule(r"bbox_head\.integral\.project", None),
)


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
    rules = [*_ssd(model), *_resnet(model), *BACKBONE, *_neck(model), *_yolo(model)]
    rules += [*HEAD_TOWERS, *HEAD_PREDICTORS, *_levels(), *NO_WEIGHTS]
    if isinstance(model, TwoStageDetector):
        for number, stage in enumerate(model.roi.stages):
            # A single stage stands there by itself, those of a cascade in a list.
            place = rf"\.{number}" if len(model.roi.stages) > 1 else r"(?:\.0)?"
            there = rf"roi_head\.bbox_head{place}"
            rules += _box_stage(there, f"roi.stages.{number}", stage)
        rules += [*_proposal_head("rpn_head", "rpn"), *MASK, *SEMANTIC, *SHARED_HEAD]
    else:
        # A proposal network as a detector of its own is called as in two-stage detectors, or as any head.
        rules += _proposal_head("(?:rpn_head|bbox_head)", "head")
    return rules


def _resnet(model: nn.Module) -> list[Rule]:
    """Stages that nothing looks at are there all the same; a shortcut that averages counts from there on.

    It does so even where it has no stride, over one pixel; here such a shortcut begins with its convolution.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, ResNet):
        return []
    stages = range(1, backbone.out_stages[-1] + 1)
    rules = [Rule(rf"backbone\.layer{stage}\..+", None) for stage in range(1, 5) if stage not in stages]
    for stage in stages if backbone.avg_down else ():
        shortcut = backbone.get_submodule(f"layer{stage}.0").downsample
        if isinstance(shortcut, nn.Sequential) and len(shortcut) == 2:
            there, ours = rf"backbone\.layer{stage}\.0\.downsample", f"backbone.layer{stage}.0.downsample"
            rules += [Rule(rf"{there}\.{i + 1}\.(.+)", rf"{ours}.{i}.\1") for i in range(2)]
    return rules


def _proposal_head(there: str, ours: str) -> list[Rule]:
    """A proposal network, and the branches of guided anchoring, which dense heads have, too."""
    return [
        Rule(rf"{there}\.rpn_conv\.(weight|bias)", rf"{ours}.stem.0.conv.\1"),
        Rule(rf"{there}\.rpn_conv\.(\d+)\.conv\.(.+)", rf"{ours}.stem.\1.conv.\2"),
        Rule(rf"{there}\.(?:rpn|conv)_cls\.(.+)", rf"{ours}.class_predictor.\1"),
        Rule(rf"{there}\.(?:rpn|conv)_reg\.(.+)", rf"{ours}.box_predictor.\1"),
        Rule(rf"{there}\.conv_loc\.(.+)", rf"{ours}.location_predictor.\1"),
        Rule(rf"{there}\.conv_shape\.(.+)", rf"{ours}.shape_predictor.\1"),
        Rule(rf"{there}\.feature_adaption(?:_cls)?\.conv_offset\.(.+)", rf"{ours}.class_adaption.offset.\1"),
        Rule(rf"{there}\.feature_adaption(?:_cls)?\.conv_adaption\.(.+)", rf"{ours}.class_adaption.conv.\1"),
        Rule(rf"{there}\.feature_adaption_reg\.conv_offset\.(.+)", rf"{ours}.box_adaption.offset.\1"),
        Rule(rf"{there}\.feature_adaption_reg\.conv_adaption\.(.+)", rf"{ours}.box_adaption.conv.\1"),
    ]


def _neck(model: nn.Module) -> list[Rule]:
    """FPN and HRFPN: their output convolutions and those of the extra levels are one list there."""
    neck = getattr(model, "neck", None)
    outputs = len(getattr(neck, "outputs", ()))
    rules = []
    for theirs, part in (("conv", "conv"), ("(?:bn|gn)", "norm")):
        rules.append(Rule(rf"neck\.lateral_convs\.(\d+)\.{theirs}\.(.+)", rf"neck.laterals.\1.{part}.\2"))
        rules.append(Rule(rf"neck\.reduction_conv\.{theirs}\.(.+)", rf"neck.reduction.{part}.\1"))
        for i in range(outputs + len(getattr(neck, "extras", ()))):
            ours = f"neck.outputs.{i}" if i < outputs else f"neck.extras.{i - outputs}"
            rules.append(Rule(rf"neck\.fpn_convs\.{i}\.{theirs}\.(.+)", rf"{ours}.{part}.\1"))
    return rules


def _levels() -> list[Rule]:
    """Heads whose levels share nothing: level, then layer, which has no number before 2.14."""
    rules = []
    for theirs, ours in (("cls_convs", "class"), ("reg_convs", "box")):
        layer = rf"bbox_head\.{theirs}\.(\d+)\.(\d+)"
        rules += [
            Rule(rf"{layer}\.conv\.(.+)", rf"head.{ours}_towers.\1.\2.conv.\3"),
            Rule(rf"{layer}\.(?:bn|gn)\.(.+)", rf"head.{ours}_towers.\1.\2.norm.\3"),
            Rule(rf"bbox_head\.{theirs}\.(\d+)(?:\.\d+)?\.(weight|bias)", rf"head.{ours}_predictors.\1.\2"),
        ]
    return rules


def _ssd(model: nn.Module) -> list[Rule]:
    """SSD's extra levels, two convolutions each; before 2.14 the backbone has them in one list."""
    neck = getattr(model, "neck", None)
    if not isinstance(neck, SSDNeck):
        return []
    rules = [Rule(r"(?:neck|backbone)\.l2_norm\.weight", r"neck.l2_norm.weight")]
    for theirs, part in (("conv", "conv"), ("(?:bn|gn)", "norm")):
        rules.append(
            Rule(rf"neck\.extra_layers\.(\d+)\.(\d)\.{theirs}\.(.+)", rf"neck.extras.\1.\2.{part}.\3")
        )
    for i in range(2 * len(neck.extras)):
        rules.append(Rule(rf"backbone\.extra\.{i}\.(.+)", rf"neck.extras.{i // 2}.{i % 2}.conv.\1"))
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
