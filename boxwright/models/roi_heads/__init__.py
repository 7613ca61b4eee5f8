"""Heads that look at regions: pool features, classify and refine boxes, predict masks."""

from .box_head import BoxHead, FourConvOneFC, RoIExtractor, TwoFC
from .c4 import StageTrunk
from .criterion import RoICriterion
from .heads import RoIHeads
from .htc import HTC, FusedExtractor, SemanticBranch
from .mask_head import MaskHead
from .postprocess import MeanLogits, MeanScores, RoIPostprocess
from .rfcn import PSCropResize, PSRoIAlign, PSRoIPool, RFCNHead
from .stage import RoIStage

__all__ = [
    "HTC",
    "BoxHead",
    "FourConvOneFC",
    "FusedExtractor",
    "MaskHead",
    "MeanLogits",
    "MeanScores",
    "PSCropResize",
    "PSRoIAlign",
    "PSRoIPool",
    "RFCNHead",
    "RoICriterion",
    "RoIExtractor",
    "RoIHeads",
    "RoIPostprocess",
    "RoIStage",
    "SemanticBranch",
    "StageTrunk",
    "TwoFC",
]
