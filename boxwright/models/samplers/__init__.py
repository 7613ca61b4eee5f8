"""Which of the assigned priors are trained in this step."""

from .all import AllSampler
from .hard_negative import HardNegativeSampler
from .ohem import HardestSampler, OHEMSampler
from .random import RandomSampler

__all__ = ["AllSampler", "HardNegativeSampler", "HardestSampler", "OHEMSampler", "RandomSampler"]
