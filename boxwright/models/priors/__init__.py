"""What dense heads predict relative to: anchors and points, both as `Priors`."""

from .anchors import Anchors
from .area import TrainableArea
from .points import Points
from .sized import SizedAnchors

__all__ = ["Anchors", "Points", "SizedAnchors", "TrainableArea"]
