"""Box codes: what a head regresses for a box relative to a prior, and back."""

from .delta import DeltaCoder
from .distance import DistanceCoder
from .distribution import DistributionCoder
from .grid import GridCoder
from .guided_anchoring import ShapeCoder

__all__ = [
    "DeltaCoder",
    "DistanceCoder",
    "DistributionCoder",
    "GridCoder",
    "ShapeCoder",
]
