"""A dense head whose levels share nothing: each has its own channels, anchors and layers (SSD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...structures import DensePredictions, FeatureSpec
from ...values import Amount, Count, OddCount
from ..layers import Activation, NormLayer, conv_tower, init_xavier, relu
from ..protocols import Coder, PriorGenerator
from .criterion import DenseCriterion
from .head import PriorHead, by_prior
from .postprocess import DensePostprocess


class PerLevelHead(PriorHead):
    """Class logits, box codes and, if the criterion wants one, a quality logit for each prior.

    SSD (arXiv:1512.02325, Sec. 2.1) has one 3x3 convolution for the classes and one for the boxes on each
    level, and no towers.

    Args:
        in_specs: feature levels, of any numbers of channels.
        num_classes: C, without background.
        priors: what stands at each place; their number may differ by level.
        coder: what a box is regressed as.
        criterion: how it is trained.
        postprocess: how detections are made of the outputs.
        channels: of the towers' convolutions.
        tower_convs: 3x3 convolutions in front of each predictor; the quality logit hangs on the box tower.
        predictor_kernel: side of the predictors' kernels.
        norm: norm of each tower convolution, called with its channels; None for none.
        activation: makes the activation behind each tower convolution; None for none.
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
        channels: Count = 256,
        tower_convs: Amount = 0,
        predictor_kernel: OddCount = 3,
        norm: NormLayer | None = None,
        activation: Activation | None = relu,
    ) -> None:
        super().__init__(in_specs, priors=priors, coder=coder, criterion=criterion, postprocess=postprocess)
        self.num_classes = num_classes
        self.columns = criterion.class_loss.columns(num_classes)
        widths = [[spec.channels] + [channels] * tower_convs for spec in in_specs]
        kernel, padding = predictor_kernel, predictor_kernel // 2

        def towers() -> nn.ModuleList:
            return nn.ModuleList(conv_tower(line, norm=norm, activation=activation) for line in widths)

        def predictors(size: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(line[-1], priors.num_per_place(level) * size, kernel, padding=padding)
                for level, line in enumerate(widths)
            )

        self.class_towers, self.box_towers = towers(), towers()
        self.class_predictors, self.box_predictors = predictors(self.columns), predictors(coder.size)
        self.quality_predictors = None if criterion.quality is None else predictors(1)
        init_xavier(self)

    def forward(self, features: Sequence[Tensor]) -> DensePredictions:
        """Raw outputs for one feature map `(B, C_l, H_l, W_l)` a level, levels one behind the other."""
        classes, codes, qualities = [], [], []
        for level, feature in enumerate(features):
            class_features, box_features = self.class_towers[level](feature), self.box_towers[level](feature)
            classes.append(by_prior(self.class_predictors[level](class_features), self.columns))
            codes.append(by_prior(self.box_predictors[level](box_features), self.coder.size))
            if self.quality_predictors is not None:
                qualities.append(by_prior(self.quality_predictors[level](box_features), 1)[..., 0])
        return DensePredictions(
            torch.cat(classes, 1), torch.cat(codes, 1), torch.cat(qualities, 1) if qualities else None
        )
