"""Online hard example mining (Shrivastava et al., arXiv:1604.03540) on Faster R-CNN.

The paper adds the choice of the regions that are trained, those of the highest loss
(`models/samplers/ohem.py`). The recipes have MMDetection's form of it, which keeps the share of positives.
"""

from __future__ import annotations

from fiddle import Config

from ..models.samplers import OHEMSampler
from .experiment import Experiment
from .faster_rcnn import faster_rcnn_mnv2_320, faster_rcnn_r50_fpn_1x


def mine(recipe: Config[Experiment]) -> Config[Experiment]:
    """Let every RoI stage train the hardest of its regions, as many and by the same share as before."""
    for stage in recipe.model.roi.stages:
        random = stage.criterion.sampler
        stage.criterion.sampler = Config(
            OHEMSampler, number=random.number, positive_share=random.positive_share
        )
    return recipe


def faster_rcnn_r50_fpn_ohem_1x() -> Config[Experiment]:
    """Faster R-CNN with OHEM, ResNet-50 and FPN, 12 epochs on COCO."""
    return mine(faster_rcnn_r50_fpn_1x())


def faster_rcnn_ohem_mnv2_320() -> Config[Experiment]:
    """Faster R-CNN with OHEM and MobileNetV2 at 320 pixels, for two CPU cores; class and box loss rank."""
    recipe = mine(faster_rcnn_mnv2_320())
    recipe.model.roi.stages[0].criterion.rank_with_box_loss = True
    return recipe
