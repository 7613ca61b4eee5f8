"""Feature pyramid network (arXiv:1612.03144) and the coarser levels that RetinaNet and FCOS add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ...values import Count
from ..layers import Activation, ConvFactory, ConvNorm, NormLayer, init_xavier

ExtraLevels = Literal["pool", "on_input", "on_lateral", "on_output"]
"""What the levels above the top one are made from."""

EXTRA_LEVELS = ("pool", "on_input", "on_lateral", "on_output")


class FPN(nn.Module):
    """Top-down pathway with lateral 1x1 convolutions, then a 3x3 convolution on each level (Sec. 3).

    Beyond the top level come `num_outs` minus the number of inputs used, each of twice the stride.

    Args:
        in_specs: the backbone's levels, from fine to coarse.
        out_channels: channels of every output.
        start_level: index of the first input used; RetinaNet and FCOS on C2..C5 start at 1 (C3).
        num_outs: number of outputs.
        extra: what makes the levels beyond the top: "pool" takes every second pixel of the last output
            (Faster R-CNN's P6); the others are 3x3 convolutions with stride 2, the first on the last
            input ("on_input": RetinaNet's P6 from C5), on its lateral ("on_lateral"), or on the last
            output ("on_output": FCOS's P6 from P5), the next on the one before. None forbids such levels.
        relu_before_extra: a ReLU before the second extra convolution and those after it (P7).
        norm: makes the norm behind each convolution; None for none (convolutions then have a bias).
        norm_on_lateral: whether the lateral convolutions have that norm as well.
        activation: makes the activation behind each convolution; None for none.
        conv: makes every convolution, called as `nn.Conv2d`.

    Raises:
        ConfigError: the arguments do not fit each other or the inputs.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        out_channels: Count = 256,
        *,
        start_level: int = 0,
        num_outs: Count = 5,
        extra: ExtraLevels | None = "pool",
        relu_before_extra: bool = False,
        norm: NormLayer | None = None,
        norm_on_lateral: bool = True,
        activation: Activation | None = None,
        conv: ConvFactory = nn.Conv2d,
    ) -> None:
        super().__init__()
        _check(in_specs, start_level, num_outs, extra, relu_before_extra)
        used = list(in_specs[start_level:])
        num_extra = num_outs - len(used)
        self.start_level, self.extra, self.relu_before_extra = start_level, extra, relu_before_extra
        self.num_extra = num_extra

        def layer(channels: int, kernel: int, stride: int = 1, with_norm: bool = True) -> ConvNorm:
            return ConvNorm(
                channels,
                out_channels,
                kernel,
                stride,
                norm=norm if with_norm else None,
                activation=activation,
                conv=conv,
            )

        self.laterals = nn.ModuleList(layer(spec.channels, 1, with_norm=norm_on_lateral) for spec in used)
        self.outputs = nn.ModuleList(layer(out_channels, 3) for _ in used)
        self.extras = nn.ModuleList()
        if extra != "pool":
            first = used[-1].channels if extra == "on_input" else out_channels
            self.extras.extend(layer(first if i == 0 else out_channels, 3, 2) for i in range(num_extra))

        strides = [spec.stride for spec in used] + [used[-1].stride * 2 ** (i + 1) for i in range(num_extra)]
        self.specs = tuple(FeatureSpec(out_channels, stride) for stride in strides)
        init_xavier(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps `(B, C, H, W)`, one for each of `in_specs`, to one for each of `specs`."""
        inputs = features[self.start_level :]
        laterals = [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, mode="nearest")
        outs = [output(x) for output, x in zip(self.outputs, laterals, strict=True)]

        if self.extra == "pool":
            for _ in range(self.num_extra):
                outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
            return outs
        source = {"on_input": inputs, "on_lateral": laterals}.get(self.extra or "", outs)[-1]
        for i, conv in enumerate(self.extras):
            source = conv(F.relu(source) if self.relu_before_extra and i > 0 else source)
            outs.append(source)
        return outs


def _check(
    in_specs: Sequence[FeatureSpec],
    start_level: int,
    num_outs: int,
    extra: str | None,
    relu_before_extra: bool,
) -> None:
    if not 0 <= start_level < len(in_specs):
        raise ConfigError(f"start_level is {start_level}, but the backbone gives {len(in_specs)} levels")
    used = len(in_specs) - start_level
    if num_outs < used:
        raise ConfigError(f"num_outs is {num_outs}, but {used} inputs are used; raise it or start_level")
    if extra is not None and extra not in EXTRA_LEVELS:
        raise ConfigError(f"extra is {extra!r}; it is None or one of {', '.join(EXTRA_LEVELS)}")
    if extra is None and num_outs > used:
        raise ConfigError(
            f"num_outs is {num_outs} with {used} inputs and no `extra` to make more levels from"
        )
    if relu_before_extra and (extra in (None, "pool") or num_outs < used + 2):
        raise ConfigError("relu_before_extra has no effect without two extra convolutions; leave it out")
    for fine, coarse in zip(in_specs[start_level:], in_specs[start_level + 1 :], strict=False):
        if coarse.stride < fine.stride:  # equal ones are fine: stages of MobileNetV3 have them
            raise ConfigError(f"levels go from fine to coarse; stride {coarse.stride} follows {fine.stride}")
