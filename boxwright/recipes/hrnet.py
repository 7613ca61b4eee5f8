"""HRNet (Sun et al., arXiv:1902.09212) with its pyramid HRNetV2p (arXiv:1904.04514).

The papers add a backbone that keeps a fine resolution throughout (`models/backbones/hrnet.py`) and the neck
that joins its branches (`models/necks/hrfpn.py`).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..config import Norm, Pretrained
from ..models.backbones import HRNet
from ..models.necks import HRFPN
from . import common
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_r50_fpn_1x, faster_rcnn_r50_fpn_2x, mobilenet_model
from .mask_rcnn import mask_rcnn_r50_fpn_1x


def high_resolution(recipe: Config[Experiment], width: int) -> Config[Experiment]:
    """Exchange a recipe's ResNet and neck for HRNet and its pyramid, which begins at the neck's first level.

    Args:
        recipe: changed in place.
        width: channels of the finest branch.
    """
    first = getattr(recipe.model.neck, "start_level", 0)  # 1 where a one-stage detector leaves stride 4 out
    backbone = common.with_tag(Config(HRNet, width=width, weights="timm"), "weights", Pretrained)
    recipe.model.backbone = common.with_tag(backbone, "norm", Norm)
    recipe.model.neck = Partial(HRFPN, stride=2**first)
    return recipe


def faster_rcnn_hrnetv2p_w18_1x() -> Config[Experiment]:
    """Faster R-CNN, HRNet-W18, 12 epochs on COCO."""
    return high_resolution(faster_rcnn_r50_fpn_1x(), 18)


def faster_rcnn_hrnetv2p_w18_2x() -> Config[Experiment]:
    """Faster R-CNN, HRNet-W18, 24 epochs on COCO."""
    return high_resolution(faster_rcnn_r50_fpn_2x(), 18)


def faster_rcnn_hrnetv2p_w32_1x() -> Config[Experiment]:
    """Faster R-CNN, HRNet-W32, 12 epochs on COCO."""
    return high_resolution(faster_rcnn_r50_fpn_1x(), 32)


def faster_rcnn_hrnetv2p_w40_1x() -> Config[Experiment]:
    """Faster R-CNN, HRNet-W40, 12 epochs on COCO."""
    return high_resolution(faster_rcnn_r50_fpn_1x(), 40)


def mask_rcnn_hrnetv2p_w18_1x() -> Config[Experiment]:
    """Mask R-CNN, HRNet-W18, 12 epochs on COCO."""
    return high_resolution(mask_rcnn_r50_fpn_1x(), 18)


def mask_rcnn_hrnetv2p_w32_1x() -> Config[Experiment]:
    """Mask R-CNN, HRNet-W32, 12 epochs on COCO."""
    return high_resolution(mask_rcnn_r50_fpn_1x(), 32)


def faster_rcnn_hrnetv2p_small_320() -> Config[Experiment]:
    """Faster R-CNN with a small HRNet from random weights at 320 pixels, for two CPU cores.

    The network is the authors' "W18 small v1", whose finest branch has 16 channels; its norms learn their
    statistics.
    """
    model = mobilenet_model()
    model.backbone = common.with_tag(
        Config(HRNet, width=16, modules=(1, 1, 1), blocks=(1, 2, 2, 2), first_width=32, norm_eval=False),
        "norm",
        Norm,
    )
    model.neck = Partial(HRFPN, out_channels=128, num_outs=4, stride=2)
    return common.small_320(model, lr=0.02)
