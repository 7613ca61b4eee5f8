"""The pyramid of HRNet: all resolutions joined in one map, and that map pooled (HRNetV2p)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ...values import Count
from ..layers import ConvFactory, ConvNorm, NormLayer, init_xavier

POOLINGS = {"average": F.avg_pool2d, "max": F.max_pool2d}


class HRFPN(nn.Module):
    """All inputs at the finest resolution, a 1x1 convolution, pooled levels (arXiv:1904.04514, Sec. 3).

    This is HRNetV2p. Level k is pooled by `2 ** k` from the joint map and has a 3x3 convolution of its own.

    Args:
        in_specs: the backbone's levels, from fine to coarse.
        out_channels: channels of every output.
        num_outs: number of outputs.
        pooling: "average" or "max".
        stride: of the output convolutions; 2 begins the pyramid one level higher.
        norm: makes the norm behind each convolution; None for none (convolutions then have a bias).
        conv: makes every convolution, called as `nn.Conv2d`.

    Raises:
        ConfigError: the arguments or inputs do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        out_channels: Count = 256,
        *,
        num_outs: Count = 5,
        pooling: Literal["average", "max"] = "average",
        stride: int = 1,
        norm: NormLayer | None = None,
        conv: ConvFactory = nn.Conv2d,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is {pooling!r}; it is {' or '.join(map(repr, POOLINGS))}")
        if num_outs < 1 or not in_specs:
            raise ConfigError(f"num_outs is {num_outs} from {len(in_specs)} inputs; both are 1 or more")
        self.pooling = pooling
        joint = sum(spec.channels for spec in in_specs)
        self.reduction = ConvNorm(joint, out_channels, 1, norm=norm, activation=None, conv=conv)
        self.outputs = nn.ModuleList(
            ConvNorm(out_channels, out_channels, 3, stride, norm=norm, activation=None, conv=conv)
            for _ in range(num_outs)
        )
        finest = in_specs[0].stride * stride
        self.specs = tuple(FeatureSpec(out_channels, finest * 2**k) for k in range(num_outs))
        init_xavier(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps `(B, C, H, W)`, one for each of `in_specs`, to one for each of `specs`."""
        finest = features[0]
        raised = [F.interpolate(x, finest.shape[2:], mode="bilinear") for x in features[1:]]
        joint = self.reduction(torch.cat([finest, *raised], 1))
        pool = POOLINGS[self.pooling]
        levels = [joint if k == 0 else pool(joint, 2**k, 2**k) for k in range(len(self.outputs))]
        return [output(x) for output, x in zip(self.outputs, levels, strict=True)]
