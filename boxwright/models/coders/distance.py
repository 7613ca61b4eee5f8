"""Distances from a point to the four sides of a box (FCOS, arXiv:1904.01355, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import centres


@dataclass(frozen=True)
class DistanceCoder:
    """`left, top, right, bottom` from the prior's centre.

    Args:
        activation: makes raw outputs into distances; FCOS has exp, its later version relu.
        in_strides: distances are counted in strides of the level rather than in pixels.
    """

    activation: Callable[[Tensor], Tensor] = torch.exp
    in_strides: bool = False

    @property
    def size(self) -> int:
        """Numbers of a code."""
        return 4

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Distances `(..., 4)` from each prior to its box: what
        `activation(codes)` should become. Negative where the point lies outside the box.
        """
        centre = centres(priors)
        distances = torch.cat((centre - boxes[..., :2], boxes[..., 2:] - centre), dim=-1)
        return distances / strides[..., None] if self.in_strides else distances

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Boxes `(..., 4)` of raw codes `(..., 4)`, in float32."""
        distances = self.activation(codes.float())
        if self.in_strides:
            distances = distances * strides[..., None]
        centre = centres(priors)
        return torch.cat((centre - distances[..., :2], centre + distances[..., 2:]), dim=-1)
