"""Every setting of an MMDetection configuration is translated, or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from boxwright.config import build, flatten
from boxwright.convert import model_from_mmdetection
from boxwright.errors import ConfigError

Recorded = Callable[..., dict[str, Any]]

GN = {"type": "GN", "num_groups": 16}
RETINA, FASTER, CASCADE, MASK = "retinanet", "faster-rcnn_r50_fpn", "cascade", "mask-rcnn_r50_fpn_1x"
SIGMOID = {"type": "CrossEntropyLoss", "use_sigmoid": True}

REFUSED: list[tuple[str, str, Any, str]] = [
    # What changes the network.
    (RETINA, "backbone.stem_channels", 32, "backbone.stem_channels is 32"),
    (RETINA, "neck.act_cfg", {"type": "ReLU"}, "neck.act_cfg"),
    (RETINA, "neck.upsample_cfg", {"mode": "bilinear"}, "neck.upsample_cfg"),
    (RETINA, "neck.add_extra_convs", "on_top", "add_extra_convs is 'on_top'"),
    (RETINA, "bbox_head.loss_cls.use_sigmoid", ..., "loss_cls is a FocalLoss without use_sigmoid"),
    ("htc", "roi_head.semantic_fusion", ["mask"], "semantic_fusion"),
    (FASTER, "roi_head.bbox_head.with_avg_pool", True, "with_avg_pool is True"),
    (FASTER, "roi_head.bbox_head.cls_predictor_cfg", {"type": "NormedLinear"}, "cls_predictor_cfg"),
    (FASTER, "roi_head.bbox_head.loss_cls", SIGMOID, "use_sigmoid=True"),
    (FASTER, "roi_head.bbox_head.type", "ConvFCBBoxHead", "num_shared_convs=0 and num_shared_fcs=0"),
    ("ssd300", "neck.act_cfg", {"type": "ReLU6"}, "neck.act_cfg"),
    ("ssd300", "backbone.out_feature_indices", [15, 34], "out_feature_indices is"),
    ("yolov3", "backbone.act_cfg", {"type": "LeakyReLU", "negative_slope": 0.2}, "backbone.act_cfg"),
    ("yolov3", "neck.act_cfg", {"type": "ReLU"}, "neck.act_cfg"),
    ("faster-rcnn_hrnet", "backbone.extra.stage2.block", "BOTTLENECK", "stage2.block"),
    ("faster-rcnn_hrnet", "backbone.extra.stage3.num_channels", [18, 36, 80], "stage3.num_channels"),
    # Where anchors and regions lie.
    (RETINA, "bbox_head.anchor_generator.strides", [4, 8, 16, 32, 64], "anchor_generator.strides is"),
    (RETINA, "bbox_head.anchor_generator.strides", [8, 16, 32, 64], "has 4 entries for 5 levels"),
    (RETINA, "bbox_head.anchor_generator.strides", [[8, 16], 16, 32, 64, 128], "anchor_generator.strides is"),
    ("fcos", "bbox_head.strides", ..., r"bbox_head.strides is \[4, 8"),
    ("fcos", "bbox_head.regress_ranges", [[-1, 64], [60, 128]], "regress_ranges"),
    ("yolov3", "bbox_head.featmap_strides", [16, 8, 4], "featmap_strides"),
    ("yolov3", "bbox_head.anchor_generator.type", "AnchorGenerator", "anchor_generator is a AnchorGen"),
    ("ssd300", "bbox_head.anchor_generator.scale_major", ..., "scale_major"),
    ("ssd300", "bbox_head.anchor_generator.input_size", 320, "no default boxes for images of 320"),
    ("ga-rpn", "rpn_head.approx_anchor_generator.strides", [8, 16, 32, 64, 128], "strides"),
    (FASTER, "roi_head.bbox_roi_extractor.featmap_strides", [8, 16, 32, 64], "featmap_strides is"),
    (FASTER, "roi_head.bbox_roi_extractor.roi_layer.output_size", [7, 14], "output_size"),
    ("htc", "roi_head.semantic_roi_extractor.roi_layer.sampling_ratio", 2, "samples otherwise"),
    ("htc", "roi_head.semantic_roi_extractor.featmap_strides", [16], "semantic_roi_extractor.featmap"),
    # Images.
    (RETINA, "data_preprocessor.pad_value", 114, "pad_value is 114"),
    (RETINA, "data_preprocessor.mean", [0.5], "three channels"),
    # Training.
    (RETINA, "neck.norm_cfg", {"type": "BN", "requires_grad": False}, "requires_grad is False"),
    (RETINA, "bbox_head.loss_cls.reduction", "sum", "loss_cls.reduction is 'sum'"),
    (RETINA, "bbox_head.loss_bbox.reduction", "none", "loss_bbox.reduction"),
    (RETINA, "train_cfg.pos_weight", 2.0, "pos_weight is 2.0"),
    (RETINA, "train_cfg.assigner.iou_calculator", {"type": "BboxDistanceMetric"}, "iou_calculator is a"),
    (RETINA, "train_cfg.assigner.perm_repeat_gt_cfg", {"iou_thr": 0.7}, "perm_repeat_gt_cfg"),
    ("fcos", "bbox_head.loss_centerness.type", "FocalLoss", "loss_centerness is a FocalLoss"),
    ("atss", "train_cfg.sampler", {"type": "RandomSampler", "num": 1, "pos_fraction": 1}, "PseudoSampler"),
    ("yolov3", "bbox_head.one_hot_smoother", 0.1, "one_hot_smoother"),
    ("yolov3", "bbox_head.loss_conf.reduction", ..., "loss_conf.reduction"),
    ("yolov3", "bbox_head.loss_xy.use_sigmoid", False, "loss_xy.use_sigmoid"),
    ("yolov3", "backbone.frozen_stages", 1, "frozen_stages=1"),
    (MASK, "roi_head.mask_head.loss_mask.use_mask", ..., "use_mask"),
    (MASK, "roi_head.mask_head.loss_mask.type", "DiceLoss", "loss_mask is a DiceLoss"),
    ("htc", "roi_head.semantic_head.ignore_label", 0, "ignore_label"),
    ("dynamic", "train_cfg.rcnn.dynamic_rcnn.initial_beta", 0.7, "initial_beta is 0.7"),
    (CASCADE, "roi_head.stage_loss_weights", [1, 1], "stage_loss_weights has 2"),
    (CASCADE, "roi_head.num_stages", 2, "has 3 entries for 2 stages"),
    # Testing.
    (RETINA, "test_cfg.nms.class_agnostic", True, "nms.class_agnostic is True"),
    (RETINA, "test_cfg.nms.max_num", 10, "nms.max_num"),
    (RETINA, "test_cfg.nms.iou_threshold", ..., "no entry 'iou_threshold'"),
    (RETINA, "test_cfg.max_per_img", -1, "max_per_img is -1"),
    (FASTER, "test_cfg.rcnn.max_per_img", -1, "max_per_img is -1"),
    (FASTER, "test_cfg.rpn.nms_across_levels", True, "nms_across_levels"),
    ("ga-rpn", "test_cfg.rpn.nms_post", 100, "nms_post is 100"),
    (MASK, "test_cfg.rcnn.mask_thr_binary", 0.3, "mask_thr_binary is 0.3"),
]


@pytest.mark.parametrize(("name", "path", "value", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_would_change_the_results_is_refused_by_its_name(
    recorded: Recorded, name: str, path: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_from_mmdetection(recorded(name, {path: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.depth": 18, "backbone.dilations": [1, 1, 1, 2]}, "dilations"),
        ({"backbone.norm_cfg.requires_grad": False, "backbone.norm_eval": False}, "requires_grad is False"),
    ],
)
def test_two_settings_that_do_not_go_together(
    recorded: Recorded, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_from_mmdetection(recorded(RETINA, changes))


TRANSLATED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (RETINA, {"neck.add_extra_convs": True}, {"neck.extra": "on_input"}),
    # 2.x: from which end the extra levels of add_extra_convs=True are made.
    (
        RETINA,
        {"neck.add_extra_convs": True, "neck.extra_convs_on_inputs": False},
        {"neck.extra": "on_output"},
    ),
    (FASTER, {"neck.relu_before_extra_convs": True}, {"neck.relu_before_extra": False}),
    (RETINA, {"neck.relu_before_extra_convs": True}, {"neck.relu_before_extra": True}),
    (RETINA, {"backbone.depth": 34, "backbone.style": "caffe"}, {"backbone.style": "pytorch"}),
    (RETINA, {"test_cfg.nms": {"type": "soft_nms"}}, {"head.postprocess.nms.iou": 0.3}),
    (
        RETINA,
        {"test_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 7}},
        {
            "head.postprocess.score_threshold": 0.0,
            "head.postprocess.min_side": -1.0,
            "head.postprocess.candidates": 2**31 - 1,
            "head.postprocess.max_detections": 7,
        },
    ),
    (RETINA, {"train_cfg.assigner.ignore_iof_thr": 0.3}, {"head.criterion.assigner.ignore_iof": 0.3}),
    (
        RETINA,
        {"data_preprocessor.bgr_to_rgb": False, "data_preprocessor.rgb_to_bgr": True},
        {"normalise.bgr": False, "normalise.mean": (123.675, 116.28, 103.53)},
    ),
    (RETINA, {"data_preprocessor.pad_size_divisor": ...}, {"head.criterion.area.divisor": 1}),
    (
        "rpn",
        {"rpn_head.anchor_generator.center_offset": 0.5},
        {"head.priors.offset": 0.5, "head.criterion.area.offset": 0.5},
    ),
    (
        "fcos",
        {"bbox_head.regress_ranges": [[-1, 32], [32, 64], [64, 128], [128, 256], [256, 1e8]]},
        {"head.criterion.assigner.limits": (0.0, 32.0, 64.0, 128.0, 256.0, math.inf)},
    ),
    ("yolov3", {"backbone.frozen_stages": 3}, {"backbone.frozen_stages": 2}),
    (FASTER, {"backbone.frozen_stages": 0}, {"backbone.frozen_stages": 0, "backbone.frozen_stem": True}),
    ("yolov3", {"bbox_head.bbox_coder.eps": 1e-4}, {"head.coder.eps": 1e-4}),
    (
        FASTER,
        {"train_cfg.rcnn.sampler": {"type": "PseudoSampler"}},
        {"roi.stages.0.criterion.add_ground_truth": False},
    ),
    (
        FASTER,
        {
            "roi_head.bbox_head.reg_decoded_bbox": True,
            "roi_head.bbox_head.loss_bbox": {"type": "CIoULoss", "loss_weight": 12.0},
        },
        {"roi.stages.0.criterion.box_loss.weight": 12.0, "roi.stages.0.criterion.box_loss.eps": 1e-6},
    ),
    (
        FASTER,
        {"roi_head.bbox_roi_extractor.roi_layer": {"type": "RoIAlign", "out_size": 5, "sample_num": 2}},
        {"roi.stages.0.extractor.size": 5, "roi.stages.0.extractor.sampling_ratio": 2},
    ),
    (
        FASTER,
        {"roi_head.bbox_roi_extractor.roi_layer.output_size": [5, 5]},
        {"roi.stages.0.extractor.size": 5},
    ),
    (
        FASTER,
        {
            "test_cfg.rpn": {
                "nms_across_levels": False,
                "nms_pre": 900,
                "nms_post": 800,
                "max_num": 700,
                "nms_thr": 0.6,
                "min_bbox_size": 2,
            }
        },
        {
            "rpn.postprocess.candidates": 900,
            "rpn.postprocess.max_detections": 700,
            "rpn.postprocess.nms.iou": 0.6,
            "rpn.postprocess.min_side": 2.0,
        },
    ),
]


@pytest.mark.parametrize(("name", "changes", "expected"), TRANSLATED, ids=lambda v: str(v)[:50])
def test_settings_are_translated(
    recorded: Recorded, name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    values = flatten(model_from_mmdetection(recorded(name, changes)))
    assert {key: values[key] for key in expected} == expected


def test_norms_keep_their_numbers(recorded: Recorded) -> None:
    changes = {
        "backbone.depth": 18,
        "neck.in_channels": [64, 128, 256, 512],
        "neck.norm_cfg": GN | {"eps": 0.1},
    }
    made = recorded(RETINA, changes | {"backbone.norm_cfg": {"type": "BN", "eps": 0.01, "momentum": 0.03}})
    model = build(model_from_mmdetection(made))
    assert (model.backbone.bn1.eps, model.backbone.bn1.momentum) == (0.01, 0.03)
    assert (model.neck.outputs[0].norm.eps, model.neck.outputs[0].norm.num_groups) == (0.1, 16)


def test_one_head_is_that_of_all_stages(recorded: Recorded) -> None:
    alone = recorded(CASCADE)
    alone["roi_head"]["bbox_head"] = alone["roi_head"]["bbox_head"][0]
    stages = build(model_from_mmdetection(alone)).roi.stages
    assert len(stages) == 3
    assert {stage.coder.stds for stage in stages} == {(0.1, 0.1, 0.2, 0.2)}


def test_norms_of_htc_masks_are_those_of_their_flow_too(recorded: Recorded) -> None:
    model = recorded("htc", {"backbone.depth": 18, "neck.in_channels": [64, 128, 256, 512]})
    for head in model["roi_head"]["mask_head"]:
        head["norm_cfg"] = GN
    roi = build(model_from_mmdetection(model)).roi
    assert roi.flow["1"].norm.num_groups == roi.mask["1"].convs[0].norm.num_groups == 16
