"""Parts of Detectron2's detectors as ours: what shapes and names of the weights say, and what its keys do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fiddle import Config, Partial
from torch import Tensor, nn

from ..config import build
from ..errors import ConfigError
from ..models.coders import DeltaCoder
from ..models.dense_heads import DensePostprocess
from ..models.detectors import Normalise
from ..models.layers import (
    CrossBatchNorm2d,
    FrozenBatchNorm2d,
    ModulatedDeformConv2d,
    OffsetDeformConv2d,
    group_norm,
)
from ..models.priors import Anchors
from ..models.roi_heads import FourConvOneFC, RoIExtractor, TwoFC
from ..recipes import rpn
from .detectron2_keys import REQUIRED, Keys

Weights = Mapping[str, Tensor]

BLOCKS_OF_RES4 = {6: 50, 23: 101, 36: 152}
BGR_MEAN, BGR_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm2d,
    "BN": nn.BatchNorm2d,
    "SyncBN": CrossBatchNorm2d,
    "nnSyncBN": CrossBatchNorm2d,
    "naiveSyncBN": CrossBatchNorm2d,
    "GN": group_norm,
}


def norm_behind(weights: Weights, conv: str) -> Callable[[int], nn.Module] | None:
    """The norm of a convolution outside the backbone: none, group norm, or batch norm over all processes."""
    if f"{conv}.norm.weight" not in weights:
        return None
    return CrossBatchNorm2d if f"{conv}.norm.running_mean" in weights else group_norm


def resnet_arguments(weights: Weights, body: str, keys: Keys) -> dict[str, Any]:
    """Arguments of our `ResNet`.

    The zoo's frozen ResNets have Caffe's style, its ResNeXts and group norms PyTorch's; of its trained batch
    norms there are both.

    Raises:
        ConfigError: it is no ResNet of bottlenecks, or has no norms.
    """
    blocks = {m[1] for name in weights if (m := re.match(rf"{re.escape(body)}\.res4\.(\d+)\.", name))}
    if len(blocks) not in BLOCKS_OF_RES4 or f"{body}.res2.0.conv3.weight" not in weights:
        raise ConfigError(
            "the backbone (MODEL.BACKBONE.NAME, MODEL.RESNETS.DEPTH) is no ResNet of bottlenecks: its res4 "
            f"has {len(blocks)} blocks; Boxwright converts those of depth 50, 101 and 152"
        )
    middle = weights[f"{body}.res2.0.conv2.weight"]
    groups = middle.shape[0] // middle.shape[1]
    kind = keys("MODEL.RESNETS.NORM", _norm_of_zoo(weights, body))
    if kind not in NORMS:
        raise ConfigError(f"MODEL.RESNETS.NORM is {kind!r}; Boxwright has {', '.join(NORMS)}")
    style = {"FrozenBN": groups == 1, "GN": False}.get(kind, REQUIRED)
    frozen = int(keys("MODEL.BACKBONE.FREEZE_AT", 2))
    return {
        "depth": BLOCKS_OF_RES4[len(blocks)],
        "groups": groups,
        "width_per_group": middle.shape[0] // groups,
        "style": "caffe" if keys("MODEL.RESNETS.STRIDE_IN_1X1", style) else "pytorch",
        "norm": NORMS[kind],
        "norm_eval": kind == "FrozenBN",
        "frozen_stages": max(frozen - 1, 0),
        "frozen_stem": frozen == 1,
        "conv3x3": [_deformable(weights, f"{body}.res{stage}.0", keys) for stage in range(2, 6)],
    }


def _norm_of_zoo(weights: Weights, body: str) -> str:
    """What the weights tell of it: where other parts have batch norms, the backbone's are trained, too."""
    if f"{body}.stem.conv1.norm.weight" not in weights:
        return ""
    if f"{body}.stem.conv1.norm.running_mean" not in weights:
        return "GN"
    others = ("backbone.fpn_", "roi_heads.box_head", "roi_heads.mask_head")
    trained = any(name.startswith(others) and name.endswith("running_mean") for name in weights)
    return "SyncBN" if trained else "FrozenBN"


def _deformable(weights: Weights, block: str, keys: Keys) -> Partial | None:
    """A deformable 3x3 convolution; with factors of the taps it has 27 numbers a group, without 18."""
    offsets = weights.get(f"{block}.conv2_offset.weight")
    if offsets is None:
        return None
    numbers = offsets.shape[0]
    # Groups divide a number of channels, a power of two: so 18 numbers a group are never a multiple of 27.
    modulated = numbers % 27 == 0
    keys.expect("MODEL.RESNETS.DEFORM_MODULATED", modulated)
    layer = ModulatedDeformConv2d if modulated else OffsetDeformConv2d
    return Partial(layer, deform_groups=numbers // (27 if modulated else 18))


def normalise(arguments: Mapping[str, Any], keys: Keys) -> Config[Normalise]:
    """What is done to the images; the zoo divides by the deviation for ResNeXt-101.

    Args:
        arguments: the backbone's.
        keys: of the configuration.
    """
    colours = keys("INPUT.FORMAT", "BGR")
    if colours not in ("BGR", "RGB"):
        raise ConfigError(f"INPUT.FORMAT is {colours!r}; Boxwright has BGR and RGB")
    std: Any = REQUIRED
    if arguments["norm"] is FrozenBatchNorm2d:
        std = BGR_STD if arguments["groups"] > 1 and arguments["depth"] == 101 else (1.0, 1.0, 1.0)
    mean = tuple(float(v) for v in keys("MODEL.PIXEL_MEAN", BGR_MEAN))
    std = tuple(float(v) for v in keys("MODEL.PIXEL_STD", std))
    bgr = colours == "BGR"
    return Config(Normalise, mean=mean[::-1] if bgr else mean, std=std[::-1] if bgr else std, bgr=bgr)


def coder(weights: Sequence[float]) -> Config[DeltaCoder]:
    """Codes are multiplied by these there; exp is held from above alone."""
    stds = tuple(1.0 / float(weight) for weight in weights)
    return Config(DeltaCoder, stds=stds, min_log_ratio=-math.inf)


def anchors(
    weights: Weights, keys: Keys, strides: Sequence[int], zoo: Sequence[Sequence[float]], per_place: int
) -> Config[Anchors]:
    """Anchors of these levels.

    Args:
        weights: early versions kept the anchors among them, to which ours are held.
        keys: of the configuration.
        strides: of the levels.
        zoo: sides of each level's anchors in the zoo, px.
        per_place: how many the weights predict for.

    Raises:
        ConfigError: the anchors are others than ours can be, or than the weights have.
    """
    keys.expect("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    name = "MODEL.ANCHOR_GENERATOR"
    sizes = _per_level(keys(f"{name}.SIZES", zoo), len(strides), f"{name}.SIZES")
    ratios = _per_level(
        keys(f"{name}.ASPECT_RATIOS", [[0.5, 1.0, 2.0]]), len(strides), f"{name}.ASPECT_RATIOS"
    )
    if len(set(ratios)) > 1:
        raise ConfigError(
            f"{name}.ASPECT_RATIOS is {list(ratios)}; Boxwright has the same ratios on all levels"
        )
    if any(len(level) * len(ratios[0]) != per_place for level in sizes):
        raise ConfigError(
            f"the weights predict for {per_place} anchors at a place, but {name}.SIZES="
            f"{[list(level) for level in sizes]} and {name}.ASPECT_RATIOS={list(ratios[0])} do not make as "
            "many: give the configuration that the weights were trained with (--config)"
        )
    made = Config(Anchors, ratios=ratios[0], offset=float(keys(f"{name}.OFFSET", 0.0)))
    scales = [[side / stride for side in level] for level, stride in zip(sizes, strides, strict=True)]
    if all(
        math.isclose(a, b, rel_tol=1e-6) for level in scales for a, b in zip(level, scales[0], strict=True)
    ):
        made.scales = tuple(scales[0])
    else:
        made.sizes = sizes
    _compare(weights, build(made), strides)
    return made


def _compare(weights: Weights, priors: Anchors, strides: Sequence[int]) -> None:
    """Raise where the weights hold other anchors than these."""
    for level, stride in enumerate(strides):
        end = f"anchor_generator.cell_anchors.{level}"
        kept = next((value for name, value in weights.items() if name.endswith(end)), None)
        if kept is None:
            continue
        ours, theirs = (sorted(boxes.tolist()) for boxes in (priors.base(level, stride), kept))
        same = len(ours) == len(theirs) and torch.allclose(
            torch.tensor(ours), torch.tensor(theirs), atol=0.01
        )
        if not same:
            raise ConfigError(
                f"the checkpoint was trained with other anchors than MODEL.ANCHOR_GENERATOR.SIZES and "
                f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS make ({end}): give its configuration (--config)"
            )


def _per_level(values: Sequence[Any], levels: int, key: str) -> tuple[tuple[float, ...], ...]:
    """A list for each level; one alone is for all."""
    lists = [values] if values and not isinstance(values[0], list | tuple) else values
    lists = [tuple(float(v) for v in one) for one in lists]
    lists = lists * levels if len(lists) == 1 else lists
    if len(lists) != levels:
        raise ConfigError(f"{key} has {len(lists)} lists for {levels} levels")
    return tuple(lists)


def proposals(keys: Keys, when: str, before: int, after: int) -> Config[DensePostprocess]:
    """What the proposal network gives in training ("TRAIN") or otherwise ("TEST"); the zoo's numbers."""
    made = rpn.proposals(
        int(keys(f"MODEL.RPN.PRE_NMS_TOPK_{when}", before)),
        int(keys(f"MODEL.RPN.POST_NMS_TOPK_{when}", after)),
    )
    made.nms.iou = float(keys("MODEL.RPN.NMS_THRESH", 0.7))
    made.min_side = float(keys("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0))
    return made


def extractor(keys: Keys, head: str, levels: int, size: int) -> Config[RoIExtractor]:
    """How a head ("ROI_BOX_HEAD", "ROI_MASK_HEAD") pools its regions."""
    kinds = {"ROIAlignV2": True, "ROIAlign": False}
    kind = keys(f"MODEL.{head}.POOLER_TYPE", "ROIAlignV2")
    if kind not in kinds:
        raise ConfigError(f"MODEL.{head}.POOLER_TYPE is {kind!r}; Boxwright has {', '.join(kinds)}")
    return Config(
        RoIExtractor,
        size=int(size),
        levels=levels,
        sampling_ratio=int(keys(f"MODEL.{head}.POOLER_SAMPLING_RATIO", 0)),
        aligned=kinds[kind],
    )


def box_trunk(weights: Weights, head: str) -> Partial[TwoFC] | Partial[FourConvOneFC]:
    """The layers of a `FastRCNNConvFCHead` whose names begin with `head`.

    Raises:
        ConfigError: others than two fully connected layers, or four convolutions and one.
    """
    convs = [w for i in range(1, 32) if (w := weights.get(f"{head}.conv{i}.weight")) is not None]
    linear = [w for i in range(1, 32) if (w := weights.get(f"{head}.fc{i}.weight")) is not None]
    widths = {len(w) for w in linear}
    if (len(convs), len(linear)) == (0, 2) and len(widths) == 1:
        return Partial(TwoFC, width=widths.pop())
    if (len(convs), len(linear)) == (4, 1) and len({len(w) for w in convs}) == 1:
        norm = norm_behind(weights, f"{head}.conv1")
        return Partial(FourConvOneFC, width=widths.pop(), conv_width=len(convs[0]), norm=norm)
    raise ConfigError(
        f"the box head has MODEL.ROI_BOX_HEAD.NUM_CONV={len(convs)} and MODEL.ROI_BOX_HEAD.NUM_FC="
        f"{len(linear)}; Boxwright has 0 and 2, or 4 and 1, each of one width"
    )


def pooled_side(weights: Weights, head: str, channels: int) -> int:
    """Side of the regions of that many channels that a `FastRCNNConvFCHead` takes."""
    last = max((i for i in range(1, 32) if f"{head}.conv{i}.weight" in weights), default=0)
    channels = weights[f"{head}.conv{last}.weight"].shape[0] if last else channels
    return math.isqrt(weights[f"{head}.fc1.weight"].shape[1] // channels)
