"""MMDetection's heads of guided anchoring as ours."""

from __future__ import annotations

import fiddle as fdl
from fiddle import Config, Partial

from ..errors import ConfigError
from ..models.assigners import ApproxMaxIoUAssigner, RegionAssigner
from ..models.coders import ShapeCoder
from ..models.dense_heads import Guidance
from ..models.losses import FocalLoss
from ..models.priors import Anchors
from ..models.suppression import GreedyNMS
from ..recipes import guided_anchoring
from . import parts
from .context import Context, divisor, layers, losses
from .layers import deform_groups
from .losses import box_losses, class_loss
from .settings import Settings


def guided_retina(settings: Settings, context: Context) -> Partial:
    """`GARetinaHead`."""
    settings.expect("conv_cfg", None)
    config = _guided(settings, context, layers(settings, guided_anchoring.retina_head()))
    context.postprocess(config.postprocess)
    return config


def guided_rpn(settings: Settings, context: Context) -> Partial:
    """`GARPNHead`."""
    config = guided_anchoring.rpn_head(1000, 1000)
    config.channels = settings("feat_channels", 256)
    config = _guided(settings, context, config)
    context.proposals(config.postprocess)
    if fdl.get_callable(config.postprocess.nms) is not GreedyNMS:
        raise ConfigError(f"{context.test.path}.nms: a GARPNHead has the type nms only")
    return config


def _guided(settings: Settings, context: Context, config: Partial) -> Partial:
    """What both have in common."""
    settings.ignore("square_anchor_generator")  # says nothing that the other one does not
    with settings.part("approx_anchor_generator") as approx:
        approx.only("an anchor generator here", "AnchorGenerator")
        parts.all_strides(approx, context.strides)
        octave, count = approx("octave_base_scale"), approx("scales_per_octave")
        ratios = tuple(float(r) for r in approx("ratios"))
    config.priors = Config(Anchors, scales=(float(octave),), ratios=(1.0,))
    stds = parts.delta_coder(settings.part("anchor_coder")).stds
    config.shape_coder = Config(ShapeCoder, stds=tuple(stds[2:]))
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    config.offset_groups = deform_groups(settings, 4)
    rule = parts.max_iou(context.train.part("ga_assigner"), "ApproxMaxIoUAssigner")
    sampler = parts.sampler(context.train.optional("ga_sampler"))
    scales = tuple(2 ** (i / count) for i in range(count))
    config.guidance = Config(
        Guidance,
        shape_assigner=Config(ApproxMaxIoUAssigner, rule=rule, scales=scales, ratios=ratios),
        sampler=sampler,
        shape_divisor=divisor(sampler),
        shape_loss=box_losses(settings.part("loss_shape"), decoded=True)["box_loss"],
        regions=Config(
            RegionAssigner,
            centre_ratio=context.train("center_ratio", 0.2),
            ignore_ratio=context.train("ignore_ratio", 0.5),
        ),
        location_loss=class_loss(settings.part("loss_loc"), FocalLoss),
        area=context.area(),
    )
    criterion = config.criterion
    losses(settings, criterion, settings("reg_decoded_bbox", False))
    criterion.assigner = parts.max_iou(context.train.part("assigner"))
    criterion.sampler = context.sampler()
    criterion.divisor = divisor(criterion.sampler)
    criterion.area = None
    config.postprocess.location_threshold = settings("loc_filter_thr", 0.01)
    return config
