"""MMDetection's necks as ours."""

from __future__ import annotations

from collections.abc import Callable

from fiddle import Partial
from torch import nn

from ..errors import ConfigError
from ..models.necks import FPN, HRFPN, NoNeck, SSDNeck, YOLONeck
from .layers import LEAKY_RELU, RELU, conv_of, norm_of, tagged
from .settings import Settings


def neck(settings: Settings | None, backbone: Settings) -> Partial:
    """The neck; without one the backbone's levels go on as they are."""
    if settings is None:
        return before_ssd_neck(backbone) if backbone.kind == "SSDVGG" else Partial(NoNeck)
    with settings:
        settings.ignore("in_channels")  # what the backbone gives
        if settings.kind not in NECKS:
            raise settings.unknown("a neck", NECKS)
        return NECKS[settings.kind](settings)


def fpn(settings: Settings) -> Partial:
    """Feature pyramid."""
    inputs, start, outputs = settings("in_channels"), settings("start_level", 0), settings("num_outs")
    settings.expect("end_level", -1, len(inputs) - 1)
    settings.expect("act_cfg", None)
    settings.expect("upsample_cfg", {"mode": "nearest"})
    on_inputs = settings("extra_convs_on_inputs", True)  # of 2.x, what True means
    kinds = {False: "pool", True: "on_input" if on_inputs else "on_output"}
    extra = settings.choice(
        "add_extra_convs", kinds | {kind: kind for kind in ("on_input", "on_lateral", "on_output")}, False
    )
    # A ReLU stands before the second of the extra convolutions; with fewer it has no place.
    relu = settings("relu_before_extra_convs", False) and extra != "pool"
    relu = relu and outputs >= len(inputs) - start + 2
    config = Partial(
        FPN,
        out_channels=settings("out_channels"),
        start_level=start,
        num_outs=outputs,
        extra=extra,
        relu_before_extra=relu,
        norm=norm_of(settings.optional("norm_cfg")),
        norm_on_lateral=not settings("no_norm_on_lateral", False),
        conv=conv_of(settings.optional("conv_cfg")),
    )
    return tagged(config)


def hrfpn(settings: Settings) -> Partial:
    """HRNet's pyramid, whose convolutions have no norm whatever the settings say."""
    settings.ignore("with_cp", "norm_cfg")
    pooling = settings.choice("pooling_type", {"AVG": "average", "MAX": "max"}, "AVG")
    config = Partial(
        HRFPN,
        out_channels=settings("out_channels"),
        num_outs=settings("num_outs", 5),
        pooling=pooling,
        stride=settings("stride", 1),
        norm=None,
        conv=conv_of(settings.optional("conv_cfg")),
    )
    return tagged(config)


def ssd_neck(settings: Settings) -> Partial:
    """SSD's extra levels."""
    settings.expect("conv_cfg", None)
    settings.expect("use_depthwise", False)
    settings.expect("act_cfg", *RELU)
    strides, paddings = settings("level_strides"), settings("level_paddings")
    outputs = settings("out_channels")
    last = settings("last_kernel_size", 3)
    return Partial(
        SSDNeck,
        channels=tuple(outputs[-len(strides) :]),
        kernels=(*(3,) * (len(strides) - 1), last),
        strides=tuple(strides),
        paddings=tuple(paddings),
        l2_norm_scale=settings("l2_norm_scale", 20.0) or None,
        norm=norm_of(settings.optional("norm_cfg")),
    )


def before_ssd_neck(backbone: Settings) -> Partial:
    """The extra levels that the backbone of SSD had before 2.14, for the side of its images."""
    side, scale = backbone("input_size", None), backbone("l2_norm_scale", None)
    sides = {
        300: Partial(SSDNeck),
        512: Partial(
            SSDNeck,
            channels=(512, 256, 256, 256, 256),
            kernels=(3, 3, 3, 3, 4),
            strides=(2, 2, 2, 2, 1),
            paddings=(1, 1, 1, 1, 1),
        ),
    }
    if side not in sides:
        raise ConfigError(
            f"the model has no neck, and {backbone.path}.input_size is {side}; SSD's extra levels are known "
            "for 300 and 512"
        )
    sides[side].l2_norm_scale = 20.0 if scale is None else scale
    return sides[side]


def yolo_neck(settings: Settings) -> Partial:
    """YOLOv3's neck; levels there go from coarse to fine."""
    settings.expect("conv_cfg", None)
    settings.ignore("num_scales")
    settings.expect("act_cfg", *LEAKY_RELU)
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
