"""Deformable convolution (Dai et al., arXiv:1703.06211; v2: Zhu et al., arXiv:1811.11168).

The papers add convolutions whose taps are moved by learnt offsets (`models/layers/deform_conv.py` on
`ops/deform_conv.py`). They go into the slot `conv3x3` of any stage of a ResNet, or wherever a neck or a head
takes a `conv`.
"""

from __future__ import annotations

from collections.abc import Collection

from fiddle import Config, Partial

from ..models.layers import ModulatedDeformConv2d, OffsetDeformConv2d, deform_3x3
from . import common
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_r50_fpn_1x, faster_rcnn_r101_fpn_1x, mobilenet_model
from .mask_rcnn import mask_rcnn_r50_fpn_1x


def deformable(
    recipe: Config[Experiment],
    layer: type[OffsetDeformConv2d],
    groups: int = 1,
    stages: Collection[int] = (2, 3, 4),
) -> Config[Experiment]:
    """Deform all 3x3 convolutions of the given stages of a recipe's ResNet: 2 to 4 are C3 to C5.

    Args:
        recipe: changed in place.
        layer: `OffsetDeformConv2d` (v1) or `ModulatedDeformConv2d` (v2).
        groups: groups of channels with offsets of their own.
        stages: counted from 1.
    """
    recipe.model.backbone.conv3x3 = [
        Partial(layer, deform_groups=groups) if stage in stages else None for stage in (1, 2, 3, 4)
    ]
    return recipe


def faster_rcnn_r50_fpn_dconv_c3_c5_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 with deformable convolutions v1 from C3 to C5, 12 epochs on COCO."""
    return deformable(faster_rcnn_r50_fpn_1x(), OffsetDeformConv2d)


def faster_rcnn_r50_fpn_mdconv_c3_c5_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 with deformable convolutions v2 from C3 to C5, 12 epochs on COCO."""
    return deformable(faster_rcnn_r50_fpn_1x(), ModulatedDeformConv2d)


def faster_rcnn_r50_fpn_mdconv_c3_c5_group4_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 with deformable convolutions v2, four groups of offsets, 12 epochs on COCO."""
    return deformable(faster_rcnn_r50_fpn_1x(), ModulatedDeformConv2d, groups=4)


def faster_rcnn_r101_fpn_dconv_c3_c5_1x() -> Config[Experiment]:
    """Faster R-CNN, ResNet-101 with deformable convolutions v1 from C3 to C5, 12 epochs on COCO."""
    return deformable(faster_rcnn_r101_fpn_1x(), OffsetDeformConv2d)


def mask_rcnn_r50_fpn_dconv_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with deformable convolutions v1 from C3 to C5, 12 epochs on COCO."""
    return deformable(mask_rcnn_r50_fpn_1x(), OffsetDeformConv2d)


def mask_rcnn_r50_fpn_mdconv_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with deformable convolutions v2 from C3 to C5, 12 epochs on COCO."""
    return deformable(mask_rcnn_r50_fpn_1x(), ModulatedDeformConv2d)


def faster_rcnn_mdconv_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with MobileNetV2 at 320 pixels, the 3x3 convolutions of its pyramid deformable (v2).

    MobileNetV2's own 3x3 convolutions are depthwise, so the pyramid's are deformed instead.
    """
    model = mobilenet_model()
    model.neck.conv = deform_3x3
    recipe = common.small_320(model, lr=0.02)
    recipe.optimizer.lr_factors = {"conv_offset": 0.1}  # arXiv:1811.11168, Sec. 3.2
    return recipe
