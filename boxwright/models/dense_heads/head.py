"""One head for all dense detectors: towers of convolutions and their predictors, shared by the levels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures import DensePredictions, Detections, FeatureSpec, Priors, Targets
from ...values import Amount, Count, OddCount
from ..layers import ConvFactory, NormLayer, Scale, bias_for_prior, conv_tower, init_normal
from ..protocols import Coder, PriorGenerator
from ..targets import Sample
from .criterion import DenseCriterion
from .postprocess import DensePostprocess
from .sampled import RepeatablePredictions, is_shallow, predict_at, trains_few


class PriorHead(nn.Module):
    """What any head over priors carries: where it predicts, and how it is trained and read.

    A subclass adds layers and `forward`, which gives the raw outputs.

    Args:
        in_specs: feature levels.
        priors: what stands at each place.
        coder: what a box is regressed as.
        criterion: how it is trained.
        postprocess: how detections are made of the outputs.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        priors: PriorGenerator,
        coder: Coder,
        criterion: DenseCriterion,
        postprocess: DensePostprocess,
    ) -> None:
        super().__init__()
        self.strides = tuple(spec.stride for spec in in_specs)
        self.priors, self.coder, self.criterion, self.postprocess = priors, coder, criterion, postprocess

    def place_priors(self, features: Sequence[Tensor], canvas: tuple[int, int]) -> Priors:
        """Priors of feature maps of these shapes."""
        shapes = [(int(f.shape[2]), int(f.shape[3])) for f in features]
        return self.priors(shapes, self.strides, canvas, features[0].device)

    def loss(
        self, predictions: DensePredictions, priors: Priors, targets: Targets, sizes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of raw outputs."""
        return self.criterion(predictions, priors, targets, sizes, self.coder)

    def decode(
        self,
        predictions: DensePredictions,
        priors: Priors,
        sizes: Tensor,
        postprocess: DensePostprocess | None = None,
    ) -> Detections:
        """Detections, or proposals of an RPN, of raw outputs; `postprocess` stands in for the head's own."""
        class_loss = self.criterion.class_loss
        return (postprocess or self.postprocess)(predictions, priors, sizes, self.coder, class_loss)


class DenseHead(PriorHead):
    """Class logits, box codes and, if wanted, a quality logit for each prior.

    RetinaNet (arXiv:1708.02002, Sec. 4) and FCOS have two towers of four convolutions; an RPN has one
    convolution that classes and boxes share, and no towers. Where such a head is trained on a few sampled
    priors, only their places are kept and visited for the gradient (`sampled.py`).

    Args:
        in_specs: feature levels, all of the same number of channels.
        num_classes: C, without background.
        priors: what stands at each place.
        coder: what a box is regressed as.
        criterion: how it is trained.
        postprocess: how detections are made of the outputs.
        channels: of the convolutions.
        stem_convs: convolutions before the towers part.
        tower_convs: convolutions of the class tower and of the box tower.
        predictor_kernel: side of the predictors' kernels; an RPN has 1.
        norm: norm of each convolution, called with its channels; None for none.
        conv: makes the convolutions of stem and towers, called as `nn.Conv2d`.
        last_conv: makes the last one of each tower instead, such as a deformable one.
        quality_branch: which tower the quality logit hangs on, if the criterion wants one.
        scale_levels: each level has a learnt factor of its box codes (FCOS, Sec. 3.2).
        class_prior: scores of an untrained head (focal loss, Sec. 4.1); None for a bias of 0.
        init_std: spread of the initial weights.
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
        stem_convs: Amount = 0,
        tower_convs: Amount = 4,
        predictor_kernel: OddCount = 3,
        norm: NormLayer | None = None,
        conv: ConvFactory = nn.Conv2d,
        last_conv: ConvFactory | None = None,
        quality_branch: Literal["class", "box"] | None = None,
        scale_levels: bool = False,
        class_prior: float | None = 0.01,
        init_std: float = 0.01,
    ) -> None:
        super().__init__(in_specs, priors=priors, coder=coder, criterion=criterion, postprocess=postprocess)
        if len({spec.channels for spec in in_specs}) != 1:
            raise ValueError(
                f"DenseHead shares its weights over levels of equal channels, got {tuple(in_specs)}"
            )
        if (quality_branch is None) != (criterion.quality is None):
            raise ValueError("DenseHead: give both `quality_branch` and `criterion.quality`, or neither")
        self.num_classes = num_classes
        self.columns = criterion.class_loss.columns(num_classes)

        stem = [in_specs[0].channels] + [channels] * stem_convs
        tower = [stem[-1]] + [channels] * tower_convs
        per_place, width = priors.num_per_place(), tower[-1]
        self.stem = conv_tower(stem, norm=norm, conv=conv)
        self.class_tower = conv_tower(tower, norm=norm, conv=conv, last_conv=last_conv)
        self.box_tower = conv_tower(tower, norm=norm, conv=conv, last_conv=last_conv)
        kernel, padding = predictor_kernel, predictor_kernel // 2
        self.class_predictor = nn.Conv2d(width, per_place * self.columns, kernel, padding=padding)
        self.box_predictor = nn.Conv2d(width, per_place * coder.size, kernel, padding=padding)
        self.quality_branch = quality_branch
        self.quality_predictor = (
            nn.Conv2d(width, per_place, kernel, padding=padding) if quality_branch else None
        )
        self.scales = nn.ModuleList(Scale() for _ in self.strides) if scale_levels else None
        init_normal(self, init_std)
        if class_prior is not None:
            nn.init.constant_(self.class_predictor.bias, bias_for_prior(class_prior))  # pyright: ignore

    def forward(self, features: Sequence[Tensor]) -> DensePredictions:
        """Raw outputs for features of `(B, channels, H, W)`, levels one behind the other."""
        places = sum(feature.shape[2] * feature.shape[3] for feature in features)
        few = self.is_shallow and trains_few(self.criterion.sampler, places)
        if not few or not torch.is_grad_enabled():
            return self.everywhere(features)
        with torch.no_grad():
            found = self.everywhere(features)
        return RepeatablePredictions(found.class_logits, found.codes, again=partial(self.at_sample, features))

    @property
    def is_shallow(self) -> bool:
        """Whether single places can be looked at again."""
        alone = len(self.class_tower) == 0 and self.scales is None and self.quality_predictor is None
        return alone and is_shallow(self.stem, (self.class_predictor, self.box_predictor))

    def at_sample(self, features: Sequence[Tensor], sample: Sample) -> DensePredictions:
        """Raw outputs `(B, S, ...)` of a sample's priors alone, for the same features."""
        predictors = self.class_predictor, self.box_predictor
        return DensePredictions(
            *predict_at(features, self.stem[0], predictors, self.priors.num_per_place(), sample)  # pyright: ignore
        )

    def everywhere(self, features: Sequence[Tensor]) -> DensePredictions:
        """Raw outputs of all priors."""
        classes, codes, qualities = [], [], []
        for level, feature in enumerate(features):
            shared = self.stem(feature)
            outputs = self.predict(self.class_tower(shared), self.box_tower(shared))
            code = outputs["box"] if self.scales is None else self.scales[level](outputs["box"])
            classes.append(by_prior(outputs["class"], self.columns))
            codes.append(by_prior(code, self.coder.size))
            if self.quality_predictor is not None:
                qualities.append(by_prior(outputs["quality"], 1)[..., 0])
        return DensePredictions(
            torch.cat(classes, 1), torch.cat(codes, 1), torch.cat(qualities, 1) if qualities else None
        )

    def predict(self, class_features: Tensor, box_features: Tensor) -> dict[str, Tensor]:
        """Outputs of the predictors by "class", "box" and, if there is one, "quality"."""
        on_class, on_box = {"class": self.class_predictor}, {"box": self.box_predictor}
        if self.quality_predictor is not None:
            (on_class if self.quality_branch == "class" else on_box)["quality"] = self.quality_predictor
        if class_features is box_features:
            return convolve_together(on_class | on_box, box_features)
        return convolve_together(on_class, class_features) | convolve_together(on_box, box_features)


def convolve_together(layers: dict[str, nn.Conv2d], x: Tensor) -> dict[str, Tensor]:
    """What convolutions that differ in their output channels alone make of the same features, by name.

    While gradients are wanted it is one convolution, whose gradient visits the features once.
    """
    plain = all(type(layer) is nn.Conv2d for layer in layers.values())
    if len(layers) == 1 or not plain or not torch.is_grad_enabled():
        return {name: layer(x) for name, layer in layers.items()}
    first, *_ = layers.values()
    weight = torch.cat([layer.weight for layer in layers.values()])
    bias = torch.cat([layer.bias for layer in layers.values() if layer.bias is not None])
    output = F.conv2d(x, weight, bias, first.stride, first.padding)
    parts = output.split([layer.out_channels for layer in layers.values()], 1)
    return dict(zip(layers, parts, strict=True))


def by_prior(output: Tensor, size: int) -> Tensor:
    """`(B, K * size, H, W)` to `(B, H * W * K, size)`."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, size)
