"""Two-stage detectors: proposals of an RPN, then RoI stages (Faster R-CNN, arXiv:1506.01497)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ...structures import Batch, Detections, FeatureSpec, Targets
from ..dense_heads import DenseHead, DensePostprocess
from ..roi_heads import RoIHeads
from ..targets import prefixed
from .preprocess import Normalise
from .pyramid import PyramidDetector, canvas_of, targets_of


class TwoStageDetector(PyramidDetector):
    """A region proposal network and RoI heads on a feature pyramid.

    Args:
        backbone: has `specs` and gives one feature map for each.
        neck: maker of the neck, called with the backbone's specs.
        rpn: maker of the proposal network, called with the neck's specs: a dense head of one class.
        roi: maker of the RoI heads, called with the neck's specs.
        normalise: what is done to the images first.
        train_proposals: how proposals are made in training; as in prediction if None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Callable[[Sequence[FeatureSpec]], nn.Module],
        rpn: Callable[[Sequence[FeatureSpec]], DenseHead],
        roi: Callable[[Sequence[FeatureSpec]], RoIHeads],
        normalise: Normalise | None = None,
        train_proposals: DensePostprocess | None = None,
    ) -> None:
        super().__init__(backbone, neck, normalise)
        self.rpn = rpn(self.neck.specs)  # pyright: ignore[reportArgumentType]
        self.roi = roi(self.neck.specs)  # pyright: ignore[reportArgumentType]
        self.train_proposals = train_proposals or self.rpn.postprocess

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; those named "loss/..." make the total, "stat/..." only inform.

        Raises:
            ValueError: the batch has no targets.
        """
        targets = targets_of(batch)
        canvas = canvas_of(batch.images)
        features = self.features(batch.images, batch.sizes)
        outputs = self.rpn(features)
        priors = self.rpn.place_priors(features, canvas)
        losses = self.rpn.loss(outputs, priors, _one_class(targets), batch.sizes)
        to_scores = self.rpn.criterion.class_loss.scores
        proposals = _detached(self.train_proposals(outputs, priors, batch.sizes, self.rpn.coder, to_scores))
        return prefixed("rpn", losses) | self.roi.loss(features, proposals, targets, batch.sizes, canvas)

    forward = loss

    def propose(self, features: Sequence[Tensor], sizes: Tensor, canvas: tuple[int, int]) -> Detections:
        """The RPN's proposals."""
        return self.rpn.decode(self.rpn(features), self.rpn.place_priors(features, canvas), sizes)

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections in pixels of the canvas, for images `(B, 3, H, W)` that end at `sizes (B, 2)`."""
        features = self.features(images, sizes)
        proposals = self.propose(features, sizes, canvas_of(images))
        return self.roi.predict(features, proposals, sizes)


def _one_class(targets: Targets) -> Targets:
    """The same objects, all of class 0: to an RPN every object is one."""
    return replace(targets, labels=targets.labels * 0)


def _detached(proposals: Detections) -> Detections:
    return replace(proposals, boxes=proposals.boxes.detach(), scores=proposals.scores.detach())
