"""MMDetection's parts without weights as ours: losses, coders, assigners, samplers, anchors, suppression."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fiddle import Config
from torch import nn

from ..config import Conv, Norm
from ..errors import ConfigError
from ..models.assigners import ATSSAssigner, MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.layers import (
    ConvWS2d,
    CrossBatchNorm2d,
    FrozenBatchNorm2d,
    ModulatedDeformConv2d,
    OffsetDeformConv2d,
    group_norm,
)
from ..models.losses import (
    BalancedL1,
    BinaryCrossEntropy,
    BoundedIoULoss,
    CrossEntropy,
    FocalLoss,
    GIoULoss,
    IoULoss,
    QualityFocalLoss,
    SmoothL1,
)
from ..models.priors import Anchors
from ..models.samplers import AllSampler, OHEMSampler, RandomSampler
from ..models.suppression import GreedyNMS, SoftNMS
from ..recipes.common import with_tag
from .settings import Settings

DEFORMABLE = {
    "DCN": OffsetDeformConv2d,
    "DCNv1": OffsetDeformConv2d,
    "DCNv2": ModulatedDeformConv2d,
    "ModulatedDCN": ModulatedDeformConv2d,
}


def norm_of(settings: Settings | None, frozen: bool = False) -> Callable[[int], nn.Module] | None:
    """What makes the norm of a `norm_cfg`.

    Args:
        settings: the norm's, or None for no norm.
        frozen: a batch norm without trained weights also keeps its statistics (`norm_eval`).
    """
    if settings is None:
        return None
    with settings:
        trained, eps = settings("requires_grad", True), settings("eps", 1e-5)
        settings.ignore("momentum")
        if settings.kind == "GN":
            return partial(group_norm, groups=settings("num_groups"))
        kinds = {"BN": nn.BatchNorm2d, "BN2d": nn.BatchNorm2d}
        kinds |= {"SyncBN": CrossBatchNorm2d, "MMSyncBN": CrossBatchNorm2d}
        if settings.kind not in kinds:
            raise settings.unknown("a norm", kinds | {"GN": group_norm})
        norm = FrozenBatchNorm2d if not trained and frozen else kinds[settings.kind]
        return norm if eps == 1e-5 else partial(norm, eps=eps)


def conv_of(settings: Settings | None) -> Callable[..., nn.Module]:
    """What makes the convolutions of a `conv_cfg`."""
    if settings is None:
        return nn.Conv2d
    with settings:
        kinds = {"ConvWS": ConvWS2d, "Conv2d": nn.Conv2d, "Conv": nn.Conv2d, **DEFORMABLE}
        if settings.kind not in kinds:
            raise settings.unknown("a convolution", kinds)
        if settings.kind in DEFORMABLE:
            return partial(kinds[settings.kind], deform_groups=settings("deform_groups", 1))
        return kinds[settings.kind]


def tagged(config: Any) -> Any:
    """Mark a part's norm and convolution, so that one line changes them everywhere."""
    for name, tag in (("norm", Norm), ("conv", Conv)):
        if name in config.__arguments__:
            with_tag(config, name, tag)
    return config


def class_loss(settings: Settings) -> Config:
    """The loss of the classes."""
    with settings:
        weight = settings("loss_weight", 1.0)
        settings.ignore("reduction", "avg_non_ignore")
        settings.expect("class_weight", None)
        settings.expect("activated", False)
        if settings.kind == "CrossEntropyLoss":
            settings.expect("use_mask", False)
            return Config(
                BinaryCrossEntropy if settings("use_sigmoid", False) else CrossEntropy, weight=weight
            )
        settings.expect("use_sigmoid", True)
        if settings.kind == "FocalLoss":
            return Config(
                FocalLoss, weight=weight, alpha=settings("alpha", 0.25), gamma=settings("gamma", 2.0)
            )
        if settings.kind == "QualityFocalLoss":
            return Config(QualityFocalLoss, weight=weight, beta=settings("beta", 2.0))
        raise settings.unknown(
            "a class loss", dict.fromkeys(("CrossEntropyLoss", "FocalLoss", "QualityFocalLoss"))
        )


def box_losses(settings: Settings, decoded: bool) -> dict[str, Config]:
    """The loss of the boxes in its slot: `code_loss`, or `box_loss` where it compares decoded boxes.

    Args:
        settings: the loss's.
        decoded: whether the head compares boxes rather than codes (`reg_decoded_bbox`).
    """
    with settings:
        weight = settings("loss_weight", 1.0)
        settings.ignore("reduction")
        codes = {
            "L1Loss": lambda: Config(SmoothL1, beta=0.0, weight=weight),
            "SmoothL1Loss": lambda: Config(SmoothL1, beta=settings("beta", 1.0), weight=weight),
            "BalancedL1Loss": lambda: Config(
                BalancedL1,
                alpha=settings("alpha", 0.5),
                gamma=settings("gamma", 1.5),
                beta=settings("beta", 1.0),
                weight=weight,
            ),
        }
        boxes = {
            "IoULoss": lambda: _iou_loss(settings, weight),
            "GIoULoss": lambda: Config(GIoULoss, weight=weight, eps=settings("eps", 1e-6)),
            "BoundedIoULoss": lambda: Config(
                BoundedIoULoss, weight=weight, beta=settings("beta", 0.2), eps=settings("eps", 1e-3)
            ),
        }
        if settings.kind not in codes | boxes:
            raise settings.unknown("a box loss", codes | boxes)
        if (settings.kind in boxes) != decoded:
            kind = "boxes" if settings.kind in boxes else "codes"
            raise ConfigError(
                f"{settings.path} is a {settings.kind}, a loss of {kind}, but reg_decoded_bbox is {decoded}"
            )
        return {"box_loss": boxes[settings.kind]()} if decoded else {"code_loss": codes[settings.kind]()}


def _iou_loss(settings: Settings, weight: float) -> Config:
    mode = "linear" if settings("linear", False) else settings("mode", "log")
    return Config(IoULoss, weight=weight, mode=mode, eps=settings("eps", 1e-6))


def delta_coder(settings: Settings) -> Config:
    """`DeltaXYWHBBoxCoder`."""
    with settings:
        if settings.kind not in ("DeltaXYWHBBoxCoder", "LegacyDeltaXYWHBBoxCoder"):
            raise settings.unknown("a box coder", {"DeltaXYWHBBoxCoder": DeltaCoder})
        if settings.kind.startswith("Legacy"):
            raise ConfigError(
                f'{settings.path} adds a pixel to widths ("legacy"), which Boxwright never does'
            )
        means = tuple(settings("target_means", (0.0,) * 4))
        if any(means):
            raise ConfigError(f"{settings.path}.target_means is {means}; Boxwright has means of 0 only")
        settings.expect("clip_border", True)
        settings.expect("add_ctr_clamp", False)
        settings.ignore("ctr_clamp", "use_box_type")
        return Config(DeltaCoder, stds=tuple(settings("target_stds", (1.0,) * 4)))


def anchors(settings: Settings) -> Config:
    """`AnchorGenerator`."""
    with settings:
        if settings.kind != "AnchorGenerator":
            raise settings.unknown("an anchor generator", {"AnchorGenerator": Anchors})
        settings.expect("base_sizes", None)
        settings.expect("centers", None)
        settings.expect("scale_major", True)
        settings.ignore("strides", "use_box_type")
        scales = settings("scales", None)
        octave, per_octave = settings("octave_base_scale", None), settings("scales_per_octave", None)
        if scales is None:
            scales = [octave * 2 ** (i / per_octave) for i in range(per_octave)]
        return Config(
            Anchors,
            scales=tuple(float(scale) for scale in scales),
            ratios=tuple(float(ratio) for ratio in settings("ratios")),
            offset=float(settings("center_offset", 0.0)),
        )


def max_iou(settings: Settings, kind: str = "MaxIoUAssigner") -> Config:
    """The rule of `MaxIoUAssigner`, or of one that has the same settings."""
    with settings:
        if settings.kind != kind:
            raise settings.unknown("an assigner here", {kind: MaxIoUAssigner})
        settings.ignore("ignore_iof_thr", "ignore_wrt_candidates", "gpu_assign_thr", "iou_calculator")
        settings.ignore("perm_repeat_gt_cfg")
        if not isinstance(settings("neg_iou_thr"), int | float):
            raise ConfigError(f"{settings.path}.neg_iou_thr has a lower bound, which Boxwright does not have")
        return Config(
            MaxIoUAssigner,
            positive_iou=settings("pos_iou_thr"),
            negative_iou=settings("neg_iou_thr"),
            min_positive_iou=settings("min_pos_iou", 0.0),
            match_low_quality=settings("match_low_quality", True),
            low_quality_ties=settings("gt_max_assign_all", True),
        )


def atss(settings: Settings) -> Config:
    """`ATSSAssigner`."""
    with settings:
        if settings.kind != "ATSSAssigner":
            raise settings.unknown("an assigner here", {"ATSSAssigner": ATSSAssigner})
        settings.expect("alpha", None)
        settings.ignore("ignore_iof_thr", "iou_calculator")
        return Config(ATSSAssigner, topk=settings("topk"))


def sampler(settings: Settings | None) -> Config:
    """A sampler; all priors where there is none."""
    if settings is None:
        return Config(AllSampler)
    with settings:
        settings.ignore("add_gt_as_proposals", "context")
        if settings.kind == "PseudoSampler":
            return Config(AllSampler)
        kinds = {"RandomSampler": RandomSampler, "OHEMSampler": OHEMSampler}
        if settings.kind not in kinds:
            raise settings.unknown("a sampler", kinds | {"PseudoSampler": AllSampler})
        bound = settings("neg_pos_ub", -1)
        return Config(
            kinds[settings.kind],
            number=settings("num"),
            positive_share=settings("pos_fraction"),
            negatives_per_positive=None if bound < 0 else float(bound),
        )


def suppression(settings: Settings) -> Config:
    """What an `nms` entry says."""
    with settings:
        settings.ignore("class_agnostic", "split_thr", "max_num")
        iou = settings("iou_threshold", settings("iou_thr", 0.5))
        if settings.kind in ("nms", ""):
            return Config(GreedyNMS, iou=iou)
        if settings.kind == "soft_nms":
            method = settings("method", "linear")
            if method not in ("linear", "gaussian"):
                raise ConfigError(f"{settings.path}.method is {method!r}; Boxwright has linear and gaussian")
            return Config(
                SoftNMS,
                method=method,
                iou=iou,
                sigma=settings("sigma", 0.5),
                min_score=settings("min_score", 1e-3),
            )
        raise settings.unknown("a suppression", {"nms": GreedyNMS, "soft_nms": SoftNMS})
