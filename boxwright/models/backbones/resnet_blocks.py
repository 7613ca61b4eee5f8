"""The residual blocks of ResNet, with the places where later papers change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..layers import ConvFactory, NormLayer, conv_norm, conv_norm_act


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a stage share; `ResNet` explains each.

    Args:
        groups: groups of the 3x3 convolution of a bottleneck.
        width_per_group: channels of a group at 64 planes.
        stride_on_first: a bottleneck's stride is on its first convolution, not on its 3x3.
        avg_down: the shortcut averages before its convolution.
        dilation: of the 3x3 convolutions.
        norm: makes norms.
        conv: makes 1x1 convolutions.
        conv3x3: makes 3x3 convolutions.
        plugin: makes a layer behind the branch's last norm.
    """

    groups: int
    width_per_group: int
    stride_on_first: bool
    avg_down: bool
    dilation: int
    norm: NormLayer
    conv: ConvFactory
    conv3x3: ConvFactory
    plugin: Callable[[int], nn.Module] | None


class Block(nn.Module):
    """A residual block: `relu(branch(x) + shortcut(x))`.

    Args:
        in_channels: channels of the input.
        planes: channels of the inner convolutions; the output has `expansion` times as many.
        stride: stride of the block.
        style: what the blocks of the stage share.
    """

    expansion: ClassVar[int]

    def __init__(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.build_branch(in_channels, planes, stride, style)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = _shortcut(in_channels, out_channels, stride, style)
        self.plugin = None if style.plugin is None else style.plugin(out_channels)

    def build_branch(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        """Make the layers of the branch."""
        raise NotImplementedError(f"{type(self).__name__} has to define `build_branch`")

    def inner(self, x: Tensor) -> tuple[Tensor, nn.Module, nn.Module]:
        """The branch before its last convolution and norm, and these two."""
        raise NotImplementedError(f"{type(self).__name__} has to define `inner`")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, planes * expansion, H / stride, W / stride)`."""
        inner, conv, norm = self.inner(x)
        if self.plugin is None:
            shortcut = x if self.downsample is None else self.downsample(x)
            return conv_norm(conv, norm, inner, self.relu, shortcut)
        residual = self.plugin(conv_norm(conv, norm, inner))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def build_branch(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        """Make the layers of the branch."""
        d = style.dilation
        self.conv1 = style.conv3x3(in_channels, planes, 3, stride=stride, padding=d, dilation=d, bias=False)
        self.bn1 = style.norm(planes)
        self.conv2 = style.conv3x3(planes, planes, 3, stride=1, padding=d, dilation=d, bias=False)
        self.bn2 = style.norm(planes)

    def inner(self, x: Tensor) -> tuple[Tensor, nn.Module, nn.Module]:
        """The branch before its last convolution and norm, and these two."""
        return conv_norm_act(self.conv1, self.bn1, self.relu, x), self.conv2, self.bn2


class Bottleneck(Block):
    """1x1, 3x3, 1x1 convolution (ResNet-50 and deeper; grouped 3x3 in ResNeXt)."""

    expansion = 4

    def build_branch(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        """Make the layers of the branch."""
        width = planes * style.width_per_group // 64 * style.groups
        first, second = (stride, 1) if style.stride_on_first else (1, stride)
        d = style.dilation
        self.conv1 = style.conv(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = style.norm(width)
        self.conv2 = style.conv3x3(
            width, width, 3, stride=second, padding=d, dilation=d, groups=style.groups, bias=False
        )
        self.bn2 = style.norm(width)
        self.conv3 = style.conv(width, planes * self.expansion, 1, bias=False)
        self.bn3 = style.norm(planes * self.expansion)

    def inner(self, x: Tensor) -> tuple[Tensor, nn.Module, nn.Module]:
        """The branch before its last convolution and norm, and these two."""
        x = conv_norm_act(self.conv1, self.bn1, self.relu, x)
        return conv_norm_act(self.conv2, self.bn2, self.relu, x), self.conv3, self.bn3


class Shortcut(nn.Sequential):
    """A projection: averaging if wanted, convolution, norm."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to the shape of the branch."""
        *before, conv, norm = self
        for layer in before:
            input = layer(input)
        return conv_norm(conv, norm, input)


def _shortcut(in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> Shortcut:
    layers: list[nn.Module] = []
    if style.avg_down and stride != 1:
        layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    layers += [style.conv(in_channels, out_channels, 1, stride=stride, bias=False), style.norm(out_channels)]
    return Shortcut(*layers)
