"""Deformable convolutions: with offsets from outside, or with offsets of their own in place of `nn.Conv2d`.

| class | offsets | paper |
| --- | --- | --- |
| `DeformConv2d` | given: `conv(x, offset)`, `conv(x, offset, mask)` | both |
| `OffsetDeformConv2d` | its own: `conv(x)` | arXiv:1703.06211 (v1) |
| `ModulatedDeformConv2d` | its own, and weights of the taps: `conv(x)` | arXiv:1811.11168 (v2) |

The last two are called and built as `nn.Conv2d` is, so they go wherever a `ConvFactory` does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...ops.deform_conv import Pair, deform_conv2d, pair


class DeformConv2d(nn.Module):
    """A convolution whose taps are moved by offsets that are given with each input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or height and width.
        stride: stride of the convolution.
        padding: rows and columns of zeros at each side.
        dilation: distance between taps.
        groups: groups of the convolution.
        bias: whether the output has a learnt bias.
        deform_groups: D, how many groups of input channels have offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        deform_groups: int = 1,
    ) -> None:
        super().__init__()
        for name, number in (("groups", groups), ("deform_groups", deform_groups)):
            if number < 1 or in_channels % number:
                raise ValueError(f"{name} is {number}, which does not divide {in_channels} input channels")
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        self.deform_groups = deform_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def taps(self) -> int:
        """Taps of all groups with offsets: D * kernel height * kernel width."""
        return self.deform_groups * self.kernel_size[0] * self.kernel_size[1]

    def reset_parameters(self) -> None:
        """Kaiming's normal weights for ReLU, by fan out, as ResNet's other convolutions; no bias."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve at moved taps; see `ops.deform_conv.deform_conv2d`.

        Args:
            x: `(B, in_channels, H, W)`.
            offset: `(B, 2 * taps, H', W')` cells of the input; of each tap vertical, then horizontal.
            mask: `(B, taps, H', W')` factors of the taps; None for 1.

        Returns:
            `(B, out_channels, H', W')`.
        """
        return deform_conv2d(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


class OffsetDeformConv2d(DeformConv2d):
    """Deformable convolution with its own offsets (v1, arXiv:1703.06211, Sec. 2.1, Fig. 2).

    A convolution of the same kernel, stride and dilation makes the offsets of the input. It is zero at
    first, so that training starts from the plain convolution. Arguments as `DeformConv2d`.
    """

    numbers_per_tap: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        deform_groups: int = 1,
    ) -> None:
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            deform_groups=deform_groups,
        )
        self.conv_offset = _zero_conv(self, in_channels, self.numbers_per_tap * self.taps)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        return super().forward(x, self.conv_offset(x))


class ModulatedDeformConv2d(OffsetDeformConv2d):
    """Deformable convolution with its own offsets and factors of the taps (v2, arXiv:1811.11168, Sec. 3.2).

    Beside the offsets, the extra convolution makes one number a tap, which goes through a sigmoid. It is
    zero at first: training starts from half of the plain convolution, as in the paper.
    """

    numbers_per_tap = 3

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        offset, logits = self.conv_offset(x).split((2 * self.taps, self.taps), dim=1)
        return DeformConv2d.forward(self, x, offset, logits.sigmoid())


def deform_3x3(in_channels: int, out_channels: int, kernel_size: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A deformable convolution v2 in place of a 3x3 convolution, an ordinary one in place of any other."""
    layer = ModulatedDeformConv2d if kernel_size == 3 else nn.Conv2d
    return layer(in_channels, out_channels, kernel_size, *args, **kwargs)


def _zero_conv(conv: DeformConv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    """A plain convolution at the taps of `conv`, zero."""
    layer = nn.Conv2d(in_channels, out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
