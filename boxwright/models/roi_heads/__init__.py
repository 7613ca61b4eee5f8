"""Heads that look at regions: pool features, classify and refine boxes, predict masks."""

from .box_head import BoxHead, FourConvOneFC, RoIExtractor, TwoFC
from .criterion import RoICriterion
from .heads import RoIHeads
from .mask_head import MaskHead
from .postprocess import RoIPostprocess

__all__ = [
    "BoxHead",
    "FourConvOneFC",
    "MaskHead",
    "RoICriterion",
    "RoIExtractor",
    "RoIHeads",
    "RoIPostprocess",
    "TwoFC",
]
