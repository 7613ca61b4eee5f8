"""Networks that turn images into feature maps at several strides."""

from .darknet import Darknet
from .resnet import ResNet
from .timm import TimmBackbone

__all__ = ["Darknet", "ResNet", "TimmBackbone"]
