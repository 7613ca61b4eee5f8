"""MMDetection's norms, convolutions and activations as ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..config import Conv, Norm
from ..errors import ConfigError
from ..models.layers import (
    ConvWS2d,
    CrossBatchNorm2d,
    FrozenBatchNorm2d,
    ModulatedDeformConv2d,
    OffsetDeformConv2d,
    group_norm,
)
from ..recipes.common import with_tag
from .settings import Settings

DEFORMABLE = {
    "DCN": OffsetDeformConv2d,
    "DCNv1": OffsetDeformConv2d,
    "DCNv2": ModulatedDeformConv2d,
    "ModulatedDCN": ModulatedDeformConv2d,
}
GROUP_NORMS = ("GN", "GroupNorm")
BATCH_NORMS = {
    "BN": nn.BatchNorm2d,
    "BN2d": nn.BatchNorm2d,
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBN": CrossBatchNorm2d,
    "SyncBatchNorm": CrossBatchNorm2d,
    "MMSyncBN": CrossBatchNorm2d,
}

RELU = ({"type": "ReLU"}, {"type": "ReLU", "inplace": True})
"""What an `act_cfg` may be where we have a ReLU."""
LEAKY_RELU = tuple({"type": "LeakyReLU", "negative_slope": 0.1} | more for more in ({}, {"inplace": True}))
"""What it may be where we have Darknet's leaky ReLU."""


def norm_of(settings: Settings | None, frozen: bool = False) -> Callable[[int], nn.Module] | None:
    """What makes the norm of a `norm_cfg`.

    Args:
        settings: the norm's, or None for no norm.
        frozen: a batch norm keeps its statistics in training, too (`norm_eval`).
    """
    if settings is None:
        return None
    with settings:
        trained = settings("requires_grad", True)
        eps, momentum = settings("eps", 1e-5), settings("momentum", 0.1)
        changed = {} if eps == 1e-5 else {"eps": eps}
        if settings.kind not in (*GROUP_NORMS, *BATCH_NORMS):
            raise settings.unknown("a norm", (*BATCH_NORMS, *GROUP_NORMS))
        if not trained and not (frozen and settings.kind in BATCH_NORMS):
            raise ConfigError(
                f"{settings.path}.requires_grad is False; Boxwright freezes the weights of batch norms whose "
                "statistics are frozen, too (norm_eval=True), and of no others"
            )
        if settings.kind in GROUP_NORMS:
            return partial(group_norm, groups=settings("num_groups"), **changed)
        changed |= {} if momentum == 0.1 or not trained else {"momentum": momentum}
        norm = BATCH_NORMS[settings.kind] if trained else FrozenBatchNorm2d
        return partial(norm, **changed) if changed else norm


def conv_of(settings: Settings | None) -> Callable[..., nn.Module]:
    """What makes the convolutions of a `conv_cfg`."""
    if settings is None:
        return nn.Conv2d
    with settings:
        kinds = {"ConvWS": ConvWS2d, "Conv2d": nn.Conv2d, "Conv": nn.Conv2d, **DEFORMABLE}
        if settings.kind not in kinds:
            raise settings.unknown("a convolution", kinds)
        if settings.kind in DEFORMABLE:
            return partial(kinds[settings.kind], deform_groups=deform_groups(settings))
        return kinds[settings.kind]


def deform_groups(settings: Settings, default: int = 1) -> int:
    """Groups of channels with offsets of their own, by their name today or the one before."""
    return settings("deform_groups", settings("deformable_groups", default))


def tagged(config: Any) -> Any:
    """Mark a part's norm and convolution, so that one line changes them everywhere."""
    for name, tag in (("norm", Norm), ("conv", Conv)):
        if name in config.__arguments__:
            with_tag(config, name, tag)
    return config
