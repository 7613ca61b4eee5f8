"""YOLOv3 (Redmon and Farhadi, arXiv:1804.02767), with the losses and schedules of MMDetection.

The paper adds Darknet-53 (`models/backbones/darknet.py`), predictions at three scales
(`models/necks/yolo.py`, `models/dense_heads/yolo.py`), anchors clustered for each (`models/priors/sized.py`),
places within grid cells (`models/coders/grid.py`, `models/assigners/grid.py`) and an objectness that all
negatives train (`Objectness` in `models/dense_heads/criterion.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from fiddle import Config, Partial

from ..config import Norm, NumClasses, Pretrained
from ..data import folder
from ..data.canvas import Canvas
from ..data.transforms import (
    Expand,
    HorizontalFlip,
    MinIoURandomCrop,
    PhotometricDistortion,
    Resize,
    ResizeByRange,
)
from ..engine.optim import sgd
from ..engine.schedule import StepSchedule
from ..models.assigners import GridAssigner
from ..models.backbones import Darknet
from ..models.coders import GridCoder
from ..models.dense_heads import DenseCriterion, DensePostprocess, Objectness, Summed, YOLOHead
from ..models.detectors import Normalise, OneStageDetector
from ..models.losses import BinaryCrossEntropy, GridCodeLoss
from ..models.necks import YOLONeck
from ..models.priors import SizedAnchors
from ..models.suppression import GreedyNMS
from . import common
from .experiment import Experiment

Sizes = tuple[tuple[tuple[float, float], ...], ...]

COCO_ANCHORS: Sizes = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Clusters of COCO's boxes in images of 416 px, for the strides 8, 16 and 32 (Sec. 2.3)."""
COCO_ANCHORS_320: Sizes = (
    ((10, 15), (24, 36), (72, 42)),
    ((35, 87), (102, 96), (60, 170)),
    ((220, 125), (128, 222), (264, 266)),
)
"""Those of MMDetection's MobileNetV2 at 320 px."""


def head(anchors: Sizes = COCO_ANCHORS, channels: Sequence[int] | None = None) -> Partial[YOLOHead]:
    """Objectness on all priors, class and box on positives only; losses are summed, not divided (Sec. 2)."""
    config = Partial(
        YOLOHead,
        num_classes=common.COCO_CLASSES,
        priors=Config(SizedAnchors, sizes=anchors),
        coder=Config(GridCoder),
        criterion=Config(
            DenseCriterion,
            # MMDetection's settings, which the field's results have been trained with.
            assigner=Config(GridAssigner, ignore_iou=0.5, positive_iou=0.5, shared_cells=True),
            class_loss=Config(BinaryCrossEntropy),
            class_negatives=False,
            code_loss=Config(GridCodeLoss),
            quality=Config(Objectness),
            divisor=Config(Summed),
        ),
        postprocess=Config(
            DensePostprocess,
            score_threshold=0.05,
            quality_threshold=0.005,
            candidates_of="image",
            nms=Config(GreedyNMS, iou=0.45),
        ),
        channels=channels,
    )
    return common.with_tag(common.with_tag(config, "num_classes", NumClasses), "norm", Norm)


def schedule_273(model: Config, resize: Config, size: int, canvas: Config[Canvas]) -> Config[Experiment]:
    """273 epochs of 64 images, learning rate 0.001, a tenth of it after 218 and again after 246.

    MMDetection sums the loss of the 8 images of a GPU and takes the mean over 8 GPUs; here it is the sum over
    all 64. The clipping makes the steps equal where both gradients are longer than `clip_norm`.
    """
    return Config(
        Experiment,
        model=model,
        data=Config(folder),
        train_transforms=[
            Config(Expand, max_ratio=2.0, fill=(0, 0, 0)),
            Config(MinIoURandomCrop, min_ious=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
            resize,
            Config(HorizontalFlip),
            Config(PhotometricDistortion),
        ],
        eval_transforms=[Config(Resize, short=size, long=size)],
        canvas=canvas,
        batch_size=64,
        base_batch_size=64,
        optimizer=Partial(sgd, lr=0.001, momentum=0.9, weight_decay=5e-4),
        schedule=Config(StepSchedule, milestones=(218, 246), usual_warmup=2000, warmup_ratio=0.1),
        epochs=273,
        evaluate_every=7,
        clip_norm=35.0,
    )


def darknet_model() -> Config[OneStageDetector]:
    """Darknet-53 with the three levels of Sec. 2.3; pixels are divided by 255."""
    # The file that MMDetection publishes; no library has weights of this network.
    backbone = Config(
        Darknet, weights="https://download.openmmlab.com/pretrain/third_party/darknet53-a628ea1b.pth"
    )
    return Config(
        OneStageDetector,
        backbone=common.with_tag(common.with_tag(backbone, "weights", Pretrained), "norm", Norm),
        neck=common.with_tag(Partial(YOLONeck), "norm", Norm),
        head=head(),
        normalise=Config(Normalise, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    )


def yolov3_d53_320() -> Config[Experiment]:
    """YOLOv3, Darknet-53, 320 pixels, 273 epochs on COCO."""
    canvas = Config(Canvas, shapes=((256, 320), (320, 256), (320, 320)))
    return schedule_273(darknet_model(), Config(Resize, short=320, long=320), 320, canvas)


def yolov3_d53_416() -> Config[Experiment]:
    """YOLOv3, Darknet-53, trained at 320 to 416 pixels and tested at 416, 273 epochs on COCO."""
    resize = Config(ResizeByRange, shorts=(320, 416), long=(320, 416))
    canvas = Config(Canvas, shapes=((320, 416), (416, 320), (416, 416)))
    return schedule_273(darknet_model(), resize, 416, canvas)


def yolov3_d53_608() -> Config[Experiment]:
    """YOLOv3, Darknet-53, trained at 320 to 608 pixels and tested at 608, 273 epochs on COCO."""
    resize = Config(ResizeByRange, shorts=(320, 608), long=(320, 608))
    canvas = Config(Canvas, shapes=((480, 608), (608, 480), (608, 608)))
    return schedule_273(darknet_model(), resize, 608, canvas)


def yolov3_mnv2_320() -> Config[Experiment]:
    """YOLOv3 with MobileNetV2 at 320 pixels, for two CPU cores; levels of 96 channels."""
    model = Config(
        OneStageDetector,
        backbone=common.mobilenet_v2(first_stride=8),
        neck=common.with_tag(Partial(YOLONeck, out_channels=(96, 96, 96)), "norm", Norm),
        head=head(COCO_ANCHORS_320, channels=(96, 96, 96)),
    )
    recipe = common.small_320(model, lr=0.003)
    recipe.clip_norm = 35.0
    return recipe
