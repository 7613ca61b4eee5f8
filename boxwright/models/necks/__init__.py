"""What joins the levels of a backbone before the heads see them."""

from .fpn import FPN
from .hrfpn import HRFPN
from .identity import NoNeck
from .ssd import SSDNeck
from .yolo import YOLONeck

__all__ = ["FPN", "HRFPN", "NoNeck", "SSDNeck", "YOLONeck"]
