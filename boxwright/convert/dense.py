"""MMDetection's dense heads as ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from fiddle import Config, Partial

from ..errors import ConfigError
from ..models.assigners import FCOSAssigner
from ..models.coders import DistanceCoder
from ..models.dense_heads import DenseHead
from ..models.layers import ModulatedDeformConv2d, biased, group_norm
from ..models.losses import QualityFocalLoss
from ..recipes import atss as atss_recipe
from ..recipes import fcos, gfl, retinanet
from ..recipes.rpn import rpn_head
from . import parts
from .context import Context, divisor, layers, losses, usual_training
from .guided import guided_retina, guided_rpn
from .losses import binary_weight
from .settings import Settings
from .single_shot import ssd_head, yolo_head


def head(settings: Settings, context: Context) -> Partial:
    """The head of a one-stage detector."""
    with settings, context.train, context.test:
        usual_training(context.train)
        settings.ignore("in_channels", "train_cfg", "test_cfg")
        if settings.kind not in HEADS:
            raise settings.unknown("a dense head", HEADS)
        return HEADS[settings.kind](settings, context)


def proposals(settings: Settings, context: Context) -> Partial:
    """The proposal network."""
    with settings, context.train, context.test:
        usual_training(context.train)
        settings.ignore("in_channels", "train_cfg", "test_cfg")
        settings.expect("num_classes", 1)
        settings.only("a proposal head", "RPNHead", "GARPNHead")
        return guided_rpn(settings, context) if settings.kind == "GARPNHead" else rpn(settings, context)


def rpn(settings: Settings, context: Context) -> Partial:
    """`RPNHead`."""
    config = rpn_head()
    config.channels, config.stem_convs = settings("feat_channels", 256), settings("num_convs", 1)
    config.priors = parts.anchors(settings.part("anchor_generator"), context.strides)
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    _anchored(settings, context, config)
    context.proposals(config.postprocess)
    return config


def retina(settings: Settings, context: Context) -> Partial:
    """`RetinaHead`."""
    config = layers(settings, retinanet.head())
    config.priors = parts.anchors(settings.part("anchor_generator"), context.strides)
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    _anchored(settings, context, config)
    context.postprocess(config.postprocess)
    return config


def _anchored(settings: Settings, context: Context, config: Partial) -> None:
    """Losses of a head on anchors."""
    criterion = config.criterion
    losses(settings, criterion, settings("reg_decoded_bbox", False))
    criterion.assigner = parts.max_iou(context.train.part("assigner"))
    criterion.sampler = context.sampler()
    criterion.divisor = divisor(criterion.sampler)
    criterion.area = context.area(config.priors.offset)


def fcos_head(settings: Settings, context: Context) -> Partial:
    """`FCOSHead`."""
    context.train.ignore("assigner", "allowed_border")
    context.every_prior()
    config = _with_group_norm(settings, layers(settings, fcos.head()))
    _towers(settings, config)
    strides = settings("strides", (4, 8, 16, 32, 64))
    parts.all_strides(Settings({"strides": strides}, settings.path), context.strides)
    parts.distance_coder(settings.optional("bbox_coder"))
    radius = settings("center_sample_radius", 1.5)
    in_strides = settings("norm_on_bbox", False)
    config.coder = Config(
        DistanceCoder, activation=F.relu if in_strides else torch.exp, in_strides=in_strides
    )
    config.quality_branch = "box" if settings("centerness_on_reg", False) else "class"
    losses(settings, config.criterion, decoded=True)
    config.criterion.assigner = Config(
        FCOSAssigner,
        limits=_limits(settings),
        centre_radius=radius if settings("center_sampling", False) else None,
    )
    config.criterion.quality.weight = binary_weight(settings.optional("loss_centerness"))
    context.postprocess(config.postprocess)
    return config


def _with_group_norm(settings: Settings, config: Partial) -> Partial:
    """The norm that heads of FCOS and its descendants have where they do not say."""
    if "norm_cfg" not in settings.values:
        config.norm = group_norm
    return config


def _towers(settings: Settings, config: Partial) -> None:
    """FCOS's choices of convolutions: with a bias before the norm, the last one deformable."""
    bias, deform = settings("conv_bias", "auto"), settings("dcn_on_last_conv", False)
    if bias is False and config.norm is None:
        raise ConfigError(f"{settings.path}.conv_bias is False; without a norm Boxwright has a bias")
    if bias is True and config.norm is not None:
        if "conv" in config.__arguments__:
            raise ConfigError(f"{settings.path} has a conv_cfg; Boxwright has conv_bias=True without one")
        config.conv = biased
    if deform:
        config.last_conv = (
            Partial(biased, conv=ModulatedDeformConv2d) if bias is True else ModulatedDeformConv2d
        )


def _limits(settings: Settings) -> tuple[float, ...]:
    """Where one level's boxes end and the next one's begin."""
    ranges: Sequence[Sequence[float]] = settings(
        "regress_ranges", ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    )
    (first, _), *rest = ranges
    if first > 0 or any(low != high for (_, high), (low, _) in zip(ranges, rest, strict=False)):
        raise ConfigError(
            f"{settings.path}.regress_ranges is {ranges}; Boxwright has ranges from 0 on without gaps"
        )
    return (0.0, *(math.inf if last >= 1e8 else float(last) for _, last in ranges))


def atss_head(settings: Settings, context: Context) -> Partial:
    """`ATSSHead`."""
    config = _with_group_norm(settings, layers(settings, atss_recipe.head()))
    config.predictor_kernel = settings("pred_kernel_size", 3)
    settings.expect("reg_decoded_bbox", True)
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    losses(settings, config.criterion, decoded=True)
    config.criterion.quality.weight = binary_weight(settings.optional("loss_centerness"))
    return _adaptive(settings, context, config)


def gfl_head(settings: Settings, context: Context) -> Partial:
    """`GFLHead`."""
    config = _with_group_norm(settings, layers(settings, gfl.head()))
    parts.distance_coder(settings.optional("bbox_coder"))
    config.coder.last = settings("reg_max", 16)
    losses(settings, config.criterion, True, QualityFocalLoss)
    config.criterion.code_loss = gfl.head().criterion.code_loss
    distribution = settings.optional("loss_dfl")
    if distribution is not None:
        with distribution:
            distribution.only("a loss of distributions", "DistributionFocalLoss")
            distribution.expect("reduction", "mean")
            config.criterion.code_loss.weight = distribution("loss_weight", 1.0)
    return _adaptive(settings, context, config)


def _adaptive(settings: Settings, context: Context, config: Partial) -> Partial:
    """One anchor a place, assigned by ATSS, and what follows from the training and test settings."""
    context.every_prior()
    config.priors = parts.anchors(settings.part("anchor_generator"), context.strides)
    config.criterion.assigner = parts.atss(context.train.part("assigner"))
    config.criterion.area = context.area(config.priors.offset)
    context.postprocess(config.postprocess)
    return config


HEADS: dict[str, Callable[[Settings, Context], Partial[DenseHead]]] = {
    "RetinaHead": retina,
    "FCOSHead": fcos_head,
    "ATSSHead": atss_head,
    "GFLHead": gfl_head,
    "SSDHead": ssd_head,
    "YOLOV3Head": yolo_head,
    "GARetinaHead": guided_retina,
}
