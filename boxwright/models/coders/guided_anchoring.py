"""Width and height of an anchor relative to a square (guided anchoring, arXiv:1901.03278, Eq. 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import from_cxcywh, to_cxcywh
from ...ops.constants import constant
from ...values import Positive


@dataclass(frozen=True)
class ShapeCoder:
    """`dw, dh`: logarithms of the size ratios; the centre is the prior's.

    Args:
        stds: codes are divided by these.
        max_log_ratio: logarithms are held within plus and minus this when decoding.
    """

    stds: tuple[Positive, Positive] = (1.0, 1.0)
    max_log_ratio: float = math.log(1e6)

    @property
    def size(self) -> int:
        """Numbers of a code."""
        return 2

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor | None = None) -> Tensor:
        """Codes `(..., 2)` of the sizes of boxes `(..., 4)`; empty boxes give finite codes."""
        ratio = to_cxcywh(boxes)[..., 2:] / to_cxcywh(priors)[..., 2:]
        log_ratio = ratio.clamp(min=math.exp(-self.max_log_ratio)).log()
        return log_ratio / constant(self.stds, log_ratio.device, log_ratio.dtype)

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor | None = None) -> Tensor:
        """Boxes `(..., 4)` of codes `(..., 2)` about the centres of priors `(..., 4)`, in float32."""
        centre, size = (part.expand(*codes.shape[:-1], 2) for part in to_cxcywh(priors).split(2, dim=-1))
        log_ratio = (codes.float() * constant(self.stds, size.device, size.dtype)).clamp(
            -self.max_log_ratio, self.max_log_ratio
        )
        return from_cxcywh(torch.cat((centre, size * log_ratio.exp()), dim=-1))
