"""What dense heads predict relative to: anchors and points, both as `Priors`."""

from .anchors import Anchors
from .area import TrainableArea
from .points import Points

__all__ = ["Anchors", "Points", "TrainableArea"]
