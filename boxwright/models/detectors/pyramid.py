"""What detectors on a feature pyramid have in common: from images to features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...structures import Batch, FeatureSpec, Targets
from .preprocess import Normalise


class PyramidDetector(nn.Module):
    """Normalisation, backbone and neck; a detector adds its heads.

    Args:
        backbone: has `specs` and gives one feature map for each.
        neck: maker of the neck, called with the backbone's specs.
        normalise: what is done to the images first; by ImageNet's statistics if None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Callable[[Sequence[FeatureSpec]], nn.Module],
        normalise: Normalise | None,
    ) -> None:
        super().__init__()
        self.normalise = normalise or Normalise()
        self.backbone = backbone
        self.neck = neck(backbone.specs)  # pyright: ignore[reportArgumentType]

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Feature pyramid of images `(B, 3, H, W)` in 0..255."""
        return self.neck(self.backbone(self.normalise(images, sizes)))


def targets_of(batch: Batch) -> Targets:
    """The batch's ground truth.

    Raises:
        ValueError: it has none.
    """
    if batch.targets is None:
        raise ValueError("a batch without targets cannot be trained on; use `predict`")
    return batch.targets


def canvas_of(images: Tensor) -> tuple[int, int]:
    """Height and width of images `(B, 3, H, W)`."""
    return int(images.shape[2]), int(images.shape[3])
