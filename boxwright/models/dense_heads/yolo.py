"""The head of YOLOv3 (arXiv:1804.02767, Sec. 2.3): one convolution and one joint predictor a level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import DensePredictions, FeatureSpec
from ...values import Count
from ..layers import Activation, ConvNorm, NormLayer, bias_for_prior, init_normal, leaky_relu
from ..protocols import Coder, PriorGenerator
from .criterion import DenseCriterion
from .head import PriorHead, by_prior
from .postprocess import DensePostprocess

OBJECTS, EXTENT = 8, 608
"""An untrained head expects this many objects on each level of an image of this side, px."""
CLASS_PRIOR = 0.01
"""Class scores of an untrained head."""


class YOLOHead(PriorHead):
    """Box code, objectness and class logits of each prior from one 1x1 convolution ("3-d tensor", Sec. 2.3).

    Levels share no weights. The channels of a predictor are prior by prior, within a prior 4 of the box code,
    one of the objectness, then the classes.

    Args:
        in_specs: feature levels.
        num_classes: C, without background.
        priors: what stands at each place.
        coder: what a box is regressed as.
        criterion: how it is trained; it has a quality, the objectness.
        postprocess: how detections are made of the outputs.
        channels: of the 3x3 convolution of each level; None for twice the level's.
        norm: makes the norm behind that convolution; None for none.
        activation: makes the activation behind that convolution.

    Raises:
        ConfigError: the criterion has no quality, or `channels` are not for as many levels.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        priors: PriorGenerator,
        coder: Coder,
        criterion: DenseCriterion,
        postprocess: DensePostprocess,
        channels: Sequence[int] | None = None,
        norm: NormLayer | None = nn.BatchNorm2d,
        activation: Activation = leaky_relu,
    ) -> None:
        super().__init__(in_specs, priors=priors, coder=coder, criterion=criterion, postprocess=postprocess)
        if criterion.quality is None:
            raise ConfigError(
                "YOLOHead predicts the objectness: give `criterion.quality`, such as Objectness()"
            )
        widths = tuple(2 * spec.channels for spec in in_specs) if channels is None else tuple(channels)
        if len(widths) != len(in_specs):
            raise ConfigError(
                f"YOLOHead: channels has {len(widths)} numbers, there are {len(in_specs)} levels"
            )
        self.num_classes = num_classes
        self.columns = (coder.size, 1, criterion.class_loss.columns(num_classes))
        self.bridges = nn.ModuleList(
            ConvNorm(spec.channels, width, 3, norm=norm, activation=activation)
            for spec, width in zip(in_specs, widths, strict=True)
        )
        self.predictors = nn.ModuleList(
            nn.Conv2d(width, priors.num_per_place(level) * sum(self.columns), 1)
            for level, width in enumerate(widths)
        )
        init_normal(self, std=0.01)
        for predictor, stride in zip(self.predictors, self.strides, strict=True):
            bias = predictor.get_parameter("bias").detach().view(-1, sum(self.columns))
            _, objectness, classes = bias.split(self.columns, dim=1)
            expected = min(OBJECTS / (EXTENT / stride) ** 2, 0.5)  # of a place
            nn.init.constant_(objectness, bias_for_prior(expected))
            nn.init.constant_(classes, bias_for_prior(CLASS_PRIOR))

    def forward(self, features: Sequence[Tensor]) -> DensePredictions:
        """Raw outputs for features of `(B, C, H, W)`, levels one behind the other."""
        outputs = [
            by_prior(predictor(bridge(feature)), sum(self.columns))
            for feature, bridge, predictor in zip(features, self.bridges, self.predictors, strict=True)
        ]
        codes, objectness, classes = torch.cat(outputs, 1).split(self.columns, dim=-1)
        return DensePredictions(classes, codes, objectness[..., 0])
