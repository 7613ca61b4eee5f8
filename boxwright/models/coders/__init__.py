"""Box codes: what a head regresses for a box relative to a prior, and back."""

from .delta import DeltaCoder
from .distance import DistanceCoder

__all__ = ["DeltaCoder", "DistanceCoder"]
