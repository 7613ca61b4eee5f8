"""One-stage detectors: backbone, neck, dense head (RetinaNet, FCOS and their descendants)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...structures import Batch, Detections, FeatureSpec
from ..dense_heads import DenseHead
from .preprocess import Normalise


class OneStageDetector(nn.Module):
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
        head: Callable[[Sequence[FeatureSpec]], DenseHead],
        normalise: Normalise | None = None,
    ) -> None:
        super().__init__()
        self.normalise = normalise or Normalise()
        self.backbone = backbone
        self.neck = neck(backbone.specs)  # pyright: ignore[reportArgumentType]
        self.head = head(self.neck.specs)  # pyright: ignore[reportArgumentType]

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Feature pyramid of images `(B, 3, H, W)` in 0..255."""
        return self.neck(self.backbone(self.normalise(images, sizes)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; those named "loss/..." make the total, "stat/..." only inform.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("a batch without targets cannot be trained on; use `predict`")
        features = self.features(batch.images, batch.sizes)
        priors = self.head.place_priors(features, _canvas(batch.images))
        return self.head.loss(self.head(features), priors, batch.targets, batch.sizes)

    forward = loss

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections in pixels of the canvas, for images `(B, 3, H, W)` that end at `sizes (B, 2)`."""
        features = self.features(images, sizes)
        priors = self.head.place_priors(features, _canvas(images))
        return self.head.decode(self.head(features), priors, sizes)


def _canvas(images: Tensor) -> tuple[int, int]:
    return int(images.shape[2]), int(images.shape[3])
