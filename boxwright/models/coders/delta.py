"""Centre shift and log size relative to a prior (R-CNN, arXiv:1311.2524, App. C)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.constants import constant
from ...values import Positive


@dataclass(frozen=True)
class DeltaCoder:
    """`dx, dy, dw, dh`: shift of the centre in prior sizes, logarithm of the size ratio.

    Args:
        stds: codes are divided by these, so that their spread is near one. Fast R-CNN's second stage
            has (0.1, 0.1, 0.2, 0.2).
        max_log_ratio: `dw` and `dh` are held below this when decoding, so that exp stays finite.
        min_log_ratio: likewise from below; MMDetection holds both sides, torchvision only the upper.
    """

    stds: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    max_log_ratio: float = math.log(1000.0 / 16)
    min_log_ratio: float = -math.log(1000.0 / 16)

    @property
    def size(self) -> int:
        """Numbers of a code."""
        return 4

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor | None = None) -> Tensor:
        """Codes `(..., 4)` of boxes `(..., 4)`; empty boxes give finite codes."""
        prior_centre, prior_size = _centre_size(priors)
        centre, size = _centre_size(boxes)
        smallest = torch.finfo(torch.float32).tiny * 1e6
        prior_size, size = prior_size.clamp(min=smallest), size.clamp(min=smallest)
        codes = torch.cat(((centre - prior_centre) / prior_size, (size / prior_size).log()), dim=-1)
        return codes / constant(self.stds, codes.device, codes.dtype)

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor | None = None) -> Tensor:
        """Boxes `(..., 4)` of codes `(..., 4)`, in float32."""
        shift, log_ratio = (codes.float() * constant(self.stds, codes.device, priors.dtype)).split(2, dim=-1)
        prior_centre, prior_size = _centre_size(priors)
        centre = prior_centre + shift * prior_size
        size = prior_size * log_ratio.clamp(self.min_log_ratio, self.max_log_ratio).exp()
        return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    upper_left, lower_right = boxes.float().split(2, dim=-1)
    return (upper_left + lower_right) / 2, lower_right - upper_left
