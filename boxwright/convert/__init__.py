"""Checkpoints and configurations of other toolboxes made into Boxwright's."""

from .any import convert_checkpoint
from .checkpoint import Conversion, convert_mmdetection, read_config
from .detectors import model_from_mmdetection
from .detectron2 import convert_detectron2, experiment_of_detectron2
from .names import recipe_of_mmdetection

__all__ = [
    "Conversion",
    "convert_checkpoint",
    "convert_detectron2",
    "convert_mmdetection",
    "experiment_of_detectron2",
    "model_from_mmdetection",
    "read_config",
    "recipe_of_mmdetection",
]
