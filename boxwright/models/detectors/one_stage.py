"""One-stage detectors: backbone, neck, dense head (RetinaNet, FCOS and their descendants)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...structures import Batch, Detections, FeatureSpec
from ..dense_heads import PriorHead
from .preprocess import Normalise
from .pyramid import PyramidDetector, canvas_of, targets_of


class OneStageDetector(PyramidDetector):
    """A dense head on a feature pyramid.

    Args:
        backbone: has `specs` and gives one feature map for each.
        neck: maker of the neck, called with the backbone's specs.
        head: maker of the head, called with the neck's specs.
        normalise: what is done to the images first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Callable[[Sequence[FeatureSpec]], nn.Module],
        head: Callable[[Sequence[FeatureSpec]], PriorHead],
        normalise: Normalise | None = None,
    ) -> None:
        super().__init__(backbone, neck, normalise)
        self.head = head(self.neck.specs)  # pyright: ignore[reportArgumentType]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; those named "loss/..." make the total, "stat/..." only inform.

        Raises:
            ValueError: the batch has no targets.
        """
        targets = targets_of(batch)
        features = self.features(batch.images, batch.sizes)
        priors = self.head.place_priors(features, canvas_of(batch.images))
        return self.head.loss(self.head(features), priors, targets, batch.sizes)

    forward = loss

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections in pixels of the canvas, for images `(B, 3, H, W)` that end at `sizes (B, 2)`."""
        features = self.features(images, sizes)
        priors = self.head.place_priors(features, canvas_of(images))
        return self.head.decode(self.head(features), priors, sizes)
