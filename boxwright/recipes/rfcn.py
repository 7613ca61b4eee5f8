"""R-FCN (Dai et al., arXiv:1605.06409).

The paper puts all layers before the pooling of regions: position-sensitive maps of the whole image, from
which the bins of a region take means (`models/roi_heads/rfcn.py`). The fourth stage of its ResNet runs at
stride 16 with dilated convolutions, and the proposals come from the third (Sec. 2).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import NumClasses
from ..data.canvas import Canvas
from ..models.assigners import MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.dense_heads import DenseHead
from ..models.detectors import TwoStageDetector
from ..models.losses import CrossEntropy, SmoothL1
from ..models.necks import NoNeck
from ..models.roi_heads import PSCropResize, PSRoIPool, RFCNHead, RoICriterion, RoIPostprocess
from ..models.samplers import HardestSampler
from ..models.suppression import GreedyNMS
from . import common
from .experiment import Experiment
from .faster_rcnn import mobilenet_model, roi_heads
from .rpn import proposals, rpn_head


def head() -> Partial[RFCNHead]:
    """7 x 7 bins; the 128 regions of the highest loss are trained (Sec. 2, "Training")."""
    config = Partial(
        RFCNHead,
        num_classes=common.COCO_CLASSES,
        coder=Config(DeltaCoder, stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=Config(
            RoICriterion,
            assigner=Config(MaxIoUAssigner, positive_iou=0.5, negative_iou=0.5),
            sampler=Config(HardestSampler, number=128, duplicate_iou=None),
            class_loss=Config(CrossEntropy),
            code_loss=Config(SmoothL1, beta=1.0),
            rank_with_box_loss=True,
        ),
        postprocess=Config(RoIPostprocess, nms=Config(GreedyNMS, iou=0.3)),
        pool=Config(PSRoIPool),
        bins=7,
    )
    return common.with_tag(config, "num_classes", NumClasses)


def rpn() -> Partial[DenseHead]:
    """Proposals from one level, trained on anchors inside the image, with a smooth L1 loss."""
    config = rpn_head(scales=(4.0, 8.0, 16.0, 32.0), channels=512)
    config.criterion.code_loss.beta = 1 / 9
    config.criterion.area.allowed_border = 0.0
    config.postprocess = proposals(6000, 300)
    return config


def rfcn_r101_1x() -> Config[Experiment]:
    """R-FCN, ResNet-101 at stride 16, 12 epochs on COCO at 600 pixels (learning rate 0.002)."""
    model = Config(
        TwoStageDetector,
        backbone=common.resnet(101, out_stages=(3, 4), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
        neck=Partial(NoNeck),
        rpn=rpn(),
        roi=roi_heads(head()),
        rpn_levels=(0,),
    )
    recipe = common.schedule_1x(model, lr=0.002)  # the paper's 0.001 for 8 images, here for 16
    recipe.optimizer.weight_decay = 5e-4
    for resize in (recipe.train_transforms[0], recipe.eval_transforms[0]):
        resize.short, resize.long = 600, 1000
    recipe.canvas = Config(Canvas, shapes=((608, 1024), (1024, 608), (1024, 1024)))
    return recipe


def rfcn_r50_1x() -> Config[Experiment]:
    """R-FCN, ResNet-50 at stride 16, 12 epochs on COCO at 600 pixels."""
    recipe = rfcn_r101_1x()
    recipe.model.backbone.depth = 50
    return recipe


def rfcn_mnv2_320() -> Config[Experiment]:
    """R-FCN with MobileNetV2 and FPN at 320 pixels, for two CPU cores; bins by crop-and-resize."""
    box = head()
    box.level, box.channels = 0, 512  # at 320 pixels objects are small: maps of stride 8
    box.criterion.sampler.number = 256
    box.pool = Config(PSCropResize, points=2)
    box.criterion.code_loss.beta = 0.0
    box.postprocess.nms.iou = 0.5
    model = mobilenet_model()
    model.roi = roi_heads(box)
    model.rpn.priors.scales = (2.0, 4.0)  # objects of 16 pixels find an anchor, too
    return common.small_320(model, lr=0.02)
