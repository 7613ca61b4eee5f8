"""Files of MMDetection 2.x, and what stands beside the model in a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from boxwright.config import flatten
from boxwright.convert import convert_mmdetection, images, read_config
from boxwright.convert.checkpoint import _experiment
from boxwright.errors import ConfigError

BEFORE = """
norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(
    type='RetinaNet',
    pretrained='open-mmlab://resnet18',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='caffe'),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, start_level=1,
        add_extra_convs=True, extra_convs_on_inputs=False, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=32, stacked_convs=1, feat_channels=32,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)))
train_cfg = dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
    ignore_iof_thr=-1), allowed_border=-1, pos_weight=-1, debug=False)
test_cfg = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_thr=0.4),
    max_per_img=50)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(320, 192), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
        dict(type='Pad', size_divisor=64),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]
data = dict(test=dict(type='CocoDataset', pipeline=test_pipeline))
"""


def settings() -> dict[str, Any]:
    return read_config(BEFORE, "retinanet.py")


def test_settings_beside_the_model() -> None:
    experiment = _experiment(settings())
    values = flatten(experiment)
    assert values["model.head.postprocess.nms.iou"] == 0.4
    assert values["model.head.postprocess.max_detections"] == 50
    assert values["model.normalise.mean"] == (123.675, 116.28, 103.53)
    assert values["model.normalise.bgr"] is True
    assert values["model.neck.extra"] == "on_output"
    assert values["model.head.criterion.area.divisor"] == values["canvas.divisor"] == 64
    (resize,) = experiment.eval_transforms
    assert (resize.short, resize.long) == (192, 320)


def test_loops_of_3x_are_not_the_training_of_a_model() -> None:
    loops = {"train_cfg": {"type": "EpochBasedTrainLoop"}, "test_cfg": {"type": "TestLoop"}}
    with pytest.raises(ConfigError, match="no entry 'test_cfg'"):
        _experiment(settings() | loops)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "MultiScaleFlipAug", "img_scale": (1333, 800), "flip": True, "transforms": []}, "flip"),
        ({"type": "MultiScaleFlipAug", "img_scale": [(9, 9), (8, 8)], "transforms": []}, "2 scales"),
        ({"type": "Resize", "scale_factor": 2.0}, "scale is None"),
        ({"type": "Resize", "scale": (320, 320), "interpolation": "bicubic"}, "interpolation"),
        ({"type": "Resize", "scale": (320, 320), "surprise": 1}, "surprise"),
        ({"type": "Pad", "size": (640, 640)}, "size"),
        ({"type": "Pad", "size_divisor": 32, "pad_val": {"img": (114, 114, 114)}}, "pad_val"),
        ({"type": "CLAHE"}, r"test_pipeline\[0\] is a CLAHE"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_steps_of_a_pipeline_are_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images.resizing(images.test_steps({"test_pipeline": [step]}))


def test_the_pipeline_of_the_loader_is_the_one_that_runs() -> None:
    def steps(side: int, **more: Any) -> list[dict[str, Any]]:
        return [{"type": "mmdet.Resize", "scale": (side, side // 2), **more}]

    config = {"test_pipeline": steps(400), "test_dataloader": {"dataset": {"pipeline": steps(300)}}}
    (resize,) = images.resizing(images.test_steps(config)) or ()
    assert resize.size == (150, 300)
    (resize,) = images.resizing(images.test_steps({"test_pipeline": steps(400, keep_ratio=True)})) or ()
    assert (resize.short, resize.long) == (200, 400)
    assert images.resizing(images.test_steps({})) is None


def save(path: Path, text: str, **meta: Any) -> Path:
    torch.save({"meta": {"config": text, **meta}, "state_dict": {}}, path)
    return path


def test_a_configuration_that_names_others_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pth", "_base_ = './other.py'\nmodel = dict(type='RetinaNet')")
    with pytest.raises(ConfigError, match="give the resolved one"):
        convert_mmdetection(file, tmp_path / "ours")


def test_names_must_be_as_many_as_classes(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pth", BEFORE, CLASSES=("a", "b"))
    with pytest.raises(ConfigError, match="3 classes, but there are 2 names"):
        convert_mmdetection(file, tmp_path / "ours")
