"""Which priors are trained: those on the image, not those on the padding beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...structures import Priors


@dataclass(frozen=True)
class TrainableArea:
    """Marks the priors of each image that take part in training.

    Args:
        divisor: a prior's cell must begin within the image rounded up to this multiple, px.
        allowed_border: how far a prior may reach beyond the image, px; None for any distance.
            Faster R-CNN (arXiv:1506.01497, Sec. 3.3) trains with 0.
        offset: place of the priors within their cell, as the priors have it: 0 the corner, 0.5 the middle.
    """

    divisor: int = 32
    allowed_border: float | None = None
    offset: float = 0.0

    def __call__(self, priors: Priors, sizes: Tensor) -> Priors:
        """The priors with `valid (B, A)` for images of these sizes `(B, 2)`."""
        padded = ((sizes + self.divisor - 1) // self.divisor * self.divisor)[:, :, None]
        shift = self.offset * priors.strides
        corner_x = (priors.boxes[..., 0] + priors.boxes[..., 2]) / 2 - shift
        corner_y = (priors.boxes[..., 1] + priors.boxes[..., 3]) / 2 - shift
        valid = (corner_y < padded[:, 0]) & (corner_x < padded[:, 1])
        if self.allowed_border is not None:
            border, (x1, y1, x2, y2) = self.allowed_border, priors.boxes.unbind(-1)
            inside = (x1 >= -border) & (y1 >= -border)
            height, width = sizes[:, :1], sizes[:, 1:]
            valid = valid & inside & (x2 < width + border) & (y2 < height + border)
        return replace(priors, valid=valid)
