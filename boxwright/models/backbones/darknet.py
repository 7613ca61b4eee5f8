"""Darknet-53 (YOLOv3, arXiv:1804.02767, Sec. 2.4, Table 1) as a feature extractor.

Parameters are named as in MMDetection's Darknet (`conv1.conv`, `conv_res_block1.res0.conv1.conv`), except
that the norm of a convolution is called `norm` here and `bn` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import Activation, ConvNorm, NormLayer, freeze, init_kaiming, leaky_relu, set_batch_norm_eval
from .pretrained import load_backbone_weights

ARCHITECTURES = {53: (1, 2, 8, 8, 4)}
"""Residual blocks of each stage, by depth (Table 1)."""


class DarknetBlock(nn.Module):
    """A 1x1 convolution to half the channels, a 3x3 one back, and the input added (Table 1).

    Args:
        channels: of input and output.
        norm: makes the norm layer from a number of channels.
        activation: makes the activation.
    """

    def __init__(self, channels: int, norm: NormLayer | None, activation: Activation) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNorm(channels, half, 1, norm=norm, activation=activation)
        self.conv2 = ConvNorm(half, channels, 3, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` in, the same shape out."""
        return x + self.conv2(self.conv1(x))


class Darknet(nn.Module):
    """Darknet-53 that gives the outputs of chosen stages, from fine to coarse.

    Stages are counted from 1 (stride 2, 64 channels) to 5 (stride 32, 1024 channels); each is a 3x3
    convolution of stride 2 and residual blocks. Stages behind the last one asked for are not built. Start a
    detector from pretrained `weights`, or set `norm_eval=False`: random weights under fixed statistics do
    not train well.

    Args:
        depth: 53.
        out_stages: stages whose outputs are given, ascending.
        frozen_stages: 0 freezes nothing; k freezes the first convolution and the first k stages,
            parameters and batch norm statistics.
        norm: makes the norm layer from a number of channels.
        activation: makes the activation behind each norm.
        norm_eval: batch norms keep their running statistics, in training too (`layers/norm.py`).
        weights: None (random) or a file with MMDetection's names, of the backbone alone or of a whole
            detector; see `pretrained.read_weights`. timm's Darknet-53 has another slope of the leaky ReLU,
            so its weights do not belong here: `TimmBackbone("darknet53", min_stride=8)` is that network.

    Raises:
        ConfigError: an argument does not fit the others.
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        depth: int = 53,
        *,
        out_stages: Sequence[int] = (3, 4, 5),
        frozen_stages: int = 0,
        norm: NormLayer | None = nn.BatchNorm2d,
        activation: Activation = leaky_relu,
        norm_eval: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.depth, self.out_stages = depth, tuple(out_stages)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self._check()
        self.conv1 = ConvNorm(3, 32, 3, norm=norm, activation=activation)
        for stage in range(1, self.out_stages[-1] + 1):
            channels = 32 * 2**stage
            blocks = nn.Sequential()
            blocks.add_module(
                "conv", ConvNorm(channels // 2, channels, 3, 2, norm=norm, activation=activation)
            )
            for i in range(ARCHITECTURES[depth][stage - 1]):
                blocks.add_module(f"res{i}", DarknetBlock(channels, norm, activation))
            self.add_module(f"conv_res_block{stage}", blocks)
        self.specs = tuple(FeatureSpec(32 * 2**stage, 2**stage) for stage in self.out_stages)
        init_kaiming(self)
        if weights is not None:
            names = {name.replace(".norm.", ".bn."): name for name in self.state_dict()}
            unbuilt = [f"conv_res_block{stage}." for stage in range(self.out_stages[-1] + 1, 6)]
            load_backbone_weights(self, weights, unbuilt, names)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one `(B, C, H / stride, W / stride)` for each of `specs`."""
        x = self.conv1(x)
        features = []
        for stage in range(1, self.out_stages[-1] + 1):
            x = self.get_submodule(f"conv_res_block{stage}")(x)
            if stage in self.out_stages:
                features.append(x)
        return features

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except of frozen stages and (`norm_eval`) batch norms: they stay in evaluation."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        if self.frozen_stages:
            freeze(self.conv1)
            for stage in range(1, self.frozen_stages + 1):
                freeze(self.get_submodule(f"conv_res_block{stage}"))
        return self

    def _check(self) -> None:
        if self.depth not in ARCHITECTURES:
            raise ConfigError(f"depth is {self.depth}; Darknet has {', '.join(map(str, ARCHITECTURES))}")
        stages = self.out_stages
        if not stages or list(stages) != sorted(set(stages)) or not set(range(1, 6)).issuperset(stages):
            raise ConfigError(f"out_stages is {stages}; it takes some of 1, 2, 3, 4, 5 in ascending order")
        if not 0 <= self.frozen_stages <= stages[-1]:
            raise ConfigError(f"frozen_stages is {self.frozen_stages}; {stages[-1]} stages are built")
