"""What networks are put together from: convolution with norm, norms, initialisers, freezing."""

from .context_block import ContextBlock
from .conv import Activation, ConvFactory, ConvNorm, biased, conv_tower, leaky_relu, relu
from .conv_ws import ConvWS2d
from .cross_norm import CrossBatchNorm2d, join_norms
from .deform_conv import DeformConv2d, ModulatedDeformConv2d, OffsetDeformConv2d, deform_3x3
from .depthwise import StridedDepthwiseConv2d, use_fast_depthwise
from .fold import (
    CONVOLUTIONS,
    Folding,
    conv_norm,
    conv_norm_act,
    folded,
    folds,
    in_low_precision,
    is_fixed,
    scale_and_shift,
    scaled_conv,
    set_folding,
)
from .freeze import freeze, set_batch_norm_eval
from .init import bias_for_prior, init_kaiming, init_normal, init_xavier
from .inplace_norm import InPlaceBatchNorm2d
from .norm import FrozenBatchNorm2d, NormLayer, group_norm
from .scale import Scale
from .settle import settle

__all__ = [
    "CONVOLUTIONS",
    "Activation",
    "ContextBlock",
    "ConvFactory",
    "ConvNorm",
    "ConvWS2d",
    "CrossBatchNorm2d",
    "DeformConv2d",
    "Folding",
    "FrozenBatchNorm2d",
    "InPlaceBatchNorm2d",
    "ModulatedDeformConv2d",
    "NormLayer",
    "OffsetDeformConv2d",
    "Scale",
    "StridedDepthwiseConv2d",
    "bias_for_prior",
    "biased",
    "conv_norm",
    "conv_norm_act",
    "conv_tower",
    "deform_3x3",
    "folded",
    "folds",
    "freeze",
    "group_norm",
    "in_low_precision",
    "init_kaiming",
    "init_normal",
    "init_xavier",
    "is_fixed",
    "join_norms",
    "leaky_relu",
    "relu",
    "scale_and_shift",
    "scaled_conv",
    "set_batch_norm_eval",
    "set_folding",
    "settle",
    "use_fast_depthwise",
]
