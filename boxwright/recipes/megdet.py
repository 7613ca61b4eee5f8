"""MegDet (Peng et al., arXiv:1711.07240): a large mini-batch of 256 images.

The paper adds batch norm over the images of many GPUs (`models/layers/cross_norm.py`), and trains with it in
large mini-batches: the learning rate scaled with the batch, after a warm-up (Sec. 3.2), and two policies of
its decay (Sec. 4.2), which are functions here and fit any recipe.
"""

from __future__ import annotations

from fiddle import Config, Partial

from ..engine.schedule import StepSchedule
from ..models.layers import CrossBatchNorm2d
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_r50_fpn_1x
from .norms import set_norm


def normal_policy(recipe: Config[Experiment]) -> Config[Experiment]:
    """11 epochs, learning rate / 10 after 8 and 10 (MegDet, Sec. 4.2, "normal").

    Args:
        recipe: changed in place.
    """
    recipe.epochs, recipe.schedule = 11, Config(StepSchedule, milestones=(8, 10))
    return recipe


def long_policy(recipe: Config[Experiment]) -> Config[Experiment]:
    """18 epochs, learning rate / 10 after 11 and 14, / 2 after 17 (MegDet, Sec. 4.2, "long").

    Args:
        recipe: changed in place.
    """
    recipe.epochs = 18
    recipe.schedule = Config(StepSchedule, milestones=(11, 14, 17), gamma=(0.1, 0.1, 0.5))
    return recipe


def large_batch(
    recipe: Config[Experiment], images: int = 256, norm_images: int | None = 32
) -> Config[Experiment]:
    """A mini-batch of many images, and batch norm over some of them in the backbone.

    The learning rate stays that of the recipe's `base_batch_size`; it is scaled when the run starts.

    Args:
        recipe: changed in place.
        images: of one optimiser step.
        norm_images: that share statistics; None for all of a forward pass. The paper found 32 the best.
    """
    recipe.batch_size = images
    set_norm(recipe, Partial(CrossBatchNorm2d, images=norm_images), "backbone")
    return recipe


def faster_rcnn_r50_fpn_megdet_b256() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 and FPN, 256 images a step, batch norm over 32 of them, 11 epochs on COCO."""
    return normal_policy(large_batch(faster_rcnn_r50_fpn_1x()))


def faster_rcnn_r50_fpn_megdet_b256_long() -> Config[Experiment]:
    """Faster R-CNN, ResNet-50 and FPN, 256 images a step, batch norm over 32 of them, 18 epochs on COCO."""
    return long_policy(large_batch(faster_rcnn_r50_fpn_1x()))
