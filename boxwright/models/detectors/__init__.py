"""Whole detectors: parts wired together, with a loss and a prediction."""

from .one_stage import OneStageDetector
from .preprocess import Normalise
from .two_stage import TwoStageDetector

__all__ = ["Normalise", "OneStageDetector", "TwoStageDetector"]
