"""SSD (Liu et al., SSD: Single Shot MultiBox Detector, arXiv:1512.02325).

The paper adds levels behind the backbone that grow ever coarser (`models/necks/ssd.py`), default boxes by
level (`models/priors/ssd_anchors.py`), predictors of each level's own (`models/dense_heads/per_level.py`),
hard negative mining (`models/samplers/hard_negative.py`), and crops and zooms of the images
(`data/transforms/crop.py`).
"""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..config import NumClasses, Pretrained
from ..data import folder
from ..data.canvas import Canvas
from ..data.transforms import Expand, HorizontalFlip, MinIoURandomCrop, PhotometricDistortion, ResizeFixed
from ..engine.optim import sgd
from ..engine.schedule import StepSchedule
from ..models.assigners import MaxIoUAssigner
from ..models.backbones.vgg import VGG
from ..models.coders import DeltaCoder
from ..models.dense_heads import DenseCriterion, DensePostprocess, PerLevelHead
from ..models.detectors import Normalise, OneStageDetector
from ..models.layers import group_norm
from ..models.losses import CrossEntropy, SmoothL1
from ..models.necks.ssd import SSDNeck
from ..models.priors import SSDAnchors, TrainableArea, ssd_sizes
from ..models.samplers import HardNegativeSampler
from ..models.suppression import GreedyNMS
from . import common
from .experiment import Experiment

TWO, FOUR = (2.0,), (2.0, 3.0)
"""Oblong boxes of a level: of ratio 2, or of 2 and 3, each lying and upright (Sec. 3, Sec. 3.1)."""
RGB_MEAN = (123.675, 116.28, 103.53)


def head(priors: Config[SSDAnchors], **layers: Any) -> Partial[PerLevelHead]:
    """Softmax and smooth L1 over the matched boxes and three times as many negatives (Sec. 2.2, Eq. 1-3)."""
    config = Partial(
        PerLevelHead,
        num_classes=common.COCO_CLASSES,
        priors=priors,
        coder=Config(DeltaCoder, stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=Config(
            DenseCriterion,
            assigner=Config(MaxIoUAssigner, match_low_quality=True, low_quality_ties=False),
            sampler=Config(HardNegativeSampler),
            class_loss=Config(CrossEntropy),
            code_loss=Config(SmoothL1),
            area=Config(TrainableArea, divisor=1, offset=0.5),
        ),
        postprocess=Config(
            DensePostprocess, score_threshold=0.02, nms=Config(GreedyNMS, iou=0.45), max_detections=200
        ),
        **layers,
    )
    return common.with_tag(config, "num_classes", NumClasses)


def vgg_experiment(side: int, neck: Partial[SSDNeck], priors: Config[SSDAnchors]) -> Config[Experiment]:
    """VGG-16 on images stretched to a square, and the paper's augmentation (Sec. 2.2, 3.6).

    120 epochs of batches of 64, learning rate 0.002, a tenth of it from 80 and 110 on, as MMDetection trains.
    """
    backbone = Config(VGG, weights="VGG16_Weights.IMAGENET1K_FEATURES")
    model = Config(
        OneStageDetector,
        backbone=common.with_tag(backbone, "weights", Pretrained),
        neck=neck,
        head=head(priors),
        normalise=Config(Normalise, mean=RGB_MEAN, std=(1.0, 1.0, 1.0)),
    )
    return Config(
        Experiment,
        model=model,
        data=Config(folder),
        train_transforms=[
            Config(Expand),
            Config(MinIoURandomCrop),
            Config(ResizeFixed, size=(side, side)),
            Config(HorizontalFlip),
            Config(PhotometricDistortion),
        ],
        eval_transforms=[Config(ResizeFixed, size=(side, side))],
        canvas=Config(Canvas, shapes=((side, side),), divisor=4),
        batch_size=64,
        base_batch_size=64,
        optimizer=Partial(sgd, lr=2e-3, momentum=0.9, weight_decay=5e-4),
        schedule=Config(StepSchedule, milestones=(80, 110)),
        epochs=120,
        evaluate_every=5,
    )


def ssd300() -> Config[Experiment]:
    """SSD, VGG-16 at 300 x 300 pixels, 120 epochs on COCO (learning rate 0.002, batches of 64)."""
    priors = Config(
        SSDAnchors,
        sizes=ssd_sizes(300, 6, first=7, lowest=15),
        ratios=(TWO, FOUR, FOUR, FOUR, TWO, TWO),
        steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    )
    return vgg_experiment(300, Partial(SSDNeck), priors)


def ssd512() -> Config[Experiment]:
    """SSD, VGG-16 at 512 x 512 pixels, 120 epochs on COCO (learning rate 0.002, batches of 64)."""
    neck = Partial(
        SSDNeck,
        channels=(512, 256, 256, 256, 256),
        kernels=(3, 3, 3, 3, 4),
        strides=(2, 2, 2, 2, 1),
        paddings=(1, 1, 1, 1, 1),
    )
    priors = Config(
        SSDAnchors,
        sizes=ssd_sizes(512, 7, first=4, lowest=10),
        ratios=(TWO, FOUR, FOUR, FOUR, FOUR, TWO, TWO),
        steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
    )
    return vgg_experiment(512, neck, priors)


def ssd_mnv2_320() -> Config[Experiment]:
    """SSD with MobileNetV2 at 320 pixels, for two CPU cores; a convolution in front of each predictor."""
    priors = Config(
        SSDAnchors,
        sizes=ssd_sizes(320, 6, first=7, lowest=15),
        ratios=(TWO, FOUR, FOUR, FOUR, TWO, TWO),
    )
    neck = Partial(
        SSDNeck,
        channels=(256, 256, 256),
        kernels=(3, 3, 3),
        strides=(2, 2, 1),
        paddings=(1, 1, 0),
        l2_norm_scale=None,
    )
    model = Config(
        OneStageDetector,
        backbone=common.mobilenet_v2(first_stride=8),
        neck=neck,
        head=head(priors, channels=128, tower_convs=1, norm=group_norm),
    )
    return common.small_320(model, lr=0.01)
