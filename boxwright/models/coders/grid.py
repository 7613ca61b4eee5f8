"""Place within a grid cell and log size relative to an anchor (YOLOv3, arXiv:1804.02767, Sec. 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import from_cxcywh, to_cxcywh


@dataclass(frozen=True)
class GridCoder:
    """`t_x, t_y, t_w, t_h`: `b_x = sigmoid(t_x) + c_x`, in cells, and `b_w = p_w exp(t_w)` (Sec. 2.1).

    `c_x` is the left side of the cell in whose centre the prior stands, `p_w` the prior's width; likewise
    for y and the height.

    Args:
        eps: codes of a place in its cell are held at this distance from 0 and 1, those of a size ratio
            above it, so that all are finite.
        max_log_ratio: `t_w` and `t_h` are held below this when decoding, so that exp stays finite.
    """

    eps: float = 1e-6
    max_log_ratio: float = 10.0

    @property
    def size(self) -> int:
        """Numbers of a code."""
        return 4

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Targets `(..., 4)` of boxes: what `sigmoid(t_x), sigmoid(t_y), t_w, t_h` should become."""
        centre, size = to_cxcywh(boxes).split(2, dim=-1)
        prior_centre, prior_size = to_cxcywh(priors).split(2, dim=-1)
        place = (centre - prior_centre) / strides[..., None] + 0.5
        log_ratio = (size / prior_size).clamp(min=self.eps).log()
        return torch.cat((place.clamp(self.eps, 1 - self.eps), log_ratio), dim=-1)

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Boxes `(..., 4)` of raw codes `(..., 4)`, in float32."""
        place, log_ratio = codes.float().split(2, dim=-1)
        prior_centre, prior_size = to_cxcywh(priors).split(2, dim=-1)
        centre = prior_centre + (place.sigmoid() - 0.5) * strides[..., None]
        size = prior_size * log_ratio.clamp(max=self.max_log_ratio).exp()
        return from_cxcywh(torch.cat((centre, size), dim=-1))
