"""Which prior is trained for which ground truth: one published rule a file, all with one signature."""

from .atss import ATSSAssigner
from .dynamic import DynamicIoUAssigner
from .fcos import FCOSAssigner
from .grid import GridAssigner
from .guided_anchoring import ApproxMaxIoUAssigner, RegionAssigner
from .max_iou import MaxIoUAssigner

__all__ = [
    "ATSSAssigner",
    "ApproxMaxIoUAssigner",
    "DynamicIoUAssigner",
    "FCOSAssigner",
    "GridAssigner",
    "MaxIoUAssigner",
    "RegionAssigner",
]
