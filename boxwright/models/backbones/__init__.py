"""Networks that turn images into feature maps at several strides."""

from .resnet import ResNet
from .timm import TimmBackbone

__all__ = ["ResNet", "TimmBackbone"]
