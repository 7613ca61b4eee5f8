"""Which of the assigned priors are trained in this step."""

from .all import AllSampler
from .random import RandomSampler

__all__ = ["AllSampler", "RandomSampler"]
