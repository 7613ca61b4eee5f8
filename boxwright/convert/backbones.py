"""MMDetection's backbones as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fiddle import Config, Partial
from torch import nn

from ..config import Norm, Pretrained
from ..errors import ConfigError
from ..models.backbones.darknet import Darknet
from ..models.backbones.hrnet import HRNet
from ..models.backbones.resnet import ResNet
from ..models.backbones.vgg import CONVOLUTIONS, VGG
from ..models.layers import ContextBlock
from ..recipes.common import with_tag
from .layers import DEFORMABLE, LEAKY_RELU, conv_of, deform_groups, norm_of, tagged
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
    eval_norms = settings("norm_eval", True)
    depth, dilations = settings("depth"), tuple(settings("dilations", ()))
    if depth < 50 and set(dilations) - {1}:
        raise ConfigError(
            f"{settings.path}.dilations is {dilations}; of two 3x3 convolutions in a block, as depth {depth} "
            "has them, Boxwright dilates both"
        )
    deep = settings.kind in ("ResNetV1c", "ResNetV1d")
    style = settings("style", "pytorch")
    arguments: dict[str, Any] = {
        "depth": depth,
        "style": style if depth >= 50 else "pytorch",  # which bottlenecks alone have
        "out_stages": tuple(i + 1 for i in settings("out_indices", (0, 1, 2, 3))),
        "frozen_stages": max(frozen, 0),
        "norm": norm_of(settings.optional("norm_cfg"), eval_norms) or nn.BatchNorm2d,
        "norm_eval": eval_norms,
        "conv": conv_of(settings.optional("conv_cfg")),
        "deep_stem": settings("deep_stem", deep),
        "avg_down": settings("avg_down", settings.kind == "ResNetV1d"),
        "weights": None,
    }
    if frozen == 0:
        arguments["frozen_stem"] = True
    if settings.kind == "ResNeXt":
        arguments |= {"groups": settings("groups", 1), "width_per_group": settings("base_width", 4)}
    for name, value in (("strides", tuple(settings("strides", ()))), ("dilations", dilations)):
        if value:
            arguments[name] = (*value, *(1,) * (4 - len(value)))
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
        groups, layer = deform_groups(dcn), DEFORMABLE[dcn.kind]
    return {"conv3x3": [Partial(layer, deform_groups=groups) if deform else None for deform in where]}


def _plugins(settings: Settings) -> dict[str, Any]:
    if settings("plugins", None) is None:
        return {}
    made: list[Any] = [None] * 4
    for plugin in settings.parts("plugins"):
        with plugin:
            plugin.expect("position", "after_conv3")
            stages = plugin("stages", None) or (True,) * 4
            with plugin.part("cfg") as block:
                if block.kind != "ContextBlock":
                    raise block.unknown("a plugin", {"ContextBlock": ContextBlock})
                kinds = {"att": "attention", "avg": "average"}
                fusions = {"channel_add": "add", "channel_mul": "scale"}
                context = Partial(
                    ContextBlock,
                    ratio=block("ratio"),
                    pooling=block.choice("pooling_type", kinds, "att"),
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
    extra = settings.part("extra")
    first, *others = (
        _branches(extra.part(f"stage{i}"), i, "BASIC" if i > 1 else "BOTTLENECK") for i in range(1, 5)
    )
    width = others[0][1][0]
    for i, (_, channels, _) in enumerate(others):
        wanted = [width * 2**k for k in range(i + 2)]
        if channels != wanted:
            raise ConfigError(
                f"{extra.path}.stage{i + 2}.num_channels is {channels}; Boxwright's HRNet has {wanted}"
            )
    eval_norms = settings("norm_eval", True)
    config = Config(
        HRNet,
        width=width,
        modules=tuple(modules for modules, _, _ in others),
        blocks=tuple(blocks for _, _, blocks in (first, *others)),
        first_width=first[1][0],
        norm=norm_of(settings.optional("norm_cfg"), eval_norms) or nn.BatchNorm2d,
        norm_eval=eval_norms,
        weights=None,
    )
    return with_tag(config, "norm", Norm)


def _branches(stage: Settings, number: int, block: str) -> tuple[int, list[int], int]:
    """Modules of a stage, channels of its branches, and blocks of each."""
    with stage:
        stage.expect("block", block)
        stage.expect("num_branches", number)
        stage.expect("multiscale_output", True)
        stage.expect("fuse_method", "SUM")
        blocks = stage("num_blocks")
        if len(set(blocks)) != 1:
            raise ConfigError(f"{stage.path}.num_blocks is {blocks}; Boxwright has as many in each branch")
        return stage("num_modules"), list(stage("num_channels")), blocks[0]


def vgg(settings: Settings) -> Config:
    """`SSDVGG`."""
    settings.expect("with_last_pool", False)
    settings.expect("ceil_mode", True)
    settings.ignore("out_indices", "input_size", "l2_norm_scale")  # the last two are read with the neck
    depth = settings("depth", 16)
    if depth not in CONVOLUTIONS:
        raise ConfigError(
            f"{settings.path}.depth is {depth}; Boxwright has {', '.join(map(str, CONVOLUTIONS))}"
        )
    *_, before_last, last = (sum(CONVOLUTIONS[depth][:stage]) for stage in range(1, 6))
    # Each convolution has a ReLU behind it, each stage a pool; fc6 and fc7 follow.
    ours = (2 * before_last + 2, 2 * last + 8)
    given = tuple(settings("out_feature_indices", (22, 34)))
    if given != ours:
        raise ConfigError(f"{settings.path}.out_feature_indices is {given}; Boxwright has {ours}")
    return Config(VGG, depth=depth, weights=None)


def darknet(settings: Settings) -> Config:
    """Darknet-53."""
    settings.expect("act_cfg", *LEAKY_RELU)
    settings.expect("conv_cfg", None)
    eval_norms, frozen = settings("norm_eval", True), settings("frozen_stages", -1)
    if frozen == 1:
        raise ConfigError(
            f"{settings.path}.frozen_stages=1 freezes the first convolution alone; here a stage goes with it"
        )
    return Config(
        Darknet,
        depth=settings("depth", 53),
        out_stages=tuple(settings("out_indices", (3, 4, 5))),
        frozen_stages=max(frozen - 1, 0),  # there the first convolution is a stage
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
