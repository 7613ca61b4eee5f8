"""The second stage's box head, from pooled features to classes and codes (arXiv:1504.08083)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import ConfigError
from ...ops.roi_align import assign_levels, roi_align
from ...structures import FeatureSpec
from ...values import Count
from ..layers import ConvFactory, NormLayer, conv_tower
from ..protocols import Coder
from ..targets import Filled
from .criterion import RoICriterion
from .postprocess import RoIPostprocess
from .predictions import RoIPredictions
from .stage import RoIStage


@dataclass(frozen=True)
class RoIExtractor:
    """RoIAlign (arXiv:1703.06870, Sec. 3) from the level that fits each region (arXiv:1612.03144, Eq. 1).

    Args:
        size: side of the pooled features.
        levels: how many levels, from the finest, regions are pooled from.
        sampling_ratio: points along each side of a bin; 0 for one a feature pixel.
        finest_scale: regions of less than twice this side are pooled from the finest level, px.
        level_eps: guards the logarithm's rounding.
        aligned: shift by half a pixel; False only for weights that were trained without.
    """

    size: int = 7
    levels: int = 4
    sampling_ratio: int = 0
    finest_scale: float = 56.0
    level_eps: float = 1e-6
    aligned: bool = True

    def __call__(
        self, features: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, valid: Tensor
    ) -> Tensor:
        """`(B, R, channels, size, size)` for boxes `(B, R, 4)`; zero in empty slots."""
        level = assign_levels(boxes, valid, self.levels, self.finest_scale, self.level_eps)
        finest = list(features[: self.levels])
        return roi_align(
            finest, boxes, level, list(strides[: self.levels]), self.size, self.sampling_ratio, self.aligned
        )


class TwoFC(nn.Sequential):
    """Two fully connected layers (Faster R-CNN with FPN, arXiv:1612.03144, Sec. 4.2)."""

    def __init__(self, channels: int, size: int, width: int = 1024) -> None:
        layers = nn.Linear(channels * size * size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        super().__init__(nn.Flatten(), *layers)
        self.out_features = width


class FourConvOneFC(nn.Sequential):
    """Four convolutions and one fully connected layer (GN, arXiv:1803.08494, Sec. 4.2)."""

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 1024,
        conv_width: int = 256,
        norm: NormLayer | None = None,
        conv: ConvFactory = nn.Conv2d,
    ) -> None:
        convs = conv_tower([channels] + [conv_width] * 4, norm=norm, conv=conv)
        super().__init__(*convs, nn.Flatten(), nn.Linear(conv_width * size * size, width), nn.ReLU())
        self.out_features = width


class BoxHead(RoIStage):
    """A stage with layers of its own for each region: it pools, classifies and regresses.

    Args:
        in_specs: feature levels.
        num_classes: C, without background.
        extractor: how regions are pooled.
        trunk: layers between pooling and predictors, called with channels and side; has `out_features`. One
            that mask heads can share has `maps` too: what it makes of regions before it forgets the places.
        coder: what a box is regressed as.
        criterion: how the stage is trained.
        postprocess: how detections are made of the outputs.
        class_agnostic: one box code for all classes.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        coder: Coder,
        criterion: RoICriterion,
        postprocess: RoIPostprocess,
        extractor: RoIExtractor = RoIExtractor(),
        trunk: Callable[[int, int], nn.Module] = TwoFC,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__(
            in_specs, num_classes=num_classes, coder=coder, criterion=criterion, postprocess=postprocess
        )
        self.extractor = extractor
        self.trunk = trunk(in_specs[0].channels, extractor.size)
        width: int = self.trunk.out_features  # pyright: ignore[reportAssignmentType]
        self.class_predictor = nn.Linear(width, criterion.class_loss.columns(num_classes))
        self.box_predictor = nn.Linear(width, (1 if class_agnostic else num_classes) * coder.size)
        for module in self.trunk.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_predictor.weight, std=0.01)
        nn.init.normal_(self.box_predictor.weight, std=0.001)
        nn.init.zeros_(self.class_predictor.bias)
        nn.init.zeros_(self.box_predictor.bias)

    def forward(self, shared: Sequence[Tensor], boxes: Tensor, valid: Tensor) -> RoIPredictions:
        """Raw outputs for boxes `(B, R, 4)`; zero where not `valid (B, R)`."""
        filled = Filled.of(valid)
        pooled = self.extractor(shared, self.strides, boxes, valid)
        hidden = self.trunk(filled.drop(pooled))
        logits, codes = self.class_predictor(hidden).float(), self.box_predictor(hidden).float()
        codes = codes.unflatten(-1, (-1, self.coder.size))
        return RoIPredictions(filled.restore(logits), filled.restore(codes))

    def maps(self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor) -> Tensor:
        """The trunk's maps `(B, R, out_features, S, S)` of boxes `(B, R, 4)`; zero where not `valid`."""
        filled = Filled.of(valid)
        pooled = self.extractor(features, self.strides, boxes, valid)
        return filled.restore(self.trunk.maps(filled.drop(pooled)))  # pyright: ignore[reportCallIssue]

    @property
    def map_specs(self) -> tuple[FeatureSpec, ...]:
        """What `maps` gives, for the maker of a mask head.

        Raises:
            ConfigError: the trunk has no maps.
        """
        if not hasattr(self.trunk, "maps"):
            raise ConfigError(
                f"{type(self.trunk).__name__} has no maps of regions that a mask head could share: "
                "give RoIHeads share_trunk=False, or a trunk such as StageTrunk"
            )
        return (FeatureSpec(int(self.trunk.out_features), self.strides[0]),)  # pyright: ignore[reportArgumentType]
