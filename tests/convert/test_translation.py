"""Configurations of MMDetection: what is translated, and what is refused."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call
from torch import nn

import boxwright as bw
from boxwright.config import build, flatten
from boxwright.convert import convert_mmdetection, model_from_mmdetection, read_config
from boxwright.errors import CheckpointError, ConfigError
from boxwright.interop.coco_labels import COCO
from boxwright.models.layers import FrozenBatchNorm2d
from boxwright.models.losses import GIoULoss

RETINANET = """
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=64, start_level=1,
        add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=64, stacked_convs=1, feat_channels=64,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        reg_decoded_bbox=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
            ignore_iof_thr=-1), sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1,
        debug=False),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05,
        nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.01), max_per_img=50))
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(320, 192), keep_ratio=True),
    dict(type='PackDetInputs'),
]
load_from = None
lr = 1e-2
"""


@pytest.fixture
def model() -> dict[str, Any]:
    return copy.deepcopy(read_config(RETINANET, "retinanet.py")["model"])


def test_settings_come_through(model: dict[str, Any]) -> None:
    values = flatten(model_from_mmdetection(model))
    assert values["backbone.depth"] == 18
    assert values["backbone.norm"] is FrozenBatchNorm2d
    assert values["normalise.mean"] == (123.675, 116.28, 103.53)
    assert values["normalise.bgr"] is True
    assert values["head.criterion.box_loss.weight"] == 2.0
    assert values["head.criterion.code_loss"] is None
    assert values["head.postprocess.nms.min_score"] == 0.01
    assert values["head.postprocess.max_detections"] == 50
    made = build(model_from_mmdetection(model))
    assert isinstance(made.head.criterion.box_loss, GIoULoss)
    assert isinstance(made.backbone.bn1, FrozenBatchNorm2d)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("backbone", "type"), "SwinTransformer", "model.backbone is a SwinTransformer"),
        (("backbone", "surprise"), 3, "without a counterpart here: surprise=3"),
        (("neck", "type"), "NASFPN", "model.neck is a NASFPN"),
        (("neck", "end_level"), 2, "model.neck.end_level is 2"),
        (("bbox_head", "loss_bbox", "type"), "EIoULoss", "loss_bbox is a EIoULoss"),
        (("bbox_head", "reg_decoded_bbox"), False, "a loss of boxes, but reg_decoded_bbox is False"),
        (("bbox_head", "bbox_coder", "target_means"), [0.0, 0.0, 0.1, 0.0], "target_means"),
        (("train_cfg", "assigner", "neg_iou_thr"), (0.1, 0.4), "lower bound"),
        (("test_cfg", "nms", "type"), "matrix_nms", "nms is a matrix_nms"),
        (("type",), "DETR", "model is a DETR"),
        (("data_preprocessor",), None, "img_norm_cfg"),
    ],
)
def test_what_we_do_not_have_is_named(
    model: dict[str, Any], path: tuple[str, ...], value: Any, message: str
) -> None:
    *parents, last = path
    place = model
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        model_from_mmdetection(model)


def test_a_configuration_is_read_without_running_it() -> None:
    assert read_config("a = dict(x=[1, -2.5, 1 / 4], y={'k': None}, z=(True, 'é'))", "c")["a"] == {
        "x": [1, -2.5, 0.25], "y": {"k": None}, "z": (True, "é"),
    }  # fmt: skip
    assert read_config("import os\nother = os.getcwd()\nb = 1", "c") == {"b": 1}
    with pytest.raises(ConfigError, match=r"line 2.*no literal"):
        read_config("base = 1\nmodel = dict(type=__import__('os').system('true'))", "c")
    with pytest.raises(ConfigError, match="not a configuration written as Python"):
        read_config("model = dict(", "c")


def mmdetection_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of ours under MMDetection's names, for this one architecture."""
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("head.class_tower.0.conv", "bbox_head.cls_convs.0.conv"),
            ("head.box_tower.0.conv", "bbox_head.reg_convs.0.conv"),
            ("head.class_predictor", "bbox_head.retina_cls"),
            ("head.box_predictor", "bbox_head.retina_reg"),
            ("neck.laterals", "neck.lateral_convs"),
            ("neck.outputs", "neck.fpn_convs"),
            ("neck.extras.0", "neck.fpn_convs.3"),
            ("neck.extras.1", "neck.fpn_convs.4"),
        ):
            if name.startswith(f"{ours}."):
                name = theirs + name[len(ours) :]
        renamed[name] = value
    return renamed


class Secret:
    """Something whose class must not be imported to read the weights."""

    def __reduce__(self):
        return partial, (print, "this must not run")


def test_a_checkpoint_becomes_a_detector(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    ours = build(model_from_mmdetection(read_config(RETINANET, "c")["model"]))
    file = tmp_path / "theirs.pth"
    meta = {"cfg": RETINANET, "dataset_meta": {"classes": ("a", "b", "c")}, "hook": Secret()}
    torch.save({"meta": meta, "state_dict": mmdetection_names(ours), "optimizer": Secret()}, file)
    done = convert_mmdetection(file, tmp_path / "ours.safetensors")
    assert "must not run" not in capfd.readouterr().out
    assert done.label_map.names == ("a", "b", "c")
    assert len(done.report.names) == len(ours.state_dict())
    assert call("convert", file, f"out={tmp_path / 'again'}") == 0
    said = capfd.readouterr().out
    count = len(done.report.names)
    assert f"matched     {count} entries; none missing, unexpected or reshaped" in said
    assert "classes     3: a, b, c" in said
    detector = bw.load(tmp_path / "again.safetensors")
    assert detector.label_map.names == ("a", "b", "c")
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(detector.model.state_dict()[name].contiguous(), value)
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    assert detector(image).size == (60, 90)
    assert detector._sample(image, 0)["image"].shape[-2:] == (192, 288)


def test_leftovers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = build(model_from_mmdetection(read_config(RETINANET, "c")["model"]))
    state = mmdetection_names(ours)
    state["bbox_head.mystery.weight"] = torch.zeros(1)
    del state["bbox_head.retina_cls.bias"]
    file = tmp_path / "theirs.pth"
    torch.save({"meta": {"cfg": RETINANET}, "state_dict": state}, file)
    assert call("convert", file, f"out={tmp_path / 'ours.safetensors'}") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 unexpected: no rule knows bbox_head.mystery.weight" in said
    assert "1 missing: the source does not have head.class_predictor.bias" in said
    assert not (tmp_path / "ours.safetensors").exists()
    torch.save({"state_dict": state}, file)
    with pytest.raises(ConfigError, match="holds no configuration"):
        convert_mmdetection(file, tmp_path / "ours.safetensors")
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint: .* files of torch\.save"):
        convert_mmdetection(file, tmp_path / "ours.safetensors")
    own = file.rename(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="in the format of Boxwright's own checkpoints"):
        convert_mmdetection(own, tmp_path / "ours.safetensors")


def test_cocos_classes_keep_their_numbers() -> None:
    assert len(COCO) == 80
    assert COCO.source_ids[COCO.index("toothbrush")] == 90
    assert COCO.source_ids[COCO.index("stop sign")] == 13
