"""What dense heads predict relative to: anchors and points, both as `Priors`."""

from .anchors import Anchors
from .area import TrainableArea
from .points import Points
from .sized import SizedAnchors
from .ssd_anchors import SSDAnchors, ssd_sizes

__all__ = ["Anchors", "Points", "SSDAnchors", "SizedAnchors", "TrainableArea", "ssd_sizes"]
