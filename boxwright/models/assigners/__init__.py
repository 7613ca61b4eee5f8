"""Which prior is trained for which ground truth: one published rule a file, all with one signature."""

from .fcos import FCOSAssigner
from .grid import GridAssigner
from .max_iou import MaxIoUAssigner

__all__ = ["FCOSAssigner", "GridAssigner", "MaxIoUAssigner"]
