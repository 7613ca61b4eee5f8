"""Which priors are trained: those on the image, not those on the padding beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...structures import Priors


@dataclass(frozen=True)
class TrainableArea:
    """Marks the priors of each image that take part in training.

    Args:
        divisor: a prior's centre must lie within the image rounded up to this multiple, px.
        allowed_border: how far a prior may reach beyond the image, px; None for any distance.
            Faster R-CNN (arXiv:1506.01497, Sec. 3.3) trains with 0.
    """

    divisor: int = 32
    allowed_border: float | None = None

    def __call__(self, priors: Priors, sizes: Tensor) -> Priors:
        """The priors `(A, 4)` with `valid (B, A)` for images of these sizes `(B, 2)`."""
        padded = ((sizes + self.divisor - 1) // self.divisor * self.divisor)[:, :, None]
        centre_x = (priors.boxes[:, 0] + priors.boxes[:, 2]) / 2
        centre_y = (priors.boxes[:, 1] + priors.boxes[:, 3]) / 2
        valid = (centre_y < padded[:, 0]) & (centre_x < padded[:, 1])
        if self.allowed_border is not None:
            border, (x1, y1, x2, y2) = self.allowed_border, priors.boxes.unbind(-1)
            inside = (x1 >= -border) & (y1 >= -border)
            height, width = sizes[:, :1], sizes[:, 1:]
            valid = valid & inside & (x2 < width + border) & (y2 < height + border)
        return replace(priors, valid=valid)
