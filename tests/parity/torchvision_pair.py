"""A torchvision detector, its conversion, and the same inputs for both: what the parity tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from boxwright.interop.torchvision import Detector, convert
from boxwright.models.detectors import Normalise
from boxwright.ops.masks import pack
from boxwright.structures import Batch, Targets

CLASSES = 7
SLOTS = 4

# Sizes of the images of a batch. On neither canvas is the coarsest level an exact part: 160 px are 2.5
# strides of P6.
SIZES = (((160, 224), (140, 200)), ((120, 96), (128, 93)))

# Spread and mean of each predictor's output, so that scores are diverse and boxes neither vanish nor flee.
SPREAD = {
    "head.classification_head.cls_logits": (1.5, -2.5),
    "head.regression_head.bbox_reg": (0.3, 0.0),
    "head.regression_head.bbox_ctrness": (1.0, 0.5),
    "rpn.head.cls_logits": (1.0, 0.0),
    "rpn.head.bbox_pred": (0.3, 0.0),
    "roi_heads.box_predictor.cls_score": (2.0, 0.0),
    "roi_heads.box_predictor.bbox_pred": (1.0, 0.0),
    "roi_heads.mask_predictor.mask_fcn_logits": (2.0, 0.0),
}


@dataclass
class Input:
    """Images of one canvas for torchvision (a list, normalised) and for ours (a batch, 0..255)."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    batch: Batch

    def copy(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """For a call of torchvision's model, which changes its arguments."""
        return [image.clone() for image in self.images], [dict(target) for target in self.targets]


@dataclass
class Pair:
    """torchvision's detector without its resizing, normalising and pasting, and ours.

    Args:
        theirs: torchvision's detector.
        ours: its conversion.
        names: our parameters' names to theirs.
        label_shift: their label of our label 0.
    """

    theirs: nn.Module
    ours: Detector
    names: dict[str, str]
    label_shift: int

    def eval(self) -> Pair:
        self.theirs.eval()
        self.ours.eval()
        return self

    def train(self) -> Pair:
        self.theirs.train()
        self.ours.train()
        return self

    def image_list(self, data: Input) -> ImageList:
        return self.theirs.transform(data.copy()[0])[0]  # pyright: ignore


def make_input(
    sizes: Sequence[tuple[int, int]], normalise: Normalise, label_shift: int = 0, seed: int = 0
) -> Input:
    """Random images with ellipses as objects; torchvision's labels are ours + `label_shift`."""
    g = torch.Generator().manual_seed(seed)
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    boxes, labels, masks, targets = torch.zeros(len(sizes), SLOTS, 4), torch.zeros(len(sizes), SLOTS), [], []
    labels, valid = labels.long(), labels.bool()
    for b, (h, w) in enumerate(sizes):
        coarse = torch.rand(1, 3, h // 16 + 2, w // 16 + 2, generator=g)
        smooth = nn.functional.interpolate(coarse, (h, w), mode="bilinear")[0]
        pixels[b, :, :h, :w] = (smooth * 200 + torch.rand(3, h, w, generator=g) * 55).to(torch.uint8)
        count = 3 - b % 2
        side = torch.rand(count, 2, generator=g) * 0.4 + 0.25
        start = torch.rand(count, 2, generator=g) * (0.98 - side)
        box = torch.cat((start, start + side), 1) * torch.tensor([w, h, w, h])
        if b == 0:
            # A small object on a large one: the anchors that overlap it most overlap the large one more.
            middle = (box[0, :2] + box[0, 2:]) / 2
            box[-1] = torch.cat((middle - 3.3, middle + 3.9))
        label = torch.randint(0, CLASSES - 1, (count,), generator=g)
        mask = torch.stack([_ellipse(row, h, w) for row in box])
        boxes[b, :count], labels[b, :count], valid[b, :count] = box, label, True
        masks.append(mask)
        targets.append({"boxes": box, "labels": label + label_shift, "masks": mask})
    truth = Targets(boxes, labels, valid, torch.zeros_like(valid), pack(masks, SLOTS))
    batch = Batch(pixels, torch.tensor(sizes), truth)
    normalised = normalise(batch.images, batch.sizes)
    images = [image[:, :h, :w] for image, (h, w) in zip(normalised, sizes, strict=True)]
    return Input(images, targets, batch)


def _ellipse(box: Tensor, height: int, width: int) -> Tensor:
    x1, y1, x2, y2 = box
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return inside.to(torch.uint8)


def make_pair(build: Callable[[], nn.Module], seed: int = 0) -> Pair:
    """Build with random weights, spread them, convert."""
    torch.manual_seed(seed)
    theirs = build()
    # The two normalise in another order of operations, which random weights would magnify; a test of its own
    # compares that, and all others begin at the same normalised canvas.
    theirs.transform.normalize = lambda image: image  # pyright: ignore
    theirs.transform.resize = lambda image, target=None: (image, target)  # pyright: ignore
    theirs.transform.postprocess = lambda result, shapes, originals: result  # pyright: ignore
    shift = int(isinstance(theirs, GeneralizedRCNN))
    spread(theirs, make_input(SIZES[0], Normalise()).images)
    ours, report = convert(theirs)
    return Pair(theirs, ours, dict(report.names), shift)


@torch.no_grad()
def spread(module: nn.Module, images: list[Tensor]) -> None:
    """Give norms the statistics of these images, and each predictor's outputs the spread of the table."""
    hooks = []
    last = ("bn3", "block.2.1", "block.3.1")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            # Damped where it ends a residual branch: deep stacks of random weights magnify rounding errors.
            layer.weight.uniform_(0.8, 1.2).mul_(0.3 if name.endswith(last) else 1.0)
            layer.bias.normal_(0, 0.1)
            hooks.append(layer.register_forward_pre_hook(_measure))
    fcos = "head.regression_head.bbox_ctrness" in dict(module.named_modules())
    for name, layer in module.named_modules():
        if name in SPREAD:
            std, mean = (1.0, 2.5) if fcos and name.endswith("bbox_reg") else SPREAD[name]
            hooks.append(layer.register_forward_hook(_rescale(std, mean)))
    module.eval()([image.clone() for image in images])
    for hook in hooks:
        hook.remove()


def _measure(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
    x = inputs[0]
    if not hasattr(layer, "measured") and x.numel() > x.shape[1]:
        layer.running_mean.copy_(x.mean((0, 2, 3)))  # pyright: ignore
        layer.running_var.copy_(x.var((0, 2, 3)).clamp(min=1e-3))  # pyright: ignore
        layer.measured = True  # pyright: ignore  a head's norm sees each level, the first counts


def _rescale(std: float, mean: float) -> Callable[..., Tensor | None]:
    done = []

    def hook(layer: nn.Module, _: object, output: Tensor) -> Tensor | None:
        if done:
            return None
        done.append(True)
        columns = output.transpose(0, 1).flatten(
            1
        )  # each column is centred, so that many classes win somewhere
        factor = std / (columns - columns.mean(1, keepdim=True)).std()
        shift = mean - columns.mean(1) * factor
        layer.weight.mul_(factor)  # pyright: ignore
        layer.bias.mul_(factor).add_(shift)  # pyright: ignore
        return output * factor + shift.reshape(-1, *[1] * (output.dim() - 2))

    return hook


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in standard deviations of theirs."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.std().clamp(min=1e-12))
