"""Detectors on one level of a ResNet, as they were before feature pyramids.

"C4" (Ren et al., arXiv:1506.01497, on ResNet: He et al., arXiv:1512.03385, App. A): everything is predicted
from the third stage, and the fourth is run on each region (`models/roi_heads/c4.py`). "DC5" (dilated C5, Dai
et al., arXiv:1605.06409, Sec. 2): the fourth stage is run over the image at stride 16, its 3x3 convolutions
dilated.
"""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..config import Norm, NumClasses, Pretrained, set_tagged
from ..models.backbones.resnet import ResNet
from ..models.backbones.timm import TimmBackbone
from ..models.detectors import Normalise, TwoStageDetector
from ..models.layers import FrozenBatchNorm2d
from ..models.necks import NoNeck
from ..models.roi_heads import MaskHead, StageTrunk
from . import common
from .experiment import Experiment
from .faster_rcnn import box_head, roi_heads
from .rpn import proposals, rpn_head

CAFFE = {"style": "caffe", "norm": FrozenBatchNorm2d}
CAFFE_WEIGHTS = "https://download.openmmlab.com/pretrain/third_party/resnet50_msra-5891d200.pth"
"""Detectron2's ResNet-50 of ImageNet, as MMDetection publishes it."""


def trunk(depth: int = 50, **arguments: Any) -> Partial[StageTrunk]:
    """The fourth stage of a ResNet, from the weights that the backbone in front of it has."""
    stages = {"out_stages": (3, 4), "frozen_stages": 0}
    network = Partial(ResNet, depth=depth, weights="torchvision", **stages, **arguments)
    common.with_tag(common.with_tag(network, "weights", Pretrained), "norm", Norm)
    return Partial(StageTrunk, network=network)


def one_level(backbone: Config[Any], channels: int, **box: Any) -> Config[TwoStageDetector]:
    """Anchors of several scales on one level of stride 16, and regions pooled from it."""
    rpn = rpn_head(scales=(2.0, 4.0, 8.0, 16.0, 32.0), channels=channels)
    rpn.postprocess = proposals(6000, 1000)
    return Config(
        TwoStageDetector,
        backbone=backbone,
        neck=Partial(NoNeck),
        rpn=rpn,
        roi=roi_heads(box_head(levels=1, **box)),
        train_proposals=proposals(12000, 2000),
    )


def c4(depth: int = 50, **arguments: Any) -> Config[TwoStageDetector]:
    """Faster R-CNN on the third stage; regions of 14 x 14 go through the fourth."""
    backbone = common.resnet(depth, out_stages=(3,), **arguments)
    model = one_level(backbone, channels=1024, trunk=trunk(depth, **arguments))
    model.roi.stages[0].extractor.size = 14
    return model


def caffe(recipe: Config[Experiment]) -> Config[Experiment]:
    """Weights of Caffe's ResNet-50, and images as they expect them: blue, green, red, minus the mean."""
    set_tagged(recipe.model, Pretrained, CAFFE_WEIGHTS)
    recipe.model.normalise = Config(
        Normalise, mean=(123.675, 116.280, 103.530), std=(1.0, 1.0, 1.0), bgr=True
    )
    return recipe


def faster_rcnn_r50_c4_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 C4 from torchvision's weights, 12 epochs on COCO (learning rate 0.02)."""
    return common.schedule_1x(c4(norm=FrozenBatchNorm2d), lr=0.02)


def faster_rcnn_r50_caffe_c4_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 C4 in Caffe's style, 12 epochs on COCO."""
    return caffe(common.schedule_1x(c4(**CAFFE), lr=0.02))


def with_masks(recipe: Config[Experiment]) -> Config[Experiment]:
    """Add a mask head that shares the fourth stage with the box head (arXiv:1703.06870, Fig. 4, left)."""
    head = Partial(MaskHead, num_classes=common.COCO_CLASSES, convs=0)
    recipe.model.roi.mask = common.with_tag(head, "num_classes", NumClasses)
    recipe.model.roi.share_trunk = True
    recipe.model.rpn.criterion.area.allowed_border = 0.0
    recipe.metrics = ("bbox", "segm")
    return recipe


def mask_rcnn_r50_c4_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 C4 from torchvision's weights, 12 epochs on COCO (learning rate 0.02)."""
    return with_masks(faster_rcnn_r50_c4_1x())


def mask_rcnn_r50_caffe_c4_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 C4 in Caffe's style, 12 epochs on COCO."""
    return with_masks(faster_rcnn_r50_caffe_c4_1x())


def faster_rcnn_r50_caffe_dc5_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 in Caffe's style with an atrous fourth stage, 12 epochs on COCO."""
    backbone = common.resnet(50, out_stages=(4,), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **CAFFE)
    recipe = caffe(common.schedule_1x(one_level(backbone, channels=2048), lr=0.02))
    recipe.model.rpn.criterion.area.allowed_border = 0.0
    return recipe


def faster_rcnn_c4_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN on MobileNetV2 at stride 16, whose last stage is run on regions, at 320 pixels."""
    network = Partial(TimmBackbone, "mobilenetv2_100", min_stride=16, weights="timm", norm_eval=True)
    common.with_tag(network, "weights", Pretrained)
    backbone = common.mobilenet_v2()
    backbone.out_indices = (3,)
    model = one_level(backbone, channels=128, trunk=Partial(StageTrunk, network=network))
    box, rpn = model.roi.stages[0], model.rpn
    box.extractor.size, box.criterion.sampler.number = 8, 128
    rpn.priors.scales = (1.0, 2.0, 4.0, 8.0)
    rpn.postprocess, model.train_proposals = proposals(1000, 200), proposals(1000, 300)
    return common.small_320(model, lr=0.02)
