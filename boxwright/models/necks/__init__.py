"""What joins the levels of a backbone before the heads see them."""

from .fpn import FPN

__all__ = ["FPN"]
