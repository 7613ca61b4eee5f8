"""Points: one prior at the centre of each place (FCOS, arXiv:1904.01355, Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ops.constants import constant
from ...structures import Priors
from .grid import grid_steps, repeat_over_grid


@dataclass(frozen=True)
class Points:
    """A square of one stride around each point, so that points and anchors are the same to the parts.

    Args:
        offset: place of the point within its cell; 0.5 is floor(s/2) + x*s of the paper.
        step_from_canvas: see `Anchors`.
    """

    offset: float = 0.5
    step_from_canvas: bool = False

    def num_per_place(self, level: int = 0) -> int:
        """One."""
        return 1

    def __call__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        canvas: tuple[int, int],
        device: torch.device | None = None,
    ) -> Priors:
        """Points for feature maps of these shapes, levels one behind the other."""
        square = constant(((-0.5, -0.5, 0.5, 0.5),), device)
        steps = grid_steps(shapes, strides, canvas if self.step_from_canvas else None)
        return repeat_over_grid([square * s for s in strides], shapes, steps, strides, self.offset)
