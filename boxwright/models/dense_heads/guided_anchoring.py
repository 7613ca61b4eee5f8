"""Guided anchoring: the network predicts where anchors are and which shape they have (arXiv:1901.03278).

At each place of a level stands a square. A branch of one logit says whether an object's centre lies there
(Sec. 3.1), another gives the square the shape of an anchor (Sec. 3.2), and the features are adapted to that
shape (Sec. 3.3). Class and box are then predicted relative to this one anchor, as in any dense head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures import DensePredictions, Detections, FeatureSpec, Priors, Targets
from ...values import Amount, Count, OddCount
from ..assigners import RegionAssigner
from ..layers import DeformConv2d, NormLayer, bias_for_prior
from ..losses import BoundedIoULoss, FocalLoss
from ..priors import TrainableArea
from ..protocols import Assigner, ClassLoss, Coder, ElementLoss, PriorGenerator, Sampler
from ..targets import Filled, gather_slots
from .criterion import DenseCriterion, Divisor, Samples
from .head import DenseHead, by_prior
from .postprocess import DensePostprocess


@dataclass(frozen=True, kw_only=True)
class GuidedPredictions(DensePredictions):
    """Raw outputs over all A places; class logits and codes are those of the guided anchor at each.

    Args:
        location_logits: `(B, A)`, an object's centre is here.
        shapes: `(B, A, 2)`, codes of the anchor's width and height.
    """

    location_logits: Tensor
    shapes: Tensor


@dataclass(frozen=True)
class GuidedPostprocess(DensePostprocess):
    """Detections of the anchors at likely places alone.

    Args:
        location_threshold: anchors at places less likely than this are left out, epsilon_L of Sec. 3.1.
    """

    location_threshold: float = 0.01

    def __call__(
        self,
        predictions: DensePredictions,
        priors: Priors,
        sizes: Tensor,
        coder: Coder,
        class_loss: ClassLoss,
    ) -> Detections:
        """Detections `(B, max_detections)` on images of `sizes` `(B, 2)`; `priors` are the guided anchors."""
        assert isinstance(predictions, GuidedPredictions)
        likely = predictions.location_logits.float().sigmoid() >= self.location_threshold
        return super().__call__(predictions, replace(priors, valid=likely), sizes, coder, class_loss)


@dataclass(frozen=True)
class Guidance:
    """Losses of the location and the shape branch (Sec. 3.4).

    Args:
        shape_assigner: which square is trained to have the shape of which object.
        sampler: which of them take part.
        shape_loss: loss on the anchors of the positives, as boxes.
        shape_divisor: what the shape losses are divided by.
        regions: which places are centres of objects.
        location_loss: loss of the location logits, which are those of a single class.
        negative_weight: weight of places that are no centres.
        location_share: location losses are divided by this share of all places.
        area: which squares may be trained, and the anchors that are made of them; None for all.
    """

    shape_assigner: Assigner
    sampler: Sampler
    shape_loss: ElementLoss = BoundedIoULoss()  # noqa: RUF009  frozen
    shape_divisor: Divisor = Samples()  # noqa: RUF009  frozen
    regions: Assigner = RegionAssigner()  # noqa: RUF009  frozen
    location_loss: ClassLoss = FocalLoss()  # noqa: RUF009  frozen
    negative_weight: float = 0.1
    location_share: float = 0.005
    area: Callable[[Priors, Tensor], Priors] | None = TrainableArea()  # noqa: RUF009  frozen

    def trainable(self, squares: Priors, sizes: Tensor) -> Priors:
        """The squares that may be trained on images of `sizes (B, 2)`."""
        return squares if self.area is None else self.area(squares, sizes)

    def __call__(
        self, predictions: GuidedPredictions, squares: Priors, targets: Targets, coder: Coder
    ) -> dict[str, Tensor]:
        """Losses of a batch, "loss/location" and "loss/shape"; only `valid` squares count for the shape."""
        return {
            "loss/location": self._location(
                predictions.location_logits, replace(squares, valid=None), targets
            ),
            "loss/shape": self._shape(predictions.shapes, squares, targets, coder),
        }

    def _location(self, logits: Tensor, squares: Priors, targets: Targets) -> Tensor:
        assignment = self.regions(squares, targets)
        label = torch.zeros_like(assignment.gt_index)
        losses = self.location_loss(logits[..., None], label, assignment.positive.float())
        weight = assignment.positive + self.negative_weight * assignment.negative
        return (losses * weight).sum() / (self.location_share * logits.shape[0] * logits.shape[1])

    def _shape(self, shapes: Tensor, squares: Priors, targets: Targets, coder: Coder) -> Tensor:
        sample = self.sampler(self.shape_assigner(squares, targets), priors=squares)
        filled = Filled.of(sample.positive)
        square = filled.drop(sample.take(squares.boxes.expand(*shapes.shape[:2], 4)))
        stride = filled.drop(sample.take(squares.strides.expand(shapes.shape[:2])))
        anchors = coder.decode(filled.drop(sample.take(shapes)), square, stride)
        losses = self.shape_loss(anchors, filled.drop(gather_slots(targets.boxes, sample.gt_index)))
        return (filled.restore(losses).sum(1) / self.shape_divisor(sample)).sum()


class FeatureAdaption(nn.Module):
    """Features that see the region of the anchor at each place (Sec. 3.3, Eq. 3).

    A deformable convolution of kernel 3 whose offsets are a linear function of the anchor's shape; no
    gradient flows from them into the shape.

    Args:
        in_channels: of the features.
        out_channels: of the adapted features.
        groups: groups of channels with offsets of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 4) -> None:
        super().__init__()
        self.conv = DeformConv2d(in_channels, out_channels, 3, padding=1, bias=False, deform_groups=groups)
        self.offset = nn.Conv2d(2, 2 * self.conv.taps, 1, bias=False)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.normal_(self.offset.weight, std=0.1)

    def forward(self, x: Tensor, shapes: Tensor) -> Tensor:
        """Features `(B, in_channels, H, W)`, shape codes `(B, 2, H, W)` to `(B, out_channels, H, W)`."""
        return F.relu(self.conv(x, self.offset(shapes.detach())), inplace=True)


class GuidedAnchorHead(DenseHead):
    """A dense head on anchors of its own prediction, one at each place.

    With towers (GA-RetinaNet) the location is predicted from the class features and the shape from the box
    features, and both are adapted; without (GA-RPN) all share the features of the stem, and one adaption.

    Args:
        in_specs: feature levels, all of the same number of channels.
        num_classes: C, without background.
        priors: a square at each place.
        shape_coder: what the anchors' shape is predicted as, relative to the squares.
        guidance: how locations and shapes are trained.
        coder: what a box is regressed as, relative to the guided anchors.
        criterion: how classes and boxes are trained, with guided anchors as priors; which of them is said by
            `guidance.area`, not by the criterion's.
        postprocess: how detections are made of the outputs, with guided anchors as priors.
        channels: of the convolutions.
        stem_convs: convolutions before the towers part.
        tower_convs: convolutions of the class tower and of the box tower.
        predictor_kernel: side of the kernels of the class and box predictors.
        norm: norm of each convolution, called with its channels; None for none.
        offset_groups: groups of the feature adaption.
        class_prior: scores of an untrained head; None for a bias of 0.
        location_prior: likelihood of a centre, untrained.
        init_std: spread of the initial weights.

    Raises:
        ValueError: there is more than one prior at a place.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        priors: PriorGenerator,
        shape_coder: Coder,
        guidance: Guidance,
        coder: Coder,
        criterion: DenseCriterion,
        postprocess: DensePostprocess,
        channels: Count = 256,
        stem_convs: Amount = 0,
        tower_convs: Amount = 4,
        predictor_kernel: OddCount = 3,
        norm: NormLayer | None = None,
        offset_groups: int = 4,
        class_prior: float | None = 0.01,
        location_prior: float = 0.01,
        init_std: float = 0.01,
    ) -> None:
        if priors.num_per_place() != 1:
            raise ValueError(f"GuidedAnchorHead: one square a place, not {priors.num_per_place()} priors")
        super().__init__(
            in_specs,
            num_classes=num_classes,
            priors=priors,
            coder=coder,
            criterion=criterion,
            postprocess=postprocess,
            channels=channels,
            stem_convs=stem_convs,
            tower_convs=tower_convs,
            predictor_kernel=predictor_kernel,
            norm=norm,
            class_prior=class_prior,
            init_std=init_std,
        )
        self.shape_coder, self.guidance = shape_coder, guidance
        width = channels if stem_convs or tower_convs else in_specs[0].channels
        self.location_predictor = nn.Conv2d(width, 1, 1)
        self.shape_predictor = nn.Conv2d(width, shape_coder.size, 1)
        for layer, bias in (
            (self.location_predictor, bias_for_prior(location_prior)),
            (self.shape_predictor, 0.0),
        ):
            nn.init.normal_(layer.weight, std=init_std)
            nn.init.constant_(layer.bias, bias)  # pyright: ignore[reportArgumentType]
        self.class_adaption = FeatureAdaption(width, width, offset_groups)
        self.box_adaption = FeatureAdaption(width, width, offset_groups) if tower_convs else None

    def forward(self, features: Sequence[Tensor]) -> GuidedPredictions:
        """Raw outputs for features of `(B, channels, H, W)`, levels one behind the other."""
        outputs = zip(*[self._level(feature) for feature in features], strict=True)
        classes, codes, locations, shapes = (torch.cat(levels, 1) for levels in outputs)
        return GuidedPredictions(classes, codes, location_logits=locations[..., 0], shapes=shapes)

    def _level(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class logits, box codes, location logits and shape codes `(B, H * W, size)` of a level."""
        shared = self.stem(feature)
        class_features, box_features = self.class_tower(shared), self.box_tower(shared)
        location, shape = self.location_predictor(class_features), self.shape_predictor(box_features)
        class_features = self.class_adaption(class_features, shape)
        box_features = class_features if self.box_adaption is None else self.box_adaption(box_features, shape)
        return (
            by_prior(self.class_predictor(class_features), self.columns),
            by_prior(self.box_predictor(box_features), self.coder.size),
            by_prior(location, 1),
            by_prior(shape, self.shape_coder.size),
        )

    def anchors(self, predictions: GuidedPredictions, squares: Priors) -> Priors:
        """The guided anchors `(B, A, 4)`: squares in their predicted shapes (Eq. 2), without gradient."""
        boxes = self.shape_coder.decode(predictions.shapes.detach(), squares.boxes, squares.strides)
        return replace(squares, boxes=boxes)

    def loss(
        self, predictions: DensePredictions, priors: Priors, targets: Targets, sizes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of raw outputs: those of the criterion, "loss/location" and "loss/shape"."""
        assert isinstance(predictions, GuidedPredictions)
        squares = self.guidance.trainable(priors, sizes)
        of_anchors = DensePredictions(predictions.class_logits, predictions.codes)
        losses = super().loss(of_anchors, self.anchors(predictions, squares), targets, sizes)
        return losses | self.guidance(predictions, squares, targets, self.shape_coder)

    def decode(
        self,
        predictions: DensePredictions,
        priors: Priors,
        sizes: Tensor,
        postprocess: DensePostprocess | None = None,
    ) -> Detections:
        """Detections, or proposals of an RPN, of raw outputs; `postprocess` stands in for the head's own."""
        assert isinstance(predictions, GuidedPredictions)
        return super().decode(predictions, self.anchors(predictions, priors), sizes, postprocess)
