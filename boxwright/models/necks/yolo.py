"""The neck of YOLOv3 (arXiv:1804.02767, Sec. 2.3): coarse features, upsampled, join the finer ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import Activation, ConvNorm, NormLayer, init_kaiming, leaky_relu


class YOLONeck(nn.Module):
    """Five convolutions on each level, coarse to fine; a level's result joins the next finer input.

    The five are 1x1 and 3x3 in turn, with `out_channels` and twice as many. Between two levels stand a 1x1
    convolution to the finer level's channels and nearest upsampling; the two maps are concatenated.

    Args:
        in_specs: the backbone's levels, from fine to coarse.
        out_channels: channels of each output, from fine to coarse.
        norm: makes the norm behind each convolution; None for none.
        activation: makes the activation behind each convolution.

    Raises:
        ConfigError: not one number of channels for each level.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        out_channels: Sequence[int] = (128, 256, 512),
        *,
        norm: NormLayer | None = nn.BatchNorm2d,
        activation: Activation = leaky_relu,
    ) -> None:
        super().__init__()
        if len(out_channels) != len(in_specs):
            raise ConfigError(
                f"out_channels has {len(out_channels)} numbers; the backbone gives {len(in_specs)} levels"
            )

        def block(channels: int, out: int) -> nn.Sequential:
            widths = (channels, out, 2 * out, out, 2 * out, out)
            return nn.Sequential(
                *(
                    ConvNorm(i, o, 3 if number % 2 else 1, norm=norm, activation=activation)
                    for number, (i, o) in enumerate(pairwise(widths))
                )
            )

        self.laterals = nn.ModuleList(
            ConvNorm(coarse, fine, 1, norm=norm, activation=activation)
            for fine, coarse in pairwise(out_channels)
        )
        joined = (*out_channels[:-1], 0)  # what a level gets from the next coarser one
        self.blocks = nn.ModuleList(
            block(spec.channels + more, out)
            for spec, more, out in zip(in_specs, joined, out_channels, strict=True)
        )
        self.specs = tuple(
            FeatureSpec(out, spec.stride) for spec, out in zip(in_specs, out_channels, strict=True)
        )
        init_kaiming(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps `(B, C, H, W)`, one for each of `in_specs`, to one for each of `specs`."""
        outs = [self.blocks[-1](features[-1])]
        for level in range(len(features) - 2, -1, -1):
            finer = features[level]
            up = F.interpolate(self.laterals[level](outs[0]), size=finer.shape[-2:], mode="nearest")
            outs.insert(0, self.blocks[level](torch.cat((up, finer), dim=1)))
        return outs
