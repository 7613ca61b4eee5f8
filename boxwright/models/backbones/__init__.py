"""Networks that turn images into feature maps at several strides."""

from .darknet import Darknet
from .hrnet import HRNet
from .resnet import ResNet
from .timm import TimmBackbone
from .vgg import VGG

__all__ = ["VGG", "Darknet", "HRNet", "ResNet", "TimmBackbone"]
