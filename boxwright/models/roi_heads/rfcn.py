"""R-FCN's stage (Dai et al., arXiv:1605.06409): maps of the whole image, and regions that only take means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...ops.ps_roi import ps_crop_and_resize, ps_roi_align, ps_roi_pool
from ...structures import FeatureSpec
from ...values import Count
from ..layers import ConvNorm, init_normal
from ..protocols import Coder
from .criterion import RoICriterion
from .postprocess import RoIPostprocess
from .predictions import RoIPredictions
from .stage import RoIStage

BinPool = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
"""Maps `(B, D * k * k, H, W)`, boxes `(B, R, 4)`, valid `(B, R)`, stride, k to bins `(B, R, D, k, k)`."""


@dataclass(frozen=True)
class PSRoIPool:
    """Position-sensitive RoI pooling (Sec. 2, Eq. 1): the mean of the whole cells in a bin."""

    def __call__(self, maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
        """Maps `(B, D * k * k, H, W)` and boxes `(B, R, 4)` to `(B, R, D, k, k)`."""
        return ps_roi_pool(maps, boxes, valid, stride, bins)


@dataclass(frozen=True)
class PSRoIAlign:
    """Position-sensitive RoIAlign: the mean of bilinear samples inside a bin (arXiv:1703.06870, Sec. 3).

    Args:
        sampling_ratio: samples along each side of a bin; 0 for one a cell.
    """

    sampling_ratio: int = 2

    def __call__(self, maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
        """Maps `(B, D * k * k, H, W)` and boxes `(B, R, 4)` to `(B, R, D, k, k)`."""
        return ps_roi_align(maps, boxes, valid, stride, bins, self.sampling_ratio)


@dataclass(frozen=True)
class PSCropResize:
    """Position-sensitive crop-and-resize, as in the speed/accuracy study (arXiv:1611.10012, Sec. 3.1).

    Args:
        points: samples along each side of a bin, the first and the last on its edges.
    """

    points: int = 6

    def __call__(self, maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
        """Maps `(B, D * k * k, H, W)` and boxes `(B, R, 4)` to `(B, R, D, k, k)`."""
        return ps_crop_and_resize(maps, boxes, valid, stride, bins, self.points)


class RFCNHead(RoIStage):
    """A stage without layers for each region: its bins vote with the means of position-sensitive maps.

    A 1x1 convolution with ReLU on one level, then `k * k * (C + 1)` class maps and `4 * k * k` box maps
    by 1x1 convolutions (Sec. 2). The k x k bins of a region each read their own maps, and their mean is the
    region's class logits and box code.

    Args:
        in_specs: feature levels.
        num_classes: C, without background.
        coder: what a box is regressed as.
        criterion: how the stage is trained.
        postprocess: how detections are made of the outputs.
        pool: what of a map a bin takes the mean of.
        bins: k.
        channels: of the first convolution.
        class_agnostic: one box code for all classes.
        level: which of the feature levels is used.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        coder: Coder,
        criterion: RoICriterion,
        postprocess: RoIPostprocess,
        pool: BinPool = PSRoIPool(),
        bins: int = 7,
        channels: Count = 1024,
        class_agnostic: bool = True,
        level: int = -1,
    ) -> None:
        super().__init__(
            in_specs, num_classes=num_classes, coder=coder, criterion=criterion, postprocess=postprocess
        )
        self.pool, self.bins, self.level = pool, bins, level
        columns = criterion.class_loss.columns(num_classes)
        codes = (1 if class_agnostic else num_classes) * coder.size
        self.reduce = ConvNorm(in_specs[level].channels, channels, 1)
        self.class_maps = nn.Conv2d(channels, columns * bins**2, 1)
        self.box_maps = nn.Conv2d(channels, codes * bins**2, 1)
        init_normal(self, std=0.01)

    def shared(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Class maps `(B, (C + 1) * k * k, H, W)` and box maps of the images."""
        hidden = self.reduce(features[self.level])
        return self.class_maps(hidden), self.box_maps(hidden)

    def forward(self, shared: Sequence[Tensor], boxes: Tensor, valid: Tensor) -> RoIPredictions:
        """Raw outputs for boxes `(B, R, 4)`; zero where not `valid (B, R)`."""
        logits, codes = (
            self.pool(maps, boxes, valid, self.strides[self.level], self.bins).float().mean((-2, -1))
            for maps in shared
        )
        return RoIPredictions(logits, codes.unflatten(-1, (-1, self.coder.size)))
