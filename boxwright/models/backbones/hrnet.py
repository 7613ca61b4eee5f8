"""HRNet (arXiv:1902.09212, Sec. 3; for detection arXiv:1904.04514) as a feature extractor.

Parameters are named as in the authors' code (`stage2.0.branches.0.0.conv1`, `stage2.0.fuse_layers.0.1.0`),
which timm's and MMDetection's checkpoints share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import ConvFactory, NormLayer, conv_norm, conv_norm_act, init_kaiming, set_batch_norm_eval
from .pretrained import CLASSIFIERS, load_backbone_weights
from .resnet_blocks import BasicBlock, BlockStyle, Bottleneck

TIMM_WIDTHS = (18, 30, 32, 40, 44, 48, 64)
"""Widths of the full network that timm has ImageNet weights of."""

CLASSIFIER_PARTS = ("incre_modules.", "downsamp_modules.", "final_layer.", *CLASSIFIERS)
"""What a whole classification network has behind the last stage."""


class HRNet(nn.Module):
    """Branches of several resolutions that run side by side and exchange what they found, again and again.

    Stage 1 is ResNet's first, at stride 4. Each of the stages 2 to 4 begins a new branch with half the
    resolution and twice the channels, so that the last has strides 4, 8, 16 and 32 and `width` times 1, 2,
    4 and 8 channels. A stage is a row of exchange modules (`ExchangeModule`).

    Args:
        width: channels C of the finest branch; 18, 32, 40 and 48 are those of the papers.
        modules: exchange modules of the stages 2, 3 and 4.
        blocks: residual blocks of stage 1, and of each branch in the modules of the stages 2, 3 and 4.
        first_width: inner channels of the bottlenecks of stage 1; they give four times as many.
        norm: makes the norm layer from a number of channels.
        norm_eval: batch norms keep their running statistics, in training too (`layers/norm.py`).
        conv: makes every convolution, called as `nn.Conv2d`.
        weights: None (random), "timm" (its ImageNet weights of the full network of this width), another
            name or a file; see `pretrained.read_weights`.

    Raises:
        ConfigError: an argument does not fit.
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        width: int = 18,
        *,
        modules: Sequence[int] = (1, 4, 3),
        blocks: Sequence[int] = (4, 4, 4, 4),
        first_width: int = 64,
        norm: NormLayer = nn.BatchNorm2d,
        norm_eval: bool = True,
        conv: ConvFactory = nn.Conv2d,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if len(modules) != 3 or len(blocks) != 4 or min(*modules, *blocks, width, first_width) < 1:
            raise ConfigError(
                f"modules is {tuple(modules)} and blocks {tuple(blocks)}; they take the numbers, from 1 on, "
                f"for stages 2 to 4 and for stages 1 to 4; width is {width}, first_width {first_width}"
            )
        self.norm_eval = norm_eval
        style = _style(norm, conv)
        self.conv1 = conv(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(64)
        self.conv2 = conv(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm(64)
        self.relu = nn.ReLU(inplace=True)

        channels = [first_width * Bottleneck.expansion]
        first = [Bottleneck(64, first_width, 1, style)]
        first += [Bottleneck(channels[0], first_width, 1, style) for _ in range(blocks[0] - 1)]
        self.layer1 = nn.Sequential(*first)
        for stage in (2, 3, 4):
            widths = [width * 2**i for i in range(stage)]
            row = [ExchangeModule(widths, blocks[stage - 1], style) for _ in range(modules[stage - 2])]
            self.add_module(f"transition{stage - 1}", _transition(channels, widths, style))
            self.add_module(f"stage{stage}", nn.Sequential(*row))
            channels = widths
        self.specs = tuple(FeatureSpec(width * 2**i, 4 * 2**i) for i in range(4))

        init_kaiming(self)
        if weights is not None:
            full = (tuple(modules), tuple(blocks), first_width) == ((1, 4, 3), (4, 4, 4, 4), 64)
            self._load(weights, width, full)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one `(B, C, H / stride, W / stride)` for each of `specs`."""
        x = conv_norm_act(self.conv1, self.bn1, self.relu, x)
        x = conv_norm_act(self.conv2, self.bn2, self.relu, x)
        maps = [self.layer1(x)]
        for stage in (2, 3, 4):
            # A branch that is there already goes on; the new one begins from the coarsest.
            transition: nn.ModuleList = self.get_submodule(f"transition{stage - 1}")  # pyright: ignore
            maps = [layer(maps[min(i, stage - 2)]) for i, layer in enumerate(transition)]
            maps = self.get_submodule(f"stage{stage}")(maps)
        return maps

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except (`norm_eval`) of batch norms: they stay in evaluation."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        return self

    def _load(self, weights: str | Path, width: int, full: bool) -> None:
        if weights == "timm":
            if not full or width not in TIMM_WIDTHS:
                raise ConfigError(
                    f"timm has weights of the full network with width {', '.join(map(str, TIMM_WIDTHS))}; "
                    "for this one give a file, another name of timm, or None"
                )
            weights = f"timm:hrnet_w{width}.ms_in1k"
        load_backbone_weights(self, weights, ignore=CLASSIFIER_PARTS)


class ExchangeModule(nn.Module):
    """Residual blocks on each branch, then every branch gets the sum of all (arXiv:1902.09212, Sec. 3).

    A finer map comes down by strided 3x3 convolutions, a coarser one up by a 1x1 convolution and nearest
    neighbours.

    Args:
        channels: of each branch, from fine to coarse; each has half the resolution of the one before.
        blocks: residual blocks of each branch.
        style: what the blocks share.
    """

    def __init__(self, channels: Sequence[int], blocks: int, style: BlockStyle) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, c, 1, style) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(channels, source, target, style) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map `(B, C, H, W)` a branch, and the same shapes out."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self.relu(self._joined(maps, target)) for target in range(len(maps))]

    def _joined(self, maps: Sequence[Tensor], target: int) -> Tensor:
        """The sum of all branches at the resolution of one."""
        size, parts = maps[target].shape[2:], []
        layers: nn.ModuleList = self.fuse_layers[target]  # pyright: ignore[reportAssignmentType]
        for source, (layer, x) in enumerate(zip(layers, maps, strict=True)):
            part = layer(x)
            parts.append(F.interpolate(part, size, mode="nearest") if source > target else part)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


class _Unit(nn.Sequential):
    """Convolution, norm, and a ReLU if it is there; named by number."""

    def forward(self, input: Tensor) -> Tensor:
        conv, norm, *after = self
        return conv_norm_act(conv, norm, after[0], input) if after else conv_norm(conv, norm, input)


def _style(norm: NormLayer, conv: ConvFactory) -> BlockStyle:
    return BlockStyle(
        groups=1,
        width_per_group=64,
        stride_on_first=False,
        avg_down=False,
        dilation=1,
        norm=norm,
        conv=conv,
        conv3x3=conv,
        plugin=None,
    )


def _unit(
    in_channels: int,
    out_channels: int,
    style: BlockStyle,
    kernel: int = 3,
    stride: int = 2,
    relu: bool = True,
) -> _Unit:
    padding = kernel // 2
    conv = style.conv(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
    return _Unit(conv, style.norm(out_channels), *([nn.ReLU(inplace=True)] if relu else []))


def _transition(before: Sequence[int], after: Sequence[int], style: BlockStyle) -> nn.ModuleList:
    """For each branch: nothing where channels stay, a convolution where they change or the branch is new."""
    layers: list[nn.Module] = []
    for i, channels in enumerate(after):
        if i >= len(before):
            layers.append(nn.Sequential(_unit(before[-1], channels, style)))
        elif channels != before[i]:
            layers.append(_unit(before[i], channels, style, stride=1))
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)


def _exchange(channels: Sequence[int], source: int, target: int, style: BlockStyle) -> nn.Module:
    """What brings a branch to another's channels and, if that is coarser, to its resolution."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _unit(channels[source], channels[target], style, kernel=1, stride=1, relu=False)
    steps = target - source
    halvings = [_unit(channels[source], channels[source], style) for _ in range(steps - 1)]
    return nn.Sequential(*halvings, _unit(channels[source], channels[target], style, relu=False))
