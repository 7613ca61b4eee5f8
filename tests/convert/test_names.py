"""Names of MMDetection's configurations, in the spelling of 3.x and of 2.x."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from boxwright.config import Pretrained, build, flatten, set_tagged
from boxwright.convert import model_from_mmdetection, recipe_of_mmdetection
from boxwright.errors import ConfigError
from boxwright.models.layers import ModulatedDeformConv2d, biased

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
RECORDS = sorted(path for path in GOLDEN.glob("*.gz") if not path.name.startswith("detectron2_"))
NAMES = (Path(__file__).parent / "names.txt").read_text().split()


@pytest.mark.parametrize("name", NAMES)
def test_published_names_are_known(name: str) -> None:
    """Every configuration of MMDetection 3.3 in the folders of these methods that converts; some of 2.x."""
    assert recipe_of_mmdetection(name).model is not None


@pytest.mark.parametrize(
    "name", ["detr_r50_8xb2-150e_coco", "retinanet_swin-t_fpn_1x_coco", "faster-rcnn_r50_pafpn_1x"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        recipe_of_mmdetection(name)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_name_and_configuration_lead_to_the_same_network(path: Path) -> None:
    name = path.name.removesuffix(".json.gz")
    record = json.loads(gzip.decompress(path.read_bytes()))
    by_name = recipe_of_mmdetection(name).model
    set_tagged(by_name, Pretrained, None)
    shapes = [
        {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
        for config in (by_name, model_from_mmdetection(record["model"]))
    ]
    assert shapes[0] == shapes[1]


RGB_IN_BGR_ORDER = {"normalise.bgr": True, "normalise.std": (58.395, 57.12, 57.375)}
CAFFE = {"normalise.bgr": True, "normalise.std": (1.0, 1.0, 1.0), "normalise.mean": (123.675, 116.28, 103.53)}
AS_TORCHVISION = {"normalise.bgr": None, "normalise": None}
IMPROVED = {
    "head.coder.in_strides": True,
    "head.quality_branch": "box",
    "head.criterion.assigner.centre_radius": 1.5,
    "head.criterion.box_loss.weight": 1.0,
    "head.postprocess.nms.iou": 0.6,
    "head.conv": biased,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fcos_r50-caffe_fpn_gn-head-center_1x_coco", {"normalise.mean": (122.7717, 115.9465, 102.9801)}),
        ("fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco", IMPROVED | CAFFE),
        (
            "fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco",
            IMPROVED | {"head.last_conv.conv": ModulatedDeformConv2d, "backbone.conv3x3.0": None},
        ),
        (
            "fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco",
            IMPROVED | AS_TORCHVISION | {"backbone.depth": 18, "backbone.style": "pytorch"},
        ),
        (
            "fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco",
            AS_TORCHVISION | {"backbone.norm": nn.BatchNorm2d},
        ),
        ("fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco", RGB_IN_BGR_ORDER | {"neck.stride": 2}),
        ("gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco", {"backbone.conv3x3.1": None}),
        ("mask-rcnn_r50_fpn_gn-all_2x_coco", CAFFE),
        ("mask-rcnn_r50-contrib_fpn_gn-all_2x_coco", AS_TORCHVISION),
        ("mask_rcnn_r50_fpn_gn-all_contrib_2x_coco", AS_TORCHVISION),
        ("faster-rcnn_r101-caffe_fpn_ms-3x_coco", AS_TORCHVISION | {"backbone.style": "caffe"}),
        ("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person-bicycle-car", {"roi.stages.0.num_classes": 3}),
        ("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person", {"roi.stages.0.num_classes": 1}),
        ("rpn_r50-caffe-c4_1x_coco", {"head.postprocess.max_detections": 2000}),
        (
            "mask-rcnn_r50-caffe_fpn_poly-1x_coco_v1",
            {"roi.mask.extractor.aligned": False, "rpn.criterion.code_loss.beta": 1 / 9},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_published_under_a_name(name: str, expected: dict[str, Any]) -> None:
    """Settings that the shapes of the weights do not show, as MMDetection's configuration has them."""
    values = flatten(recipe_of_mmdetection(name).model)
    assert {key: values.get(key) for key in expected} == expected


def test_words_change_the_recipe() -> None:
    values = flatten(recipe_of_mmdetection("mask-rcnn_x101-32x8d_fpn_ms-poly-3x_coco").model)
    assert (values["backbone.depth"], values["backbone.groups"], values["backbone.width_per_group"]) == (
        101,
        32,
        8,
    )
    assert values["normalise.bgr"] is True
    assert recipe_of_mmdetection("rpn_r50_fpn_2x_coco").epochs == 24
    assert recipe_of_mmdetection("htc_hrnetv2p-w40_28e_coco").schedule.milestones == (24, 27)
