"""Detectron2's checkpoints: their names as rules, loaded strictly into our detectors.

RetinaNet, Faster, Mask and Cascade R-CNN, on a feature pyramid and (Faster and Mask R-CNN) on C4 and DC5.
Boxes and the place of the background are as here. Anchors of one place come size by size there and ratio by
ratio here, so the columns of predictors are put into our order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.detectors import TwoStageDetector
from ..models.priors import Anchors
from .renaming import LoadReport, Rule, load_renamed

NO_WEIGHTS = (
    Rule(r"(?:.*\.)?anchor_generator\.cell_anchors\.\d+", None),
    Rule(r"pixel_(?:mean|std)", None),
    Rule(r"(?:.*\.)?num_batches_tracked", None),
)


def from_detectron2(checkpoint: Mapping[str, Any], model: nn.Module) -> LoadReport:
    """Fill one of our detectors with the weights of a Detectron2 checkpoint.

    Args:
        checkpoint: what `interop.safe_pickle.read_pickle` gives of a `.pkl` or `.pth` file (weights under
            "model", arrays or tensors), or the weights themselves.
        model: a detector of the same architecture, such as `convert.model_from_detectron2` describes.

    Raises:
        CheckpointError: a weight has no place in the model, or the model one that the checkpoint does not
            fill, or shapes differ; all are listed, and the model is left as it was.
    """
    return load_renamed(model, weights_of(checkpoint), rules_for(model), "the Detectron2 checkpoint")


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint as tensors; arrays of the model zoo's pickles are copied."""
    weights = checkpoint.get("model", checkpoint)
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in weights.items()
        if isinstance(value, Tensor | np.ndarray)
    }


def rules_for(model: nn.Module) -> list[Rule]:
    """The table of names for this model."""
    rules = [*NO_WEIGHTS]
    for stage in range(1, 5):  # counted from 2 there
        rules += _blocks(rf"backbone(?:\.bottom_up)?\.res{stage + 1}", f"backbone.layer{stage}")
    rules += [
        Rule(r"backbone(?:\.bottom_up)?\.stem\.conv1\.weight", "backbone.conv1.weight"),
        Rule(r"backbone(?:\.bottom_up)?\.stem\.conv1\.norm\.(.+)", r"backbone.bn1.\1"),
        *_pyramid(model),
    ]
    if isinstance(model, TwoStageDetector):
        return rules + _regions(model)
    order = _order(model.head.priors)  # pyright: ignore[reportAttributeAccessIssue]
    rules += [
        Rule(r"head\.cls_score\.(.+)", r"head.class_predictor.\1", order),
        Rule(r"head\.bbox_pred\.(.+)", r"head.box_predictor.\1", order),
    ]
    for theirs, ours in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower")):
        # Convolution and ReLU in turn.
        rules += [Rule(rf"head\.{theirs}\.{2 * i}\.(.+)", rf"head.{ours}.{i}.conv.\1") for i in range(8)]
    return rules


def _blocks(there: str, ours: str) -> list[Rule]:
    """The residual blocks of a stage."""
    return [
        Rule(rf"{there}\.(\d+)\.conv(\d)\.norm\.(.+)", rf"{ours}.\1.bn\2.\3"),
        Rule(rf"{there}\.(\d+)\.conv(\d)\.(weight|bias)", rf"{ours}.\1.conv\2.\3"),
        Rule(rf"{there}\.(\d+)\.conv2_offset\.(.+)", rf"{ours}.\1.conv2.conv_offset.\2"),
        Rule(rf"{there}\.(\d+)\.shortcut\.norm\.(.+)", rf"{ours}.\1.downsample.1.\2"),
        Rule(rf"{there}\.(\d+)\.shortcut\.weight", rf"{ours}.\1.downsample.0.weight"),
    ]


def _pyramid(model: nn.Module) -> list[Rule]:
    """FPN: levels are named after the base-2 logarithm of their stride."""
    neck = getattr(model, "neck", None)
    laterals = getattr(neck, "laterals", ())
    rules = []
    for i, spec in enumerate(getattr(neck, "specs", ())):
        number = spec.stride.bit_length() - 1
        for theirs, ours in (("lateral", "laterals"), ("output", "outputs")):
            there = rf"backbone\.fpn_{theirs}{number}"
            rules += [
                Rule(rf"{there}\.(weight|bias)", rf"neck.{ours}.{i}.conv.\1"),
                Rule(rf"{there}\.norm\.(.+)", rf"neck.{ours}.{i}.norm.\1"),
            ]
        ours = f"neck.extras.{i - len(laterals)}.conv"
        rules.append(Rule(rf"backbone\.top_block\.p{number}\.(.+)", rf"{ours}.\1"))
    return rules


def _regions(model: TwoStageDetector) -> list[Rule]:
    """Proposals, box stages and masks of a two-stage detector."""
    order = _order(model.rpn.priors)
    rules = [
        Rule(r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.stem.0.conv.\1"),
        Rule(r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.(weight|bias)", r"rpn.stem.\1.conv.\2"),
        Rule(r"proposal_generator\.rpn_head\.objectness_logits\.(.+)", r"rpn.class_predictor.\1", order),
        Rule(r"proposal_generator\.rpn_head\.anchor_deltas\.(.+)", r"rpn.box_predictor.\1", order),
        *_blocks(r"roi_heads\.res5", "roi.stages.0.trunk.stage"),
        Rule(r"roi_heads\.mask_head\.deconv\.(.+)", r"roi.mask.upsample.\1"),
        Rule(r"roi_heads\.mask_head\.predictor\.(.+)", r"roi.mask.predictor.\1"),
    ]
    for i in range(len(getattr(model.roi.mask, "convs", ()))):
        there = rf"roi_heads\.mask_head\.mask_fcn{i + 1}"
        rules += [
            Rule(rf"{there}\.(weight|bias)", rf"roi.mask.convs.{i}.conv.\1"),
            Rule(rf"{there}\.norm\.(.+)", rf"roi.mask.convs.{i}.norm.\1"),
        ]
    stages = len(model.roi.stages)
    for number, stage in enumerate(model.roi.stages):
        which = "" if stages == 1 else rf"\.{number}"
        ours = f"roi.stages.{number}"
        rules += [
            Rule(rf"roi_heads\.box_predictor{which}\.cls_score\.(.+)", rf"{ours}.class_predictor.\1"),
            Rule(rf"roi_heads\.box_predictor{which}\.bbox_pred\.(.+)", rf"{ours}.box_predictor.\1"),
        ]
        linear, convs = 0, 0
        for name, layer in stage.get_submodule("trunk").named_children():
            part = f"{ours}.trunk.{re.escape(name)}"
            if isinstance(layer, nn.Linear):
                linear += 1
                rules.append(Rule(rf"roi_heads\.box_head{which}\.fc{linear}\.(.+)", rf"{part}.\1"))
            elif hasattr(layer, "conv"):
                convs += 1
                there = rf"roi_heads\.box_head{which}\.conv{convs}"
                rules += [
                    Rule(rf"{there}\.(weight|bias)", rf"{part}.conv.\1"),
                    Rule(rf"{there}\.norm\.(.+)", rf"{part}.norm.\1"),
                ]
    return rules


def _order(priors: Any) -> partial[Tensor]:
    assert isinstance(priors, Anchors)
    ratios = len(priors.ratios)
    return partial(_by_ratio, scales=priors.num_per_place() // ratios, ratios=ratios)


def _by_ratio(values: Tensor, scales: int, ratios: int) -> Tensor:
    """Rows of a predictor: anchors scale by scale to ratio by ratio."""
    by_scale = values.unflatten(0, (scales, ratios, -1))
    return by_scale.transpose(0, 1).flatten(0, 2).contiguous()
