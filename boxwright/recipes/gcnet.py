"""GCNet (Cao et al., arXiv:1904.11492).

The paper adds the global context block (`models/layers/context_block.py`), which goes behind the last
convolution of each residual block, before the sum, in chosen stages of a ResNet (slot `plugins`).
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..models.layers import ContextBlock, CrossBatchNorm2d
from . import common
from .experiment import Experiment
from .faster_rcnn import mobilenet_model
from .mask_rcnn import mask_rcnn_r50_fpn_1x, mask_rcnn_r101_fpn_1x
from .norms import set_norm


def with_context(recipe: Config[Experiment], ratio: float) -> Config[Experiment]:
    """Put context blocks into all residual blocks from C3 to C5 of a recipe's ResNet (Sec. 5.1).

    Args:
        recipe: changed in place.
        ratio: inner channels as a share of the map's.
    """
    recipe.model.backbone.plugins = [None, *(Partial(ContextBlock, ratio=ratio) for _ in range(3))]
    return recipe


def synchronised(recipe: Config[Experiment]) -> Config[Experiment]:
    """Batch norms over all GPUs, with statistics that are learnt, as in the paper's stronger baseline.

    Args:
        recipe: changed in place.
    """
    set_norm(recipe, CrossBatchNorm2d, "backbone")
    return recipe


def mask_rcnn_r50_fpn_gcb_r16_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with context blocks of ratio 1/16 from C3 to C5, 12 epochs on COCO."""
    return with_context(mask_rcnn_r50_fpn_1x(), 1 / 16)


def mask_rcnn_r50_fpn_gcb_r4_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with context blocks of ratio 1/4 from C3 to C5, 12 epochs on COCO."""
    return with_context(mask_rcnn_r50_fpn_1x(), 1 / 4)


def mask_rcnn_r101_fpn_gcb_r16_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-101 with context blocks of ratio 1/16 from C3 to C5, 12 epochs on COCO."""
    return with_context(mask_rcnn_r101_fpn_1x(), 1 / 16)


def mask_rcnn_r50_syncbn_fpn_gcb_r16_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with context blocks of ratio 1/16, batch norms over all GPUs, 12 epochs."""
    return synchronised(mask_rcnn_r50_fpn_gcb_r16_c3_c5_1x())


def mask_rcnn_r50_syncbn_fpn_gcb_r4_c3_c5_1x() -> Config[Experiment]:
    """Mask R-CNN, ResNet-50 with context blocks of ratio 1/4, batch norms over all GPUs, 12 epochs."""
    return synchronised(mask_rcnn_r50_fpn_gcb_r4_c3_c5_1x())


def faster_rcnn_gcb_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with MobileNetV2 at 320 pixels, a context block behind each of its levels."""
    model = mobilenet_model()
    model.backbone.plugin = Partial(ContextBlock, ratio=1 / 4)
    return common.small_320(model, lr=0.02)
