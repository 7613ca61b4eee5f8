"""MMDetection's backbones and necks as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fiddle import Config, Partial
from torch import nn

from ..config import Norm, Pretrained
from ..errors import ConfigError
from ..models.backbones.darknet import Darknet
from ..models.backbones.hrnet import HRNet
from ..models.backbones.resnet import ResNet
from ..models.backbones.vgg import VGG
from ..models.layers import ContextBlock
from ..models.necks import FPN, HRFPN, NoNeck, SSDNeck, YOLONeck
from ..recipes.common import with_tag
from .parts import DEFORMABLE, conv_of, norm_of, tagged
from .settings import Settings


def backbone(settings: Settings) -> Config:
    """The backbone, from random weights: a checkpoint follows."""
    with settings:
        settings.ignore("pretrained", "with_cp", "zero_init_residual")
        if settings.kind not in BACKBONES:
            raise settings.unknown("a backbone", BACKBONES)
        made = BACKBONES[settings.kind](settings)
        return with_tag(made, "weights", Pretrained)


def resnet(settings: Settings) -> Config:
    """ResNet, its deep-stem variants, and ResNeXt."""
    config = Config(ResNet, **resnet_arguments(settings))
    return tagged(config)


def resnet_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of our `ResNet`."""
    settings.expect("in_channels", 3)
    settings.expect("base_channels", 64)
    settings.expect("stem_channels", None, 64)
    stages = settings("num_stages", 4)
    frozen = settings("frozen_stages", -1)
    if frozen == 0:
        raise ConfigError(f"{settings.path}.frozen_stages=0 freezes the stem alone; here stages go with it")
    eval_norms = settings("norm_eval", True)
    deep = settings.kind in ("ResNetV1c", "ResNetV1d")
    arguments: dict[str, Any] = {
        "depth": settings("depth"),
        "style": settings("style", "pytorch"),
        "out_stages": tuple(i + 1 for i in settings("out_indices", (0, 1, 2, 3))),
        "frozen_stages": max(frozen, 0),
        "norm": norm_of(settings.optional("norm_cfg"), eval_norms) or nn.BatchNorm2d,
        "norm_eval": eval_norms,
        "conv": conv_of(settings.optional("conv_cfg")),
        "deep_stem": settings("deep_stem", deep),
        "avg_down": settings("avg_down", settings.kind == "ResNetV1d"),
        "weights": None,
    }
    if settings.kind == "ResNeXt":
        arguments |= {"groups": settings("groups", 1), "width_per_group": settings("base_width", 4)}
    for name, ours in (("strides", "strides"), ("dilations", "dilations")):
        value = tuple(settings(name, ()))
        if value:
            arguments[ours] = (*value, *(1,) * (4 - len(value)))
    arguments |= _deformable(settings, stages) | _plugins(settings)
    return arguments


def _deformable(settings: Settings, stages: int) -> dict[str, Any]:
    dcn = settings.optional("dcn")
    where = settings("stage_with_dcn", (False,) * stages)
    if dcn is None:
        return {}
    with dcn:
        dcn.expect("fallback_on_stride", False)
        if dcn.kind not in DEFORMABLE:
            raise dcn.unknown("a convolution", DEFORMABLE)
        groups = dcn("deform_groups", dcn("deformable_groups", 1))
        layer = DEFORMABLE[dcn.kind]
    return {"conv3x3": [Partial(layer, deform_groups=groups) if deform else None for deform in where]}


def _plugins(settings: Settings) -> dict[str, Any]:
    if settings("plugins", None) is None:
        return {}
    made: list[Any] = [None] * 4
    for plugin in settings.parts("plugins"):
        with plugin:
            plugin.expect("position", "after_conv3")
            stages = plugin("stages", (True,) * 4)
            with plugin.part("cfg") as block:
                if block.kind != "ContextBlock":
                    raise block.unknown("a plugin", {"ContextBlock": ContextBlock})
                kinds = {"att": "attention", "avg": "average"}
                fusions = {"channel_add": "add", "channel_mul": "scale"}
                context = Partial(
                    ContextBlock,
                    ratio=block("ratio"),
                    pooling=kinds[block("pooling_type", "att")],
                    fusions=tuple(fusions[f] for f in block("fusion_types", ("channel_add",))),
                )
        for i, there in enumerate(stages):
            if there and made[i] is not None:
                raise ConfigError(f"{settings.path}.plugins puts two plugins into stage {i + 1}")
            made[i] = context if there else made[i]
    return {"plugins": made}


def hrnet(settings: Settings) -> Config:
    """HRNet."""
    settings.expect("multiscale_output", True)
    settings.expect("in_channels", 3)
    settings.expect("conv_cfg", None)
    stages: Mapping[str, Any] = settings("extra")
    first, *others = (stages[f"stage{i}"] for i in range(1, 5))
    width = others[0]["num_channels"][0]
    for i, stage in enumerate(others):
        wanted = [width * 2**k for k in range(i + 2)]
        if list(stage["num_channels"]) != wanted or len(set(stage["num_blocks"])) != 1:
            raise ConfigError(
                f"{settings.path}.extra.stage{i + 2} has channels {stage['num_channels']} and blocks "
                f"{stage['num_blocks']}; Boxwright's HRNet has {wanted} and as many blocks in each branch"
            )
    eval_norms = settings("norm_eval", True)
    config = Config(
        HRNet,
        width=width,
        modules=tuple(stage["num_modules"] for stage in others),
        blocks=(first["num_blocks"][0], *(stage["num_blocks"][0] for stage in others)),
        first_width=first["num_channels"][0],
        norm=norm_of(settings.optional("norm_cfg"), eval_norms) or nn.BatchNorm2d,
        norm_eval=eval_norms,
        weights=None,
    )
    return with_tag(config, "norm", Norm)


def vgg(settings: Settings) -> Config:
    """`SSDVGG`."""
    settings.expect("with_last_pool", False)
    settings.expect("ceil_mode", True)
    settings.expect("out_indices", [3, 4], (3, 4))
    settings.ignore("out_feature_indices", "input_size", "l2_norm_scale")
    return Config(VGG, depth=settings("depth", 16), weights=None)


def darknet(settings: Settings) -> Config:
    """Darknet-53."""
    settings.ignore("act_cfg")
    eval_norms = settings("norm_eval", True)
    return Config(
        Darknet,
        depth=settings("depth", 53),
        out_stages=tuple(settings("out_indices", (3, 4, 5))),
        frozen_stages=max(settings("frozen_stages", -1), 0),
        norm=norm_of(settings.optional("norm_cfg"), eval_norms) or nn.BatchNorm2d,
        norm_eval=eval_norms,
        weights=None,
    )


BACKBONES: dict[str, Callable[[Settings], Config]] = {
    "ResNet": resnet,
    "ResNeXt": resnet,
    "ResNetV1c": resnet,
    "ResNetV1d": resnet,
    "HRNet": hrnet,
    "SSDVGG": vgg,
    "Darknet": darknet,
}


def neck(settings: Settings | None) -> Partial:
    """The neck; without one the backbone's levels go on as they are."""
    if settings is None:
        return Partial(NoNeck)
    with settings:
        settings.ignore("in_channels")
        if settings.kind not in NECKS:
            raise settings.unknown("a neck", NECKS)
        return NECKS[settings.kind](settings)


def fpn(settings: Settings) -> Partial:
    """Feature pyramid."""
    settings.expect("end_level", -1)
    settings.expect("act_cfg", None)
    settings.expect("upsample_cfg", {"mode": "nearest"})
    settings.ignore("extra_convs_on_inputs")
    extra = settings("add_extra_convs", False)
    extra = {False: "pool", True: "on_input"}.get(extra, extra)
    config = Partial(
        FPN,
        out_channels=settings("out_channels"),
        start_level=settings("start_level", 0),
        num_outs=settings("num_outs"),
        extra=extra,
        relu_before_extra=settings("relu_before_extra_convs", False),
        norm=norm_of(settings.optional("norm_cfg")),
        norm_on_lateral=not settings("no_norm_on_lateral", False),
        conv=conv_of(settings.optional("conv_cfg")),
    )
    return tagged(config)


def hrfpn(settings: Settings) -> Partial:
    """HRNet's pyramid."""
    pooling = {"AVG": "average", "MAX": "max"}[settings("pooling_type", "AVG")]
    config = Partial(
        HRFPN,
        out_channels=settings("out_channels"),
        num_outs=settings("num_outs", 5),
        pooling=pooling,
        stride=settings("stride", 1),
        norm=norm_of(settings.optional("norm_cfg")),
        conv=conv_of(settings.optional("conv_cfg")),
    )
    return tagged(config)


def ssd_neck(settings: Settings) -> Partial:
    """SSD's extra levels."""
    settings.expect("conv_cfg", None)
    settings.expect("use_depthwise", False)
    settings.ignore("act_cfg")
    strides, paddings = settings("level_strides"), settings("level_paddings")
    outputs = settings("out_channels")
    last = settings("last_kernel_size", 3)
    return Partial(
        SSDNeck,
        channels=tuple(outputs[-len(strides) :]),
        kernels=(*(3,) * (len(strides) - 1), last),
        strides=tuple(strides),
        paddings=tuple(paddings),
        l2_norm_scale=settings("l2_norm_scale", 20.0),
        norm=norm_of(settings.optional("norm_cfg")),
    )


def yolo_neck(settings: Settings) -> Partial:
    """YOLOv3's neck; levels there go from coarse to fine."""
    settings.expect("conv_cfg", None)
    settings.ignore("num_scales", "act_cfg")
    return Partial(
        YOLONeck,
        out_channels=tuple(reversed(settings("out_channels"))),
        norm=norm_of(settings.optional("norm_cfg")) or nn.BatchNorm2d,
    )


NECKS: dict[str, Callable[[Settings], Partial]] = {
    "FPN": fpn,
    "HRFPN": hrfpn,
    "SSDNeck": ssd_neck,
    "YOLOV3Neck": yolo_neck,
}
