"""MMDetection's RoI heads as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fiddle import Config, Partial
from torch import nn

from ..config import NumClasses
from ..errors import ConfigError
from ..models.roi_heads import (
    HTC,
    FusedExtractor,
    MaskHead,
    MeanLogits,
    RoIExtractor,
    RoIHeads,
    SemanticBranch,
)
from ..recipes import common
from . import parts
from .box_stages import shared_trunk, stage
from .layers import conv_of, norm_of, tagged
from .settings import Settings

KINDS = ("StandardRoIHead", "CascadeRoIHead", "HybridTaskCascadeRoIHead", "DynamicRoIHead")
CASCADES = ("CascadeRoIHead", "HybridTaskCascadeRoIHead")


@dataclass(frozen=True)
class Semantic:
    """How the features of HTC's semantic branch are pooled.

    Args:
        size: side of the pooled features.
        sampling_ratio: of their RoIAlign.
        aligned: likewise.
    """

    size: int
    sampling_ratio: int
    aligned: bool


def heads(
    settings: Settings, train: list[Settings], test: Settings, strides: Sequence[int]
) -> Partial[RoIHeads]:
    """The RoI heads, their training and test settings, on levels of these strides."""
    with settings:
        settings.only("a RoI head", *KINDS)
        settings.ignore("pretrained", "train_cfg", "test_cfg")
        hybrid = settings.kind == "HybridTaskCascadeRoIHead"
        count = settings("num_stages") if settings.kind in CASCADES else 1
        semantic, branch = _semantic(settings, strides) if hybrid else (None, None)
        boxes = extractor(settings.part("bbox_roi_extractor"), strides, semantic)
        trunk = shared_trunk(settings.optional("shared_head"))
        if trunk is not None and count > 1:
            raise ConfigError(f"{settings.path}.shared_head: Boxwright shares no stage among a cascade's")
        made = _each(settings, "bbox_head", count)
        if len(train) != count:
            raise ConfigError(f"model.train_cfg.rcnn has {len(train)} entries for {count} stages")
        stages = [
            stage(box, boxes, one, test, trunk, settings.kind) for box, one in zip(made, train, strict=True)
        ]
        config: Partial = Partial(HTC if hybrid else RoIHeads, stages=stages)
        if settings.kind in CASCADES:
            weights = tuple(float(w) for w in settings("stage_loss_weights"))
            if len(weights) != count:
                raise ConfigError(f"{settings.path}.stage_loss_weights has {len(weights)} for {count} stages")
            config.loss_weights, config.average = weights, Config(MeanLogits)
        _masks(settings, config, count, boxes, strides, semantic)
        if hybrid:
            config.semantic = branch
        return config


def _each(settings: Settings, name: str, count: int) -> list[Settings]:
    """A head for each stage; one that stands alone is that of all."""
    made = settings.parts(name)
    if isinstance(settings.values[name], Mapping):
        made = [Settings(settings.values[name], f"{settings.path}.{name}") for _ in range(count)]
    if len(made) != count:
        raise ConfigError(f"{settings.path}.{name} has {len(made)} entries for {count} stages")
    return made


def _semantic(settings: Settings, strides: Sequence[int]) -> tuple[Semantic | None, Partial | None]:
    """HTC's semantic branch and how it is pooled; its other settings are what our HTC is."""
    settings.expect("interleaved", True)
    settings.expect("mask_info_flow", True)
    settings.expect("semantic_fusion", ("bbox", "mask"), ["bbox", "mask"])
    head = settings.optional("semantic_head")
    if head is None:
        settings.ignore("semantic_roi_extractor")
        return None, None
    branch = semantic_branch(head)
    pooled = extractor(settings.part("semantic_roi_extractor"), strides[branch.level :], None)
    if pooled.levels != 1:
        raise ConfigError(f"{settings.path}.semantic_roi_extractor has {pooled.levels} levels, not one")
    return Semantic(pooled.size, pooled.sampling_ratio, pooled.aligned), branch


def extractor(settings: Settings, strides: Sequence[int], semantic: Semantic | None) -> Config[RoIExtractor]:
    """`SingleRoIExtractor` with `RoIAlign`, on levels of these strides, with or without a semantic branch."""
    with settings:
        settings.only("a RoI extractor", "SingleRoIExtractor")
        levels = settings("featmap_strides")
        parts.check_strides(f"{settings.path}.featmap_strides", levels, strides)
        settings.ignore("out_channels")
        arguments: dict[str, Any] = {
            "levels": len(levels),
            "finest_scale": float(settings("finest_scale", 56)),
        }
        with settings.part("roi_layer") as layer:
            layer.only("a RoI layer", "RoIAlign")
            layer.expect("pool_mode", "avg")
            layer.ignore("use_torchvision")
            # Before MMCV 1.0 they were called out_size and sample_num.
            size = layer("out_size") if "out_size" in layer.values else layer("output_size")
            if isinstance(size, Sequence):
                if len(set(size)) != 1:
                    raise ConfigError(f"{layer.path}.output_size is {size}; Boxwright has squares only")
                size = size[0]
            arguments["size"] = size
            arguments["sampling_ratio"] = layer("sampling_ratio", layer("sample_num", 0))
            arguments["aligned"] = layer("aligned", True)
    if semantic is None:
        return Config(RoIExtractor, **arguments)
    if (semantic.sampling_ratio, semantic.aligned) != (arguments["sampling_ratio"], arguments["aligned"]):
        raise ConfigError(f"{settings.path}.roi_layer samples otherwise than semantic_roi_extractor")
    return Config(FusedExtractor, semantic_size=semantic.size, **arguments)


def _masks(
    settings: Settings,
    config: Partial,
    count: int,
    boxes: Config[RoIExtractor],
    strides: Sequence[int],
    semantic: Semantic | None,
) -> None:
    """Set the mask heads, if there are any."""
    own = settings.optional("mask_roi_extractor")
    if settings("mask_head", None) is None:
        if settings.kind == "HybridTaskCascadeRoIHead":
            raise ConfigError(f"{settings.path} has no mask_head; Boxwright's HTC needs one in each stage")
        return
    shared = settings("shared_head", None) is not None
    if shared and own is not None:
        raise ConfigError(
            f"{settings.path}.mask_roi_extractor: behind a shared_head Boxwright has masks on the boxes' "
            "regions only"
        )
    pooled = boxes if own is None else extractor(own, strides, semantic)
    made = [mask(one, pooled) for one in _each(settings, "mask_head", count)]
    config.mask = made if settings.kind in CASCADES else made[0]
    if settings.kind == "HybridTaskCascadeRoIHead":
        if made[0].conv is not nn.Conv2d:
            raise ConfigError(f"{settings.path}.mask_head.conv_cfg: Boxwright's HTC has plain convolutions")
        config.flow_norm = made[0].norm
    if shared:
        config.share_trunk = True


def mask(settings: Settings, extractor: Config[RoIExtractor]) -> Partial[MaskHead]:
    """`FCNMaskHead`, and `HTCMaskHead`, whose extra convolution belongs to `HTC` here."""
    with settings:
        settings.only("a mask head", "FCNMaskHead", "HTCMaskHead")
        settings.ignore("in_channels", "roi_feat_size", "with_conv_res")
        settings.expect("class_agnostic", False)
        settings.expect("conv_kernel_size", 3)
        settings.expect("upsample_cfg", {"type": "deconv", "scale_factor": 2})
        settings.expect("predictor_cfg", {"type": "Conv"})
        weight = 1.0
        loss = settings.optional("loss_mask")
        if loss is not None:
            with loss:
                loss.only("a loss of masks", "CrossEntropyLoss")
                if not loss("use_mask", False):
                    raise ConfigError(f"{loss.path}.use_mask is not True; Boxwright has only True here")
                loss.expect("use_sigmoid", False)
                weight = loss("loss_weight", 1.0)
        head = Partial(
            MaskHead,
            num_classes=settings("num_classes"),
            extractor=extractor,
            channels=settings("conv_out_channels", 256),
            convs=settings("num_convs", 4),
            norm=norm_of(settings.optional("norm_cfg")),
            conv=conv_of(settings.optional("conv_cfg")),
            weight=weight,
        )
        return common.with_tag(tagged(head), "num_classes", NumClasses)


def semantic_branch(settings: Settings) -> Partial[SemanticBranch]:
    """`FusedSemanticHead`."""
    with settings:
        settings.only("a semantic head", "FusedSemanticHead")
        settings.ignore("num_ins", "in_channels", "conv_out_channels", "seg_scale_factor")
        settings.expect("conv_cfg", None)
        settings.expect("ignore_label", None, 255)
        weight = settings("loss_weight", None)
        loss = settings.optional("loss_seg")
        if loss is not None:
            with loss:
                loss.only("a loss of semantic classes", "CrossEntropyLoss")
                loss.expect("use_sigmoid", False)
                loss.expect("ignore_index", 255)
                weight = weight or loss("loss_weight", 1.0)
        return Partial(
            SemanticBranch,
            num_classes=settings("num_classes", 183),
            level=settings("fusion_level"),
            convs=settings("num_convs", 4),
            norm=norm_of(settings.optional("norm_cfg")),
            weight=0.2 if weight is None else weight,
        )
