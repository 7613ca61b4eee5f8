"""Two-stage detectors: proposals of an RPN, then RoI stages (Faster R-CNN, arXiv:1506.01497)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ...structures import Batch, Detections, FeatureSpec
from ..dense_heads import DensePostprocess, PriorHead
from ..roi_heads import RoIHeads
from ..targets import prefixed
from .preprocess import Normalise
from .pyramid import PyramidDetector, canvas_of, targets_of


class TwoStageDetector(PyramidDetector):
    """A region proposal network and RoI heads on a feature pyramid.

    Args:
        backbone: has `specs` and gives one feature map for each.
        neck: maker of the neck, called with the backbone's specs.
        rpn: maker of the proposal network, called with the neck's specs: a class-agnostic dense head.
        roi: maker of the RoI heads, called with the neck's specs.
        normalise: what is done to the images first.
        train_proposals: how proposals are made in training; as in prediction if None.
        rpn_levels: which of the neck's levels the proposal network looks at; all if None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Callable[[Sequence[FeatureSpec]], nn.Module],
        rpn: Callable[[Sequence[FeatureSpec]], PriorHead],
        roi: Callable[[Sequence[FeatureSpec]], RoIHeads],
        normalise: Normalise | None = None,
        train_proposals: DensePostprocess | None = None,
        rpn_levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, neck, normalise)
        specs: tuple[FeatureSpec, ...] = self.neck.specs  # pyright: ignore[reportAssignmentType]
        self.rpn_levels = tuple(range(len(specs)) if rpn_levels is None else rpn_levels)
        self.rpn = rpn([specs[level] for level in self.rpn_levels])
        self.roi = roi(specs)
        self.train_proposals = train_proposals or self.rpn.postprocess

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; those named "loss/..." make the total, "stat/..." only inform.

        Raises:
            ValueError: the batch has no targets.
        """
        targets = targets_of(batch)
        canvas = canvas_of(batch.images)
        features = self.features(batch.images, batch.sizes)
        levels = self.rpn_features(features)
        outputs = self.rpn(levels)
        priors = self.rpn.place_priors(levels, canvas)
        losses = self.rpn.loss(outputs, priors, targets, batch.sizes)
        proposals = _detached(self.rpn.decode(outputs, priors, batch.sizes, self.train_proposals))
        return prefixed("rpn", losses) | self.roi.loss(features, proposals, targets, batch.sizes, canvas)

    forward = loss

    def propose(self, features: Sequence[Tensor], sizes: Tensor, canvas: tuple[int, int]) -> Detections:
        """The RPN's proposals, given all features."""
        levels = self.rpn_features(features)
        return self.rpn.decode(self.rpn(levels), self.rpn.place_priors(levels, canvas), sizes)

    def rpn_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Those of the features that the RPN looks at."""
        return [features[level] for level in self.rpn_levels]

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections in pixels of the canvas, for images `(B, 3, H, W)` that end at `sizes (B, 2)`."""
        features = self.features(images, sizes)
        proposals = self.propose(features, sizes, canvas_of(images))
        return self.roi.predict(features, proposals, sizes)


def _detached(proposals: Detections) -> Detections:
    return replace(proposals, boxes=proposals.boxes.detach(), scores=proposals.scores.detach())
