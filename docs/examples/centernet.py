"""CenterNet (arXiv:1904.07850): a detector that fits no slot, in one file, and a recipe for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from fiddle import Config
from torch import Tensor, nn

import boxwright as bw
from boxwright.config import NumClasses
from boxwright.distributed import mean_over_ranks
from boxwright.models.detectors import Normalise
from boxwright.models.detectors.pyramid import PyramidDetector, targets_of
from boxwright.models.layers import bias_for_prior
from boxwright.ops.boxes import clip, to_cxcywh
from boxwright.structures import Batch, Detections, FeatureSpec, Targets


def spread(size: Tensor, overlap: float = 0.7) -> Tensor:
    """Deviation `(...)` of the Gaussian around the centre of boxes of size `(..., 2)`, any unit.

    A box moved by r in x and y overlaps its old place by `overlap`; the deviation is a third of that r, as
    CornerNet has it. (The authors' code also asks how far corners may move apart, and takes the least.)
    """
    total, product = size.sum(-1), size.prod(-1)
    root = (total.square() - 4 * product * (1 - overlap) / (1 + overlap)).clamp(min=0).sqrt()
    return (total - root) / 6


def cells_of(targets: Targets, stride: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres `(B, G, 2)` of the objects in cells, and the whole cells `(B, G, 2)`, x and y, they are in."""
    centre = to_cxcywh(targets.boxes)[..., :2] / stride
    x, y = centre.floor().unbind(-1)
    return centre, torch.stack((x.clamp(0, shape[1] - 1), y.clamp(0, shape[0] - 1)), dim=-1)


def heatmap(targets: Targets, stride: int, shape: tuple[int, int], num_classes: int) -> Tensor:
    """What the class maps are trained for, `(B, C, H, W)` in 0..1: a Gaussian at each object (Sec. 3).

    It is 1 in the cell of an object's centre. Where Gaussians of a class meet, the higher one counts.
    """
    _, cell = cells_of(targets, stride, shape)
    device = cell.device
    deviation = spread(to_cxcywh(targets.boxes)[..., 2:] / stride).clamp(min=1 / 6)  # (B, G)
    x = torch.arange(shape[1], device=device) - cell[..., :1]  # (B, G, W)
    y = torch.arange(shape[0], device=device) - cell[..., 1:]  # (B, G, H)
    distance = x.square()[..., None, :] + y.square()[..., None]  # (B, G, H, W)
    peaks = torch.exp(-distance / (2 * deviation.square()[..., None, None]))
    peaks = torch.where(targets.valid[..., None, None], peaks, 0.0)
    maps = peaks.new_zeros(len(peaks), num_classes, *shape)
    index = targets.labels[..., None, None].expand_as(peaks)
    return maps.scatter_reduce(1, index, peaks, "amax")


def in_regions(targets: Targets, stride: int, shape: tuple[int, int]) -> Tensor:
    """`(B, 1, H, W)` which cells have their centre in a region that counts neither way."""
    x = (torch.arange(shape[1], device=targets.boxes.device) + 0.5) * stride
    y = (torch.arange(shape[0], device=targets.boxes.device) + 0.5) * stride
    x1, y1, x2, y2 = targets.boxes[..., None].unbind(-2)  # (B, G, 1)
    columns = (x > x1) & (x < x2) & targets.ignore[..., None]
    rows = (y > y1) & (y < y2)
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)


def at_cells(maps: Tensor, cell: Tensor) -> Tensor:
    """The values `(B, N, K)` of maps `(B, K, H, W)` in cells `(B, N)`, counted row by row."""
    index = cell[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)


class CenterNet(PyramidDetector):
    """An object is the peak of its class's map, with a size and an offset beside it (Sec. 4).

    Losses are Eq. 1 to 4 of the paper. The levels of the pyramid are brought to the finest one and added,
    where the paper has networks of its own. Sizes are predicted in cells, as in the authors' code.

    Args:
        backbone: has `specs` and gives one feature map for each.
        neck: maker of the neck, called with the backbone's specs; all levels of the same channels.
        num_classes: C, without background.
        channels: of each branch's hidden layer.
        max_detections: slots an image.
        score_threshold: lower peaks are dropped.
        normalise: what is done to the images first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Callable[[Sequence[FeatureSpec]], nn.Module],
        num_classes: Annotated[int, NumClasses] = 80,
        channels: int = 64,
        max_detections: int = 100,
        score_threshold: float = 0.01,
        normalise: Normalise | None = None,
    ) -> None:
        super().__init__(backbone, neck, normalise)
        self.max_detections, self.score_threshold = max_detections, score_threshold
        finest = self.neck.specs[0]
        self.num_classes, self.stride = num_classes, finest.stride

        def branch(outputs: int) -> nn.Sequential:
            first = nn.Conv2d(finest.channels, channels, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), nn.Conv2d(channels, outputs, 1))

        self.heat, self.size, self.offset = branch(num_classes), branch(2), branch(2)
        nn.init.constant_(self.heat[-1].bias, bias_for_prior(0.1))

    def maps(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class logits, sizes, offsets `(B, K, H, W)` in float32, and which cells are on the image."""
        finest, *others = self.features(images, sizes)
        for level in others:
            finest = finest + F.interpolate(level, size=finest.shape[-2:], mode="nearest")
        height, width = finest.shape[-2:]
        rows = torch.arange(height, device=images.device) * self.stride < sizes[:, :1]
        columns = torch.arange(width, device=images.device) * self.stride < sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None])[:, None]
        return self.heat(finest).float(), self.size(finest).float(), self.offset(finest).float(), inside

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; those named "loss/..." make the total, "stat/..." only inform."""
        targets = targets_of(batch)
        heat, size, offset, inside = self.maps(batch.images, batch.sizes)
        shape = (heat.shape[2], heat.shape[3])
        truth = heatmap(targets, self.stride, shape, self.num_classes)
        objects = targets.valid.sum()
        divisor = mean_over_ranks(objects.float()).clamp(min=1)  # so that many processes equal one

        crowd = in_regions(targets, self.stride, shape)
        counts = inside & (~crowd | (truth == 1))
        score = heat.sigmoid()
        positive = (1 - score).square() * F.logsigmoid(heat)
        negative = (1 - truth).pow(4) * score.square() * F.logsigmoid(-heat)
        focal = torch.where(truth == 1, positive, negative)

        centre, cell = cells_of(targets, self.stride, shape)
        place = (cell[..., 1] * shape[1] + cell[..., 0]).long()
        of_offset = (at_cells(offset, place) - (centre - cell)).abs().sum(-1)
        of_size = (at_cells(size, place) - to_cxcywh(targets.boxes)[..., 2:] / self.stride).abs().sum(-1)
        return {
            "loss/heat": -torch.where(counts, focal, 0.0).sum() / divisor,
            "loss/size": 0.1 * torch.where(targets.valid, of_size, 0.0).sum() / divisor,
            "loss/offset": torch.where(targets.valid, of_offset, 0.0).sum() / divisor,
            "stat/positives": objects / float(len(heat)),
        }

    forward = loss

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections in pixels of the canvas: the highest of the places that no neighbour exceeds."""
        heat, size, offset, inside = self.maps(images, sizes)
        score = torch.where(inside, heat.sigmoid(), 0.0)
        score = torch.where(score == F.max_pool2d(score, 3, stride=1, padding=1), score, 0.0)
        area = score.shape[2] * score.shape[3]
        best, index = score.flatten(1).topk(min(self.max_detections, self.num_classes * area), dim=1)
        label, cell = index // area, index % area
        corner = torch.stack((cell % score.shape[3], cell // score.shape[3]), dim=-1)
        centre = (corner + at_cells(offset, cell)) * self.stride
        half = at_cells(size, cell).clamp(min=0) * self.stride / 2
        boxes = clip(torch.cat((centre - half, centre + half), dim=-1), sizes)
        valid = best > self.score_threshold
        return Detections(boxes, torch.where(valid, best, 0.0), label, valid)


def centernet_mnv2_320() -> Config[bw.Experiment]:
    """CenterNet on MobileNetV2 and a pyramid from stride 4 on, at 320 pixels, for two CPU cores."""
    recipe = bw.recipe("fcos_mnv2_320")
    backbone, neck = recipe.model.backbone, recipe.model.neck
    backbone.min_stride = 4
    recipe.model = Config(CenterNet, backbone=backbone, neck=neck)
    return recipe
