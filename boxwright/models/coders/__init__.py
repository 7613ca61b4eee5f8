"""Box codes: what a head regresses for a box relative to a prior, and back."""

from .delta import DeltaCoder
from .distance import DistanceCoder
from .grid import GridCoder

__all__ = ["DeltaCoder", "DistanceCoder", "GridCoder"]
