"""Detectors and weights of other libraries, as Boxwright's.

`from_torchvision` turns a built torchvision detector into ours; `from_mmdetection` and `from_detectron2`
fill a detector of ours with the weights of a checkpoint (`boxwright.convert` builds the detector, too). All
are strict: every weight finds its place, or an error lists those that do not.
"""

from .detectron2 import from_detectron2
from .mmdetection import from_mmdetection
from .renaming import LoadReport, Rule, load_renamed
from .torchvision import from_torchvision, torchvision_label_map

__all__ = [
    "LoadReport",
    "Rule",
    "from_detectron2",
    "from_mmdetection",
    "from_torchvision",
    "load_renamed",
    "torchvision_label_map",
]
