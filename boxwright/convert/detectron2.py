"""Detectron2's model zoo: the detector is read off the weights, the settings are the zoo's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiddle import Config
from torch import Tensor

from ..assembly import set_num_classes
from ..config import Pretrained, build, set_tagged
from ..errors import CheckpointError
from ..interop.coco_labels import COCO
from ..interop.detectron2 import from_detectron2, weights_of
from ..labels import LabelMap
from ..models.detectors import Normalise
from ..models.layers import FrozenBatchNorm2d
from ..models.roi_heads import MeanScores
from ..recipes import recipe as recipe_named
from ..recipes.experiment import Experiment
from .checkpoint import Conversion, read_checkpoint, write_checkpoint

BLOCKS_OF_RES4 = {6: 50, 23: 101, 36: 152}
RGB_MEAN = (123.675, 116.28, 103.53)


def convert_detectron2(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, classes: Sequence[str] | None = None
) -> Conversion:
    """Write a checkpoint of Detectron2's model zoo as one of ours.

    Args:
        source: a `.pkl` of the zoo or a `.pth` of a training; read without running what it holds.
        out: the `.safetensors` file to write; `boxwright.load` takes it.
        classes: class names in the order of the labels; by default COCO's for 80 classes, else numbers.

    Raises:
        CheckpointError: the file cannot be read, or is not a detector that we have.
    """
    return detectron2_to_ours(read_checkpoint(source), source, out, classes)


def detectron2_to_ours(
    loaded: Mapping[str, Any],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    classes: Sequence[str] | None,
) -> Conversion:
    """`convert_detectron2` of a file that is read already."""
    weights = weights_of(loaded)
    if not weights:
        raise CheckpointError(f"{source} holds no weights of Detectron2")
    experiment, count = experiment_of_detectron2(weights)
    label_map = COCO if classes is None and count == len(COCO) else LabelMap.numbered(count)
    if classes is not None:
        label_map = LabelMap(tuple(classes))
        if len(label_map) != count:
            raise CheckpointError(f"{source} has {count} classes, {len(label_map)} names are given")
    model = build(experiment.model)
    report = from_detectron2(weights, model)
    path = write_checkpoint(out, model, experiment, label_map)
    return Conversion(path, report, label_map)


def experiment_of_detectron2(weights: Mapping[str, Tensor]) -> tuple[Config[Experiment], int]:
    """The recipe for the architecture that these weights are of, and the number of its classes.

    Depth, groups, heads and classes are in the shapes. What is not is as in the model zoo: ResNets in Caffe's
    style for images in blue, green, red, ResNeXts in PyTorch's.

    Raises:
        CheckpointError: it is none of RetinaNet, Faster, Mask, Cascade R-CNN.
    """
    pyramid = any(name.startswith("backbone.bottom_up.") for name in weights)
    body = "backbone.bottom_up" if pyramid else "backbone"
    masks = any(name.startswith("roi_heads.mask_head.") for name in weights)
    stages = len({m[1] for name in weights if (m := re.match(r"roi_heads\.box_predictor\.(\d)\.", name))})
    if "head.cls_score.weight" in weights and "head.bbox_pred.weight" in weights:
        experiment = recipe_named("retinanet_r50_fpn_1x")
        experiment.model.neck.extra = "on_input" if _from_c5(weights) else "on_output"
        experiment.model.neck.relu_before_extra = True
        anchors = weights["head.bbox_pred.weight"].shape[0] // 4
        count = weights["head.cls_score.weight"].shape[0] // anchors
        experiment.model.head.criterion.assigner.low_quality_keeps_best = True
    elif "proposal_generator.rpn_head.conv.weight" in weights:
        kinds = ("cascade_rcnn", "cascade_mask_rcnn") if stages else ("faster_rcnn", "mask_rcnn")
        experiment = recipe_named(f"{kinds[masks]}_r50_{'fpn' if pyramid else 'c4'}_1x")
        assigner = experiment.model.rpn.criterion.assigner
        assigner.min_positive_iou, assigner.low_quality_keeps_best = 0.0, True
        scores = "roi_heads.box_predictor.0.cls_score" if stages else "roi_heads.box_predictor.cls_score"
        count = weights[f"{scores}.weight"].shape[0] - 1
        if stages:
            experiment.model.roi.average = Config(MeanScores)
        else:
            boxes = weights["roi_heads.box_predictor.bbox_pred.weight"].shape[0]
            experiment.model.roi.stages[0].class_agnostic = boxes == 4
    else:
        raise CheckpointError(
            "these weights are of none of the detectors that can be converted from Detectron2: RetinaNet, "
            "Faster, Mask and Cascade R-CNN on FPN, Faster and Mask R-CNN on C4"
        )
    _set_backbone(experiment, weights, body)
    set_num_classes(experiment.model, count)
    set_tagged(experiment.model, Pretrained, None)
    return experiment, count


def _from_c5(weights: Mapping[str, Tensor]) -> bool:
    """Whether RetinaNet's P6 is made from C5 rather than from P5."""
    return weights["backbone.top_block.p6.weight"].shape[1] != weights["backbone.fpn_output5.weight"].shape[0]


def _set_backbone(experiment: Config[Experiment], weights: Mapping[str, Tensor], body: str) -> None:
    blocks = {m[1] for name in weights if (m := re.match(rf"{re.escape(body)}\.res4\.(\d+)\.", name))}
    if len(blocks) not in BLOCKS_OF_RES4 or f"{body}.res2.0.conv3.weight" not in weights:
        raise CheckpointError(f"the backbone is no ResNet of bottlenecks: its res4 has {len(blocks)} blocks")
    middle = weights[f"{body}.res2.0.conv2.weight"]
    groups = middle.shape[0] // middle.shape[1]
    style = "caffe" if groups == 1 else "pytorch"
    settings = {
        "depth": BLOCKS_OF_RES4[len(blocks)],
        "groups": groups,
        "width_per_group": middle.shape[0] // groups,
        "style": style,
        "norm": FrozenBatchNorm2d,
    }
    places = [experiment.model.backbone]
    if body == "backbone":  # C4: the last stage stands in the head
        places.append(experiment.model.roi.stages[0].trunk.network)
    for place in places:
        for name, value in settings.items():
            setattr(place, name, value)
    deviation = (1.0, 1.0, 1.0) if style == "caffe" else (58.395, 57.12, 57.375)
    experiment.model.normalise = Config(Normalise, mean=RGB_MEAN, std=deviation, bgr=True)
