"""The mask branch (Mask R-CNN, arXiv:1703.06870, Sec. 3, Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distributed import mean_over_ranks
from ...errors import DataError
from ...ops.masks import mask_targets
from ...structures import Detections, FeatureSpec, Targets
from ...values import Amount, Count
from ..layers import ConvFactory, NormLayer, conv_tower
from ..targets import Filled, gather_slots
from .box_head import RoIExtractor


class MaskHead(nn.Module):
    """Four convolutions, one upsampling by two, one mask a class; only the wanted class's is computed.

    Args:
        in_specs: feature levels.
        num_classes: C, without background.
        extractor: how regions are pooled; masks have twice its side.
        channels: of the convolutions.
        convs: how many convolutions.
        norm: norm of each convolution, called with its channels; None for none.
        conv: makes each convolution, called as `nn.Conv2d`.
        weight: of the mask loss.
        soft_targets: train on the share of each bin that the object covers (torchvision) instead of
            on whether it is at least half (the paper, MMDetection, Detectron2).
        aligned_targets: as `aligned` of `RoIExtractor`, for the targets.
        class_agnostic: one mask for all classes (the paper's ablation, Sec. 4.1, "Class-Specific vs.
            Class-Agnostic Masks").
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        extractor: RoIExtractor = RoIExtractor(size=14),  # noqa: B008  frozen
        channels: Count = 256,
        convs: Amount = 4,
        norm: NormLayer | None = None,
        conv: ConvFactory = nn.Conv2d,
        weight: float = 1.0,
        soft_targets: bool = False,
        aligned_targets: bool = True,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(spec.stride for spec in in_specs)
        self.extractor, self.weight = extractor, weight
        self.soft_targets, self.aligned_targets = soft_targets, aligned_targets
        self.class_agnostic = class_agnostic
        widths = [in_specs[0].channels] + [channels] * convs
        self.convs = conv_tower(widths, norm=norm, conv=conv)
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, 1 if class_agnostic else num_classes, 1)
        for module in (self.upsample, self.predictor):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self,
        features: Sequence[Tensor],
        boxes: Tensor,
        labels: Tensor,
        valid: Tensor,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Mask logits `(B, R, S, S)` of boxes `(B, R, 4)` for their labels `(B, R)`; zero where not valid.

        `pooled`, `(B, R, channels, S / 2, S / 2)`, are the regions' features where they are there already.
        """
        filled = Filled.of(valid)
        if pooled is None:
            pooled = self.extractor(features, self.strides, boxes, valid)
        return self.logits(self.convs(filled.drop(pooled)), labels, filled)

    def logits(self, hidden: Tensor, labels: Tensor, filled: Filled) -> Tensor:
        """Mask logits `(B, R, S, S)` for labels `(B, R)`, from what `convs` makes of the filled slots."""
        hidden = F.relu(self.upsample(hidden), inplace=True)
        # The 1x1 predictor of one class instead of all: a dot product with that class's weights.
        label = filled.drop(torch.zeros_like(labels) if self.class_agnostic else labels)
        weights = self.predictor.weight[:, :, 0, 0][label].to(hidden.dtype)
        logits = (
            torch.matmul(weights[:, None], hidden.flatten(2)).unflatten(-1, hidden.shape[2:])[:, 0].float()
        )
        assert self.predictor.bias is not None
        return filled.restore(logits + self.predictor.bias[label][:, None, None])

    def loss(
        self,
        features: Sequence[Tensor],
        boxes: Tensor,
        gt_index: Tensor,
        positive: Tensor,
        targets: Targets,
        canvas: tuple[int, int],
        pooled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss "loss/mask": mean binary cross entropy over the pixels of positive regions.

        Regions of an object without a mask are left out; their boxes are trained all the same.

        Args:
            features: levels of `(B, channels, H, W)`.
            boxes: `(B, R, 4)` regions.
            gt_index: `(B, R)` ground truth of each.
            positive: `(B, R)`, the regions that are trained.
            targets: ground truth with masks.
            canvas: height and width of the input.
            pooled: as in `forward`.

        Raises:
            DataError: the ground truth has no masks.
        """
        labels = gather_slots(targets.labels, gt_index)
        logits = self(features, boxes, labels, positive, pooled)
        return self.compare(logits, boxes, gt_index, positive, targets, canvas)

    def compare(
        self,
        logits: Tensor,
        boxes: Tensor,
        gt_index: Tensor,
        positive: Tensor,
        targets: Targets,
        canvas: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The loss of mask logits `(B, R, S, S)`; the rest as in `loss`."""
        if targets.masks is None:
            raise DataError("a mask head is trained on instance masks, but this data set has boxes only")
        size = logits.shape[-1]
        positive = positive & gather_slots(targets.masks.present, gt_index)
        truth = mask_targets(targets.masks, boxes, gt_index, positive, canvas, size, self.aligned_targets)
        if not self.soft_targets:
            truth = (truth >= 0.5).float()
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3))
        count = mean_over_ranks(positive.sum().float()).clamp(min=1)
        return {"loss/mask": self.weight * torch.where(positive, losses, 0.0).sum() / count}

    def predict(
        self, features: Sequence[Tensor], detections: Detections, pooled: Tensor | None = None
    ) -> Tensor:
        """Mask probabilities `(B, K, S, S)` inside the detected boxes; `pooled` as in `forward`."""
        return self(features, detections.boxes, detections.labels, detections.valid, pooled).sigmoid()
