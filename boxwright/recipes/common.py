"""Descriptions that recipes share: data, schedules and parts that several papers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiddle as fdl
from fiddle import Config, Partial

from ..config import Norm, Pretrained
from ..data import folder
from ..data.canvas import Canvas
from ..data.transforms import HorizontalFlip, PhotometricDistortion, RandomCrop, Resize
from ..engine.optim import sgd
from ..engine.schedule import CosineSchedule, StepSchedule
from ..models.backbones.resnet import ResNet
from ..models.backbones.timm import TimmBackbone
from ..models.detectors import OneStageDetector
from ..models.necks.fpn import FPN
from .experiment import Experiment

COCO_CLASSES = 80


def with_tag(config: Any, argument: str, tag: type[fdl.Tag]) -> Any:
    """The same description, one argument tagged, so that `set_tagged` finds it."""
    fdl.add_tag(config, argument, tag)
    return config


def resnet(depth: int = 50, **arguments: Any) -> Config[ResNet]:
    """ResNet from ImageNet weights: stem and first stage frozen, norms' statistics kept."""
    config = Config(ResNet, depth=depth, weights="torchvision", **arguments)
    return with_tag(with_tag(config, "weights", Pretrained), "norm", Norm)


def resnext(recipe: Config[Experiment], groups: int, depth: int = 101, width: int = 4) -> Config[Experiment]:
    """Exchange a recipe's ResNet for a ResNeXt (arXiv:1611.05431, Sec. 3.3) of that many groups."""
    backbone = recipe.model.backbone
    backbone.depth, backbone.groups, backbone.width_per_group = depth, groups, width
    if (depth, groups, width) == (101, 32, 4):  # torchvision has no weights of this one
        backbone.weights = "timm:resnext101_32x4d.gluon_in1k"
    return recipe


def mobilenet_v2(first_stride: int = 8) -> Config[TimmBackbone]:
    """Timm's MobileNetV2 1.0 (arXiv:1801.04381) from ImageNet weights, from a stride to 32.

    Its norms keep their statistics, which small batches would spoil, and train scale and shift.
    """
    config = Config(TimmBackbone, "mobilenetv2_100", min_stride=first_stride, weights="timm", norm_eval=True)
    return with_tag(config, "weights", Pretrained)


def fpn(
    start_level: int = 0, extra: str | None = "pool", channels: int = 256, outs: int = 5, **more: Any
) -> fdl.Partial[FPN]:
    """Feature pyramid network (arXiv:1612.03144)."""
    return Partial(FPN, out_channels=channels, start_level=start_level, num_outs=outs, extra=extra, **more)


def schedule_1x(model: Config, *, lr: float, metrics: Sequence[str] = ("bbox",)) -> Config[Experiment]:
    """The field's "1x" on COCO: 12 epochs of 16 images at 800 x 1333, learning rate / 10 after 8 and 11."""
    return Config(
        Experiment,
        model=model,
        data=Config(folder),
        train_transforms=[Config(Resize, short=800, long=1333), Config(HorizontalFlip)],
        eval_transforms=[Config(Resize, short=800, long=1333)],
        canvas=Config(Canvas, shapes=((800, 1344), (1344, 800), (1344, 1344))),
        batch_size=16,
        base_batch_size=16,
        optimizer=Partial(sgd, lr=lr, momentum=0.9, weight_decay=1e-4),
        schedule=Config(StepSchedule, milestones=(8, 11)),
        epochs=12,
        metrics=tuple(metrics),
    )


def schedule_2x(recipe: Config[Experiment]) -> Config[Experiment]:
    """Twice as long: 24 epochs, learning rate / 10 after 16 and 22."""
    recipe.epochs = 24
    recipe.schedule.milestones = (16, 22)
    return recipe


def small_320(model: Config, *, lr: float, metrics: Sequence[str] = ("bbox",)) -> Config[Experiment]:
    """A training for two CPU cores: images of at most 320 pixels, 8 a step, a cosine schedule.

    Crops, colours and the average of the weights are for the small data sets that fit such a machine.
    """
    return Config(
        Experiment,
        model=model,
        data=Config(folder),
        train_transforms=[
            Config(RandomCrop, scale=(0.5, 1.0)),
            Config(Resize, short=320, long=320),
            Config(HorizontalFlip),
            Config(
                PhotometricDistortion,
                brightness=24.0,
                contrast=(0.7, 1.3),
                saturation=(0.7, 1.3),
                hue=9.0,
                permute=False,
            ),
        ],
        eval_transforms=[Config(Resize, short=320, long=320)],
        canvas=Config(Canvas, shapes=((256, 320), (320, 256), (320, 320))),
        batch_size=8,
        base_batch_size=8,
        optimizer=Partial(sgd, lr=lr, momentum=0.9, weight_decay=1e-4, norm_decay=0.0),
        schedule=Config(CosineSchedule, usual_warmup=100),
        epochs=30,
        ema_decay=0.998,
        clip_norm=10.0,
        metrics=tuple(metrics),
    )


def dense_320(head: Any, *, lr: float) -> Config[Experiment]:
    """A dense head of 128 channels, two convolutions a tower, on MobileNetV2 and a pyramid, at 320 pixels."""
    head.channels, head.tower_convs = 128, 2
    model = Config(
        OneStageDetector,
        backbone=mobilenet_v2(first_stride=8),
        neck=fpn(extra="on_output", channels=128, outs=4),
        head=head,
    )
    return small_320(model, lr=lr)
