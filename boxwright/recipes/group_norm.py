"""Group norm (Wu and He, arXiv:1803.08494) and weight standardisation (Qiao et al., arXiv:1903.10520).

The first paper adds a norm that does not depend on the batch (`group_norm` in `models/layers/norm.py`), the
second a convolution with standardised kernels (`models/layers/conv_ws.py`). Backbone, pyramid and RoI heads
have them throughout, as tagged arguments: `set_tagged(recipe.model, Norm, ...)` changes all norms in one
line, and `set_tagged(recipe.model, Conv, ...)` all convolutions before them.
"""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..config import Conv, Norm, set_tagged
from ..models.layers import ConvWS2d, group_norm
from ..models.roi_heads import FourConvOneFC
from . import common
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_r50_fpn_1x, mobilenet_model
from .mask_rcnn import mask_rcnn_r50_fpn_2x

GN_WS_WEIGHTS = "https://download.openmmlab.com/pretrain/third_party/resnet50_gn_ws-15beedd8.pth"
"""ResNet-50 with both, trained on ImageNet by the authors of weight standardisation."""


def tag_norms(*parts: Any) -> None:
    """Tag norm and convolution of parts that have both, so that one line sets them everywhere."""
    for part in parts:
        common.with_tag(common.with_tag(part, "norm", Norm), "conv", Conv)


def norms_everywhere(recipe: Config[Experiment]) -> Config[Experiment]:
    """Group norm in backbone, pyramid and RoI heads, and four convolutions in the box head (GN, Sec. 4.2).

    Args:
        recipe: changed in place.
    """
    model = recipe.model
    model.roi.stages[0].trunk = Partial(FourConvOneFC)
    parts = [model.backbone, model.neck, model.roi.stages[0].trunk]
    tag_norms(*parts, *([] if model.roi.mask is None else [model.roi.mask]))
    set_tagged(model, Norm, group_norm)
    model.backbone.weights = "timm:resnet50_gn.a1h_in1k"
    return recipe


def standardised(recipe: Config[Experiment]) -> Config[Experiment]:
    """Weight standardisation in all convolutions that `norms_everywhere` gave a norm.

    Args:
        recipe: changed in place.
    """
    set_tagged(recipe.model, Conv, ConvWS2d)
    recipe.model.backbone.weights = GN_WS_WEIGHTS
    return recipe


def faster_rcnn_r50_fpn_gn_ws_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50, FPN, group norm and weight standardisation throughout, 12 epochs on COCO."""
    return standardised(norms_everywhere(faster_rcnn_r50_fpn_1x()))


def mask_rcnn_r50_fpn_gn_2x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50, FPN, group norm throughout, 24 epochs on COCO."""
    return norms_everywhere(mask_rcnn_r50_fpn_2x())


def mask_rcnn_r50_fpn_gn_ws_2x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50, FPN, group norm and weight standardisation throughout, 24 epochs on COCO."""
    return standardised(mask_rcnn_r50_fpn_gn_2x())


def faster_rcnn_gn_ws_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with MobileNetV2 at 320 pixels, its pyramid with group norm and weight standardisation."""
    model = mobilenet_model()
    tag_norms(model.neck)
    set_tagged(model, Norm, group_norm)
    set_tagged(model, Conv, ConvWS2d)
    return common.small_320(model, lr=0.02)
