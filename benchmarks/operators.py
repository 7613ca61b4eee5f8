"""Operators beside torchvision's, at the sizes that detectors use them in.

Each pair is first held to agree. Pooled regions and gradients are float32, as autocast leaves them there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.losses import FocalLoss
from boxwright.ops.deform_conv import deform_conv2d
from boxwright.ops.masks import paste
from boxwright.ops.nms import nms
from boxwright.ops.roi_align import assign_levels, roi_align
from boxwright.structures import Priors, Targets

from . import harness


@dataclass(frozen=True)
class Case:
    """What each competitor runs, and whether their results agree."""

    ours: Callable[[], object]
    theirs: Callable[[], object]
    difference: Callable[[], float]
    size: str


def random_boxes(batch: int, count: int, height: int, width: int, g: torch.Generator) -> Tensor:
    """Boxes of all sizes, log-uniform from 16 pixels to half of the image."""
    side = 16 * (min(height, width) / 32) ** torch.rand(batch, count, 2, generator=g)
    start = torch.rand(batch, count, 2, generator=g) * (torch.tensor([width, height]) - side)
    return torch.cat((start, start + side), -1)


def pooling(device: torch.device, backward: bool) -> Case:
    """Multi-level RoIAlign, two images of 800 x 1344, 512 regions each, 7 x 7 of 256 channels."""
    g = torch.Generator().manual_seed(0)
    height, width, strides = (
        (800, 1344, [4, 8, 16, 32]) if device.type == "cuda" else (512, 640, [4, 8, 16, 32])
    )
    features = [torch.randn(2, 256, height // s, width // s, generator=g) for s in strides]
    features = [f.to(device).requires_grad_(backward) for f in features]
    boxes = random_boxes(2, 512, height, width, g).to(device)
    level = assign_levels(boxes, torch.ones(2, 512, dtype=torch.bool, device=device), 4)
    pool = MultiScaleRoIAlign(list("0123"), 7, 2)
    named, sizes, regions = dict(zip("0123", features, strict=True)), [(height, width)] * 2, list(boxes)
    last = [
        f.detach().contiguous(memory_format=torch.channels_last).requires_grad_(backward) for f in features
    ]
    weight = torch.randn(1024, 256, 7, 7, generator=g).to(device)

    def run(outputs: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        if not backward:
            return (outputs,)
        return torch.autograd.grad(outputs, inputs, weight.view_as(outputs))

    def ours() -> tuple[Tensor, ...]:
        return run(roi_align(last, boxes, level, strides, 7, 2, aligned=False), last)

    def theirs() -> tuple[Tensor, ...]:
        return run(pool(named, regions, sizes), features)

    def difference() -> float:
        pairs = zip(ours(), theirs(), strict=True)
        return max(float((a.reshape(b.shape) - b).abs().max()) for a, b in pairs)

    return Case(ours, theirs, difference, f"2x512 regions, {height}x{width}")


def suppression(device: torch.device) -> Case:
    """NMS of two images with 4,000 candidates of 80 classes."""
    g = torch.Generator().manual_seed(0)
    boxes = random_boxes(2, 4000, 512, 640, g).to(device)
    scores = torch.rand(2, 4000, generator=g).to(device)
    labels = torch.randint(0, 80, (2, 4000), generator=g).to(device)
    valid = torch.ones_like(labels, dtype=torch.bool)

    def ours() -> Tensor:
        return nms(boxes, scores, labels, valid, 0.5, 100)[0]

    def theirs() -> Tensor:
        kept = [
            torchvision.ops.batched_nms(*image, 0.5)[:100]
            for image in zip(boxes, scores, labels, strict=True)
        ]
        return torch.stack(kept)

    return Case(ours, theirs, lambda: missing(ours(), theirs()), "2x4000 boxes, 80 classes")


def proposals(device: torch.device) -> Case:
    """NMS of two images with 4,768 anchors of 5 levels, of which an RPN keeps 1,000."""
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([1000, 1000, 1000, 1000, 768])
    boxes = random_boxes(2, 4768, 512, 640, g).to(device)
    scores = torch.rand(2, 4768, generator=g).to(device)
    levels = torch.arange(5).repeat_interleave(counts).repeat(2, 1).to(device)
    valid = torch.ones_like(levels, dtype=torch.bool)

    def ours() -> Tensor:
        return nms(boxes, scores, levels, valid, 0.7, 1000)[0]

    def theirs() -> Tensor:
        kept = [
            torchvision.ops.batched_nms(*image, 0.7)[:1000]
            for image in zip(boxes, scores, levels, strict=True)
        ]
        return torch.stack(kept)

    return Case(ours, theirs, lambda: missing(ours(), theirs()), "2x4768 boxes, 5 levels")


def missing(ours: Tensor, theirs: Tensor) -> float:
    """Share of the boxes `(B, K)` kept by ours that the peer does not keep; on a CPU in the same order."""
    if ours.device.type == "cpu":
        return float((ours != theirs).float().mean())
    return float((ours[:, :, None] != theirs[:, None]).all(-1).float().mean())


def deformable(device: torch.device, backward: bool) -> Case:
    """Modulated deformable 3 x 3 convolution of two maps of 32 x 40 with 256 channels."""
    g = torch.Generator().manual_seed(0)
    shapes = (2, 256, 32, 40), (2, 18, 32, 40), (256, 256, 3, 3), (2, 9, 32, 40)
    x, offset, weight, mask = (torch.randn(shape, generator=g).to(device) for shape in shapes)
    last = x.contiguous(memory_format=torch.channels_last)
    weight = weight / 48
    inputs = [t.requires_grad_(backward) for t in (x, offset, weight, mask)]
    ours_inputs = [last.requires_grad_(backward), *inputs[1:]]

    def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        output = function(tensors[0], tensors[1], tensors[2], padding=1, mask=tensors[3])
        return torch.autograd.grad(output.square().sum(), tensors) if backward else (output,)

    def difference() -> float:
        pairs = zip(run(deform_conv2d, ours_inputs), run(torchvision.ops.deform_conv2d, inputs), strict=True)
        return max(float((a - b).abs().max() / b.std()) for a, b in pairs)

    return Case(
        lambda: run(deform_conv2d, ours_inputs),
        lambda: run(torchvision.ops.deform_conv2d, inputs),
        difference,
        "2x256x32x40",
    )


def focal(device: torch.device) -> Case:
    """Focal loss and its gradient over 50,000 anchors and 80 classes, float32."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(50_000, 80, generator=g).to(device).requires_grad_()
    labels = torch.randint(0, 80, (50_000,), generator=g).to(device)
    positive = (torch.rand(50_000, generator=g) < 0.01).to(device)
    loss = FocalLoss()

    def ours() -> Tensor:
        return torch.autograd.grad(loss(logits, labels, positive.float()).sum(), logits)[0]

    def theirs() -> Tensor:
        target = torch.zeros_like(logits)
        target[positive, labels[positive]] = 1.0
        value = torchvision.ops.sigmoid_focal_loss(logits, target, reduction="sum")
        return torch.autograd.grad(value, logits)[0]

    return Case(ours, theirs, lambda: float((ours() - theirs()).abs().max()), "50000x80")


def assignment(device: torch.device) -> Case:
    """Max-IoU assignment of 200,000 anchors to 100 boxes."""
    g = torch.Generator().manual_seed(0)
    anchors = random_boxes(1, 200_000, 800, 1344, g)[0].to(device)
    boxes = random_boxes(1, 100, 800, 1344, g).to(device)
    valid = torch.ones(1, 100, dtype=torch.bool, device=device)
    targets = Targets(boxes, valid.long(), valid, ~valid)
    priors = Priors(anchors, anchors.new_ones(200_000), (200_000,))
    assign = MaxIoUAssigner(0.5, 0.4, match_low_quality=True, low_quality_keeps_best=True)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def theirs() -> Tensor:
        return matcher(torchvision.ops.box_iou(boxes[0], anchors))

    def difference() -> float:
        mine, other = assign(priors, targets), theirs()
        code = torch.where(mine.positive[0], mine.gt_index[0], torch.where(mine.ignore[0], -2, -1))
        return float((code != other).float().mean())

    return Case(lambda: assign(priors, targets), theirs, difference, "200000x100")


def pasting(device: torch.device) -> Case:
    """100 masks of 28 x 28 pasted into an image of 800 x 1344."""
    g = torch.Generator().manual_seed(0)
    masks, boxes = (
        torch.rand(100, 28, 28, generator=g).to(device),
        random_boxes(1, 100, 800, 1344, g)[0].to(device),
    )

    def ours() -> Tensor:
        return paste(masks, boxes, 800, 1344)

    def theirs() -> Tensor:
        return paste_masks_in_image(masks[:, None], boxes, (800, 1344))[:, 0] >= 0.5

    # torchvision rounds boxes to whole pixels before it resizes a mask, so edges differ.
    return Case(ours, theirs, lambda: float((ours() != theirs()).float().mean()), "100 masks, 800x1344")


CASES: dict[str, tuple[Callable[[torch.device], Case], float]] = {
    "roi_align forward": (lambda device: pooling(device, False), 1e-3),
    "roi_align forward+backward": (lambda device: pooling(device, True), 1e-3),
    "nms": (suppression, 0.0),
    "nms of proposals": (proposals, 0.0),
    "deform_conv forward": (lambda device: deformable(device, False), 1e-3),
    "deform_conv forward+backward": (lambda device: deformable(device, True), 1e-3),
    "focal loss forward+backward": (focal, 1e-4),
    "assignment": (assignment, 0.0),
    "mask paste": (pasting, 0.05),
}

ON_CUDA = {"nms": 0.05, "nms of proposals": 0.05}
"""There torchvision keeps groups apart by shifting boxes in float32, which changes a few IoUs."""
"""Each operator with the largest difference that counts as agreement."""


def main() -> None:
    """Measure all operators.

    Raises:
        AssertionError: results differ; what could be measured was.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    device = harness.the_device()
    wrong: list[str] = []
    for name in arguments.only:
        make, tolerance = CASES[name]
        if device.type == "cuda":
            tolerance = ON_CUDA.get(name, tolerance)
        case = make(device)
        difference = case.difference()
        if not difference <= tolerance:
            wrong.append(f"{name}: results differ by {difference:.2g}")
            continue
        timings = harness.interleave(
            {"ours": case.ours, "torchvision": case.theirs}, arguments.repeats, device
        )
        harness.record("operators", harness.rows_of(timings, name, "fp32", device, size=case.size), device)
    assert not wrong, "; ".join(wrong)
