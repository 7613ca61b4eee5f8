"""Detectron2's meta-architectures as our recipes: RetinaNet, and R-CNNs on a pyramid, on C4 and on DC5."""

from __future__ import annotations

import re
from typing import Any

from fiddle import Config, Partial

from ..config import NumClasses
from ..errors import CheckpointError, ConfigError
from ..models.roi_heads import MaskHead, MeanScores
from ..models.suppression import GreedyNMS
from ..recipes import common, faster_rcnn
from ..recipes import recipe as recipe_named
from ..recipes.experiment import Experiment
from . import detectron2_parts as parts
from .detectron2_keys import Keys
from .detectron2_parts import Weights

RPN = "proposal_generator.rpn_head"
LVIS_CLASSES = (1203, 1230)
"""Of its versions 1 and 0.5, whose detectors in the zoo give more boxes of lower scores."""
CASCADE_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


def retinanet(weights: Weights, keys: Keys) -> tuple[Config[Experiment], int]:
    """RetinaNet and the number of its classes."""
    keys.skip("MODEL.RPN", "MODEL.PROPOSAL_GENERATOR", "MODEL.ROI_HEADS", "MODEL.ROI_BOX_HEAD")
    keys.skip("MODEL.ROI_MASK_HEAD", "MODEL.ROI_BOX_CASCADE_HEAD")
    keys.expect("MODEL.META_ARCHITECTURE", "RetinaNet")
    keys.expect("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")
    keys.expect("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"])
    keys.expect("MODEL.RESNETS.RES5_DILATION", 1)
    keys.expect("MODEL.RETINANET.NORM", "")
    if any(re.fullmatch(r"head\.(?:cls|bbox)_subnet\.1\..+", name) for name in weights):
        raise ConfigError(
            "MODEL.RETINANET.NORM: the towers of these weights have norms; Boxwright converts ''"
        )
    experiment = recipe_named("retinanet_r50_fpn_1x")
    model = experiment.model
    _backbone(experiment, weights, "backbone.bottom_up", keys)
    _pyramid(experiment, weights, (3, 4, 5), keys)
    from_c5 = (
        weights["backbone.top_block.p6.weight"].shape[1] != weights["backbone.fpn_output5.weight"].shape[0]
    )
    model.neck.extra, model.neck.relu_before_extra = "on_input" if from_c5 else "on_output", True
    head = model.head
    towers = [w for i in range(0, 32, 2) if (w := weights.get(f"head.cls_subnet.{i}.weight")) is not None]
    head.channels, head.tower_convs = weights["head.bbox_pred.weight"].shape[1], len(towers)
    per_place = weights["head.bbox_pred.weight"].shape[0] // 4
    strides = (8, 16, 32, 64, 128)
    zoo = [[4.0 * stride * 2 ** (k / 3) for k in range(3)] for stride in strides]
    head.priors = parts.anchors(weights, keys, strides, zoo, per_place)
    head.coder = parts.coder(keys("MODEL.RETINANET.BBOX_REG_WEIGHTS", (1.0,) * 4))
    head.criterion.assigner.low_quality_keeps_best = True
    post = head.postprocess
    post.score_threshold = float(keys("MODEL.RETINANET.SCORE_THRESH_TEST", 0.05))
    post.candidates = int(keys("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 1000))
    post.nms = Config(GreedyNMS, iou=float(keys("MODEL.RETINANET.NMS_THRESH_TEST", 0.5)))
    post.max_detections = int(keys("TEST.DETECTIONS_PER_IMAGE", 100))
    post.clip_last = True
    return experiment, weights["head.cls_score.weight"].shape[0] // per_place


def two_stage(weights: Weights, keys: Keys) -> tuple[Config[Experiment], int]:
    """An R-CNN and the number of its classes."""
    keys.skip("MODEL.RETINANET")
    keys.expect("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    keys.expect("MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    keys.expect("MODEL.RPN.HEAD_NAME", "StandardRPNHead")
    pyramid = any(name.startswith("backbone.fpn_output") for name in weights)
    if pyramid:
        experiment, count = _on_pyramid(weights, keys)
    elif any(name.startswith("backbone.res5.") for name in weights):
        experiment, count = _on_c5(weights, keys)
    else:
        experiment, count = _on_c4(weights, keys)
    area, assigner = experiment.model.rpn.criterion.area, experiment.model.rpn.criterion.assigner
    area.allowed_border, assigner.min_positive_iou, assigner.low_quality_keeps_best = None, 0.0, True
    if experiment.model.roi.mask is not None:
        experiment.metrics = ("bbox", "segm")
    else:
        keys.skip("MODEL.ROI_MASK_HEAD")
    return experiment, count


def _on_pyramid(weights: Weights, keys: Keys) -> tuple[Config[Experiment], int]:
    keys.expect("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    keys.expect("MODEL.RESNETS.RES5_DILATION", 1)
    keys.expect("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"])
    keys.expect("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"])
    experiment = recipe_named("faster_rcnn_r50_fpn_1x")
    _backbone(experiment, weights, "backbone.bottom_up", keys)
    _pyramid(experiment, weights, (2, 3, 4, 5), keys)
    strides = (4, 8, 16, 32, 64)
    stages = len({m[1] for name in weights if (m := re.match(r"roi_heads\.box_predictor\.(\d)\.", name))})
    _proposals(experiment, weights, keys, strides, (2000, 2000 if stages else 1000, 1000))
    count = _regions(experiment, weights, keys, stages, levels=4)
    return experiment, count


def _on_c5(weights: Weights, keys: Keys) -> tuple[Config[Experiment], int]:
    keys.skip("MODEL.FPN")
    keys.expect("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    for part in ("RPN", "ROI_HEADS"):
        keys.expect(f"MODEL.{part}.IN_FEATURES", ["res5"])
    experiment = recipe_named("faster_rcnn_r50_caffe_dc5_1x")
    _backbone(experiment, weights, "backbone", keys)
    keys.expect("MODEL.RESNETS.RES5_DILATION", 1, 2)
    dilated = keys("MODEL.RESNETS.RES5_DILATION", 2) == 2
    backbone = experiment.model.backbone
    backbone.strides, backbone.dilations = (
        ((1, 2, 2, 1), (1, 1, 1, 2)) if dilated else ((1, 2, 2, 2), (1,) * 4)
    )
    _proposals(experiment, weights, keys, (16 if dilated else 32,), (12000, 2000, 6000))
    return experiment, _regions(experiment, weights, keys, 0, levels=1)


def _on_c4(weights: Weights, keys: Keys) -> tuple[Config[Experiment], int]:
    keys.skip("MODEL.FPN")
    keys.expect("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    keys.expect("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")
    keys.skip("MODEL.ROI_BOX_CASCADE_HEAD", "MODEL.ROI_BOX_HEAD.NAME")
    keys.expect("MODEL.RESNETS.RES5_DILATION", 1)
    for part in ("RPN", "ROI_HEADS"):
        keys.expect(f"MODEL.{part}.IN_FEATURES", ["res4"])
    experiment = recipe_named("faster_rcnn_r50_c4_1x")
    model = experiment.model
    arguments = _backbone(experiment, weights, "backbone", keys)
    _set(model.roi.stages[0].trunk.network, arguments | {"frozen_stages": 0, "frozen_stem": False})
    _proposals(experiment, weights, keys, (16,), (12000, 2000, 6000))
    size = int(keys("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14))
    count = _box_stage(model.roi.stages[0], weights, keys, "", (size, 1))
    model.roi.mask = _mask(weights, keys, 1)
    # Masks come from the regions that the box head has pooled, at half their side.
    keys.skip("MODEL.ROI_MASK_HEAD")
    model.roi.share_trunk = model.roi.mask is not None
    return experiment, count


def _set(config: Any, arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        setattr(config, name, value)


def _backbone(experiment: Config[Experiment], weights: Weights, body: str, keys: Keys) -> dict[str, Any]:
    """The backbone and its images; returns the arguments that were set."""
    arguments = parts.resnet_arguments(weights, body, keys)
    _set(experiment.model.backbone, arguments)
    experiment.model.normalise = parts.normalise(arguments, keys)
    return arguments


def _pyramid(experiment: Config[Experiment], weights: Weights, levels: tuple[int, ...], keys: Keys) -> None:
    found = tuple(i for i in range(10) if f"backbone.fpn_lateral{i}.weight" in weights)
    if found != levels:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES: the pyramid of these weights is made of levels {list(found)}; Boxwright "
            f"converts {list(levels)}"
        )
    keys.expect("MODEL.FPN.FUSE_TYPE", "sum")
    keys.expect("MODEL.FPN.IN_FEATURES", [f"res{level}" for level in levels])
    neck = experiment.model.neck
    neck.out_channels = weights[f"backbone.fpn_output{levels[0]}.weight"].shape[0]
    neck.norm = parts.norm_behind(weights, f"backbone.fpn_output{levels[0]}")


def _proposals(
    experiment: Config[Experiment],
    weights: Weights,
    keys: Keys,
    strides: tuple[int, ...],
    numbers: tuple[int, int, int],
) -> None:
    """The proposal network.

    `numbers` are the zoo's: of boxes before and behind suppression in training, and before it in tests.
    """
    model, rpn = experiment.model, experiment.model.rpn
    convs = [w for i in range(32) if (w := weights.get(f"{RPN}.conv.conv{i}.weight")) is not None]
    convs = convs or [weights[f"{RPN}.conv.weight"]]
    if len({w.shape[0] for w in convs}) != 1:
        raise ConfigError("MODEL.RPN.CONV_DIMS: the convolutions of these weights differ in their channels")
    rpn.channels, rpn.stem_convs = convs[0].shape[0], len(convs)
    sides = (32.0, 64.0, 128.0, 256.0, 512.0)
    zoo = [[side] for side in sides] if len(strides) > 1 else [sides]
    per_place = weights[f"{RPN}.objectness_logits.weight"].shape[0]
    rpn.priors = parts.anchors(weights, keys, strides, zoo, per_place)
    rpn.coder = parts.coder(keys("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0,) * 4))
    model.train_proposals = parts.proposals(keys, "TRAIN", *numbers[:2])
    rpn.postprocess = parts.proposals(keys, "TEST", numbers[2], 1000)


def _regions(experiment: Config[Experiment], weights: Weights, keys: Keys, stages: int, levels: int) -> int:
    """Box stages with layers of their own, and masks; returns the number of classes."""
    keys.expect("MODEL.ROI_HEADS.NAME", "CascadeROIHeads" if stages else "StandardROIHeads")
    keys.expect("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")
    conv = next(name for name in (f"{RPN}.conv.weight", f"{RPN}.conv.conv0.weight") if name in weights)
    channels = weights[conv].shape[1]
    roi, count = experiment.model.roi, 0
    cascade = overlaps = ()
    if stages:
        roi.average = Config(MeanScores)
        roi.stages = [faster_rcnn.box_head(levels=levels) for _ in range(stages)]
        cascade = keys("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", CASCADE_WEIGHTS)
        overlaps = keys("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6, 0.7))
        if not len(cascade) == len(overlaps) == stages:
            raise ConfigError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS has {len(cascade)} entries and "
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {len(overlaps)}, but the weights have {stages} stages"
            )
    for number, stage in enumerate(roi.stages):
        which = f".{number}" if stages else ""
        head = f"roi_heads.box_head{which}"
        stage.trunk = parts.box_trunk(weights, head)
        side = parts.pooled_side(weights, head, channels)
        keys.expect("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", side)
        count = _box_stage(stage, weights, keys, which, (side, levels))
        if stages:
            stage.coder = parts.coder(cascade[number])
            assigner = stage.criterion.assigner
            assigner.positive_iou = assigner.negative_iou = float(overlaps[number])
    keys.skip("MODEL.ROI_BOX_CASCADE_HEAD")
    roi.mask = _mask(weights, keys, levels)
    return count


def _box_stage(stage: Any, weights: Weights, keys: Keys, which: str, pooled: tuple[int, int]) -> int:
    """What all box stages have, pooled to a side from a number of levels; returns the number of classes."""
    keys.expect("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False)
    predictor = f"roi_heads.box_predictor{which}"
    count = weights[f"{predictor}.cls_score.weight"].shape[0] - 1
    boxes = weights[f"{predictor}.bbox_pred.weight"].shape[0] // 4
    if boxes not in (1, count):
        raise CheckpointError(f"{predictor}.bbox_pred has {boxes} boxes for {count} classes")
    stage.class_agnostic = boxes == 1
    stage.coder = parts.coder(keys("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0)))
    stage.extractor = parts.extractor(keys, "ROI_BOX_HEAD", pooled[1], pooled[0])
    lvis = count in LVIS_CLASSES
    post = stage.postprocess
    post.score_threshold = float(keys("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4 if lvis else 0.05))
    post.nms = Config(GreedyNMS, iou=float(keys("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5)))
    post.max_detections = int(keys("TEST.DETECTIONS_PER_IMAGE", 300 if lvis else 100))
    return count


def _mask(weights: Weights, keys: Keys, levels: int) -> Partial[MaskHead] | None:
    """The mask head, of which a cascade, too, has one."""
    name = "roi_heads.mask_head"
    if not any(key.startswith(f"{name}.") for key in weights):
        return None
    keys.expect("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    if f"{name}.deconv.weight" not in weights:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.NAME: {name} has no deconv, so it is no MaskRCNNConvUpsampleHead"
        )
    convs = sum(f"{name}.mask_fcn{i}.weight" in weights for i in range(1, 32))
    size = int(keys("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14))
    head = Partial(
        MaskHead,
        num_classes=common.COCO_CLASSES,
        extractor=parts.extractor(keys, "ROI_MASK_HEAD", levels, size),
        channels=weights[f"{name}.deconv.weight"].shape[1],
        convs=convs,
        norm=parts.norm_behind(weights, f"{name}.mask_fcn1"),
        class_agnostic=weights[f"{name}.predictor.weight"].shape[0] == 1,
    )
    return common.with_tag(head, "num_classes", NumClasses)
