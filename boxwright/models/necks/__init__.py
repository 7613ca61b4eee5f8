"""What joins the levels of a backbone before the heads see them."""

from .fpn import FPN
from .yolo import YOLONeck

__all__ = ["FPN", "YOLONeck"]
