"""Convolution, norm, activation: the unit that heads and necks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .fold import conv_norm
from .norm import NormLayer

Activation = Callable[[], nn.Module]
"""Makes an activation layer."""

ConvFactory = Callable[..., nn.Module]
"""Makes a convolution; called as `nn.Conv2d` is."""


def biased(*arguments: Any, conv: ConvFactory = nn.Conv2d, **more: Any) -> nn.Module:
    """A convolution with a bias even where a norm follows it, to be passed as `conv=biased`.

    Behind it a batch norm takes the bias out again, a group norm does not.

    Args:
        arguments: as of `nn.Conv2d`.
        conv: makes it.
        more: as of `nn.Conv2d`; a `bias` among them is not read.
    """
    return conv(*arguments, **{**more, "bias": True})


def relu() -> nn.ReLU:
    """ReLU that overwrites its input, which in `ConvNorm` nothing else reads."""
    return nn.ReLU(inplace=True)


def leaky_relu(slope: float = 0.1) -> nn.LeakyReLU:
    """Leaky ReLU that overwrites its input; with the slope 0.1 of Darknet's networks."""
    return nn.LeakyReLU(slope, inplace=True)


class ConvNorm(nn.Module):
    """Convolution, then norm, then activation; the last two are optional.

    The convolution has a bias exactly when no norm follows, because a norm takes the bias out again.
    Children are named `conv`, `norm` and `activation`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel.
        stride: stride of the convolution.
        padding: rows and columns added at each side; None keeps the size at stride 1.
        dilation: distance between taps.
        groups: groups of the convolution.
        norm: makes the norm layer from the number of channels; None for no norm.
        activation: makes the activation; None for none.
        conv: makes the convolution (a deformable or weight-standardised one instead of `nn.Conv2d`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        *,
        dilation: int = 1,
        groups: int = 1,
        norm: NormLayer | None = None,
        activation: Activation | None = relu,
        conv: ConvFactory = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.conv = conv(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=dilation * (kernel - 1) // 2 if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=norm is None,
        )
        self.norm = None if norm is None else norm(out_channels)
        self.activation = None if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        return conv_norm(self.conv, self.norm, x, self.activation)


def conv_tower(
    channels: Sequence[int],
    *,
    norm: NormLayer | None = None,
    activation: Activation | None = relu,
    conv: ConvFactory = nn.Conv2d,
    last_conv: ConvFactory | None = None,
) -> nn.Sequential:
    """3x3 `ConvNorm`s one behind the other, `(B, channels[0], H, W)` to `(B, channels[-1], H, W)`.

    Args:
        channels: of the input, then of each convolution; those of the input alone for no convolution.
        norm: as in `ConvNorm`.
        activation: as in `ConvNorm`.
        conv: as in `ConvNorm`.
        last_conv: makes the last convolution instead; None for `conv`.
    """
    layers = [
        ConvNorm(i, o, 3, norm=norm, activation=activation, conv=conv) for i, o in pairwise(channels[:-1])
    ]
    if len(channels) > 1:
        before, after, last = channels[-2], channels[-1], last_conv or conv
        layers.append(ConvNorm(before, after, 3, norm=norm, activation=activation, conv=last))
    return nn.Sequential(*layers)
