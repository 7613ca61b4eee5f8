"""Assignment of points inside a box, by size to levels (FCOS, arXiv:1904.01355, Sec. 3.1, 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...ops.boxes import area, centres
from ...ops.constants import constant
from ...structures import Assignment, DensePredictions, Priors, Targets


@dataclass(frozen=True)
class FCOSAssigner:
    """A point is positive for the smallest box that holds it and whose size fits its level.

    Args:
        limits: the largest of the four distances lies between two neighbours of these, level by level, px.
        centre_radius: the point must lie within this many strides of the box's centre, too ("center
            sampling" of the paper's later version); None for anywhere in the box.
        ignore_regions: points inside an ignored region that are not positive count neither way.
    """

    limits: tuple[float, ...] = (0.0, 64.0, 128.0, 256.0, 512.0, math.inf)
    centre_radius: float | None = None
    ignore_regions: bool = True

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A points of B images.

        Raises:
            ValueError: the number of levels does not fit `limits`.
        """
        if len(priors.num_per_level) != len(self.limits) - 1:
            raise ValueError(
                f"FCOSAssigner has limits for {len(self.limits) - 1} levels, "
                f"the head has {len(priors.num_per_level)}"
            )
        points = centres(priors.boxes).unsqueeze(-3)  # (1 or B, 1, A, 2)
        upper_left, lower_right = targets.boxes[:, :, None].split(2, dim=-1)  # (B, G, 1, 2)
        to_sides = torch.cat((points - upper_left, lower_right - points), dim=-1)  # (B, G, A, 4)
        inside = to_sides.amin(-1) > 0
        low, high = self._limits(priors)
        reach = to_sides.amax(-1)
        fits = inside & (reach >= low) & (reach <= high) & targets.valid[..., None]
        if self.centre_radius is not None:
            shift = (points - (upper_left + lower_right) / 2).abs().amax(-1)
            fits = fits & (shift < self.centre_radius * priors.strides)
        size = torch.where(fits, area(targets.boxes)[..., None], math.inf)
        smallest, gt_index = size.min(1)
        positive = smallest < math.inf
        if self.ignore_regions:
            ignore = (inside & targets.ignore[..., None]).any(1) & ~positive
        else:
            ignore = torch.zeros_like(positive)
        return Assignment(gt_index, positive, ignore)

    def _limits(self, priors: Priors) -> tuple[torch.Tensor, torch.Tensor]:
        """Smallest and largest reach of each point, `(A,)`."""
        bounds = zip(self.limits[:-1], self.limits[1:], priors.num_per_level, strict=True)
        pairs = [constant((low, high), priors.strides.device).expand(count, 2) for low, high, count in bounds]
        return torch.cat(pairs).unbind(-1)  # pyright: ignore[reportReturnType]
