"""What networks are put together from: convolution with norm, norms, initialisers, freezing."""

from .conv import Activation, ConvFactory, ConvNorm, leaky_relu, relu
from .deform_conv import DeformConv2d, ModulatedDeformConv2d, OffsetDeformConv2d
from .depthwise import StridedDepthwiseConv2d, use_fast_depthwise
from .fold import conv_norm
from .freeze import freeze, set_batch_norm_eval
from .init import bias_for_prior, init_kaiming, init_normal, init_xavier
from .norm import FrozenBatchNorm2d, NormLayer, group_norm
from .scale import Scale

__all__ = [
    "Activation",
    "ConvFactory",
    "ConvNorm",
    "DeformConv2d",
    "FrozenBatchNorm2d",
    "ModulatedDeformConv2d",
    "NormLayer",
    "OffsetDeformConv2d",
    "Scale",
    "StridedDepthwiseConv2d",
    "bias_for_prior",
    "conv_norm",
    "freeze",
    "group_norm",
    "init_kaiming",
    "init_normal",
    "init_xavier",
    "leaky_relu",
    "relu",
    "set_batch_norm_eval",
    "use_fast_depthwise",
]
