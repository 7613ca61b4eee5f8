"""What SSD (arXiv:1512.02325, Sec. 3) puts behind its backbone: a norm, and ever coarser levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import ConvNorm, NormLayer, init_xavier


class L2Norm(nn.Module):
    """Scales the channels of each place to length 1, then each by a learnt factor.

    ParseNet (arXiv:1506.04579, Sec. 3.3, Eq. 1-3) has it for layers whose scales differ; SSD (Sec. 3.1) for
    conv4_3, with factors that start with 20. Computed in float32.

    Args:
        channels: of the input.
        scale: what the factors start with.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in, the same shape and dtype out; a place of zeros stays so."""
        unit = F.normalize(x.float(), dim=1, eps=1e-10)
        return (unit * self.weight.float()[:, None, None]).to(x.dtype)


class SSDNeck(nn.Module):
    """The backbone's levels, the first one normed, and extra levels, each made from the one before.

    An extra level is a 1x1 convolution to half of its channels and one with a larger kernel, each with a
    ReLU. The defaults are SSD300's: maps of 10, 5, 3 and 1 places a side behind fc7's 19 (Fig. 2).
    A map that is smaller than the kernel, as small canvases have them, is padded with zeros to
    the kernel's size, so that every level has at least one place.

    Args:
        in_specs: the backbone's levels, from fine to coarse.
        channels: of each extra level.
        kernels: side of each level's second kernel.
        strides: of each level's second convolution.
        paddings: of each level's second convolution.
        l2_norm_scale: initial scale of the first level's `L2Norm`; None for no norm.
        norm: makes the norm behind each convolution; None for none (as in the paper).

    Raises:
        ConfigError: the arguments are not of one length.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        channels: Sequence[int] = (512, 256, 256, 256),
        kernels: Sequence[int] = (3, 3, 3, 3),
        strides: Sequence[int] = (2, 2, 1, 1),
        paddings: Sequence[int] = (1, 1, 0, 0),
        l2_norm_scale: float | None = 20.0,
        norm: NormLayer | None = None,
    ) -> None:
        super().__init__()
        if len({len(channels), len(kernels), len(strides), len(paddings)}) != 1:
            raise ConfigError(
                "SSDNeck: channels, kernels, strides and paddings must have one entry for each extra level, "
                f"but have {len(channels)}, {len(kernels)}, {len(strides)} and {len(paddings)}"
            )
        self.l2_norm = None if l2_norm_scale is None else L2Norm(in_specs[0].channels, l2_norm_scale)
        specs, self.extras = list(in_specs), nn.ModuleList()
        for width, kernel, stride, padding in zip(channels, kernels, strides, paddings, strict=True):
            squeeze = ConvNorm(specs[-1].channels, width // 2, 1, norm=norm)
            self.extras.append(
                nn.Sequential(squeeze, ConvNorm(width // 2, width, kernel, stride, padding, norm=norm))
            )
            specs.append(FeatureSpec(width, specs[-1].stride * stride))
        self.specs = tuple(specs)
        self.reach = tuple(k - 2 * p for k, p in zip(kernels, paddings, strict=True))
        init_xavier(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps `(B, C, H, W)` to one for each of `specs`."""
        outs = list(features)
        x = outs[-1]
        if self.l2_norm is not None:
            outs[0] = self.l2_norm(outs[0])
        for (squeeze, expand), reach in zip(self.extras, self.reach, strict=True):  # pyright: ignore
            x = expand(_at_least(squeeze(x), reach))
            outs.append(x)
        return outs


def _at_least(x: Tensor, side: int) -> Tensor:
    """A map `(B, C, H, W)`, padded with zeros at the right and at the bottom up to `side` places."""
    height, width = x.shape[-2:]
    if height >= side and width >= side:
        return x
    return F.pad(x, (0, max(side - width, 0), 0, max(side - height, 0)))
