"""torchvision's detectors, ours with the same weights and settings, and the same images for both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from boxwright.engine.memory import Memory
from boxwright.engine.placing import place, place_model
from boxwright.engine.precision import resolve_precision
from boxwright.inference import prepare
from boxwright.interop import from_torchvision
from boxwright.models.detectors import OneStageDetector, TwoStageDetector
from boxwright.models.layers import set_folding
from boxwright.ops.masks import pack
from boxwright.structures import Batch, Targets, to_device

from .harness import exactly

CLASS_LOGITS = {"head.classification_head.cls_logits": 0.6, "roi_heads.box_predictor.cls_score": 1.5}
"""Spread of the class logits of detectors that find something, by the layer that makes them."""

BACKGROUND = 6.5
"""What the logit of no object has more than the others where there is one."""

OBJECTS = 8
CLASSES = 80

COMPILED = {"ours, compiled": "default", "ours, CUDA graphs": "reduce-overhead"}
"""Ours as one compiled graph, by its name among the competitors: the mode of `torch.compile`."""


def mobilenet_faster_rcnn() -> nn.Module:
    """Torchvision's Faster R-CNN sized as `faster_rcnn_mnv2_320`, but with one size of anchors a level."""
    network = torchvision.models.mobilenet_v2(norm_layer=FrozenBatchNorm2d)
    backbone = BackboneWithFPN(network.features, {"6": "0", "13": "1", "17": "2"}, [32, 96, 320], 128)
    return detection.FasterRCNN(
        backbone,
        min_size=256,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 4),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=112),
        box_head=detection.faster_rcnn.TwoMLPHead(128 * 49, 512),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(512, CLASSES + 1),
    )


def resnet_pyramid(one_stage: bool) -> nn.Module:
    """ResNet-50 with frozen norms, three trained stages and a pyramid, as torchvision's pretrained models."""
    levels: dict[str, Any] = {}
    if one_stage:
        levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    return resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3, **levels)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "retinanet_r50_fpn": lambda: detection.RetinaNet(resnet_pyramid(True), CLASSES),
    "fcos_r50_fpn": lambda: detection.FCOS(resnet_pyramid(True), CLASSES),
    "faster_rcnn_r50_fpn": lambda: detection.FasterRCNN(resnet_pyramid(False), CLASSES + 1),
    "mask_rcnn_r50_fpn": lambda: detection.MaskRCNN(resnet_pyramid(False), CLASSES + 1),
    "faster_rcnn_mnv2_320": mobilenet_faster_rcnn,
}


def torchvision_features(module: nn.Module, images: list[Tensor]) -> Iterable[Tensor]:
    """The pyramid's levels of one of torchvision's detectors."""
    prepared, _ = module.transform(list(images))  # pyright: ignore
    return module.backbone(prepared.tensors).values()  # pyright: ignore


@dataclass
class Pair:
    """Two detectors with the same weights, and the images and objects of one step for each.

    Args:
        theirs: the peer's. Resizing is switched off: the images have their size already.
        ours: made of it by the importer.
        images: as the peer takes them; torchvision: float images in 0..1.
        targets: as torchvision takes them; others have them beside their images.
        batch: the same for ours.
        who: the peer.
        features: the pyramid's levels of the peer's detector for the images.
    """

    theirs: nn.Module
    ours: OneStageDetector | TwoStageDetector
    images: list[Any]
    targets: list[dict[str, Tensor]]
    batch: Batch
    who: str = "torchvision"
    features: Callable[[nn.Module, list[Any]], Iterable[Tensor]] = torchvision_features

    def step(self, who: str, precision: str) -> Callable[[], object]:
        """A whole training step: forward, backward, SGD; ours set up as `boxwright.train` does by default.

        Args:
            who: "ours", a name of `COMPILED`, or the peer.
            precision: of both.
        """
        ours = who == "ours" or who in COMPILED
        model = (self.ours if ours else self.theirs).train()
        device = self.batch.images.device
        chosen = resolve_precision(precision, device)
        batch = self.batch
        if ours:
            place_model(model, device, chosen.channels_last)
            set_folding(model, Memory().fold)
            batch = place(batch, device, chosen.channels_last)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=ours or None)
        run = torch.compile(model, fullgraph=True, mode=COMPILED[who]) if who in COMPILED else model

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with chosen.autocast(device):
                losses = run(batch) if ours else run(list(self.images), list(self.targets))
            total = [v for k, v in losses.items() if not ours or k.startswith("loss/")]
            torch.stack([value.float() for value in total]).sum().backward()
            optimizer.step()

        return step

    def predict(self, who: str, precision: str) -> Callable[[], object]:
        """Detections of the batch, post-processing included (masks as probabilities within their boxes)."""
        ours = who == "ours"
        model = (self.ours if ours else self.theirs).eval()
        device = self.batch.images.device
        chosen = resolve_precision(precision, device)
        images = self.batch.images
        if ours:
            prepare(model, device, chosen)
            images = place(self.batch, device, chosen.channels_last).images

        def predict() -> object:
            with torch.inference_mode(), chosen.autocast(device):
                if ours:
                    return self.ours.predict(images, self.batch.sizes)
                return model(list(self.images))

        return predict

    def difference(self) -> float:
        """Largest difference of their features, in standard deviations: that they do the same work."""
        self.theirs.eval(), self.ours.eval()
        with torch.inference_mode(), exactly():
            theirs = self.features(self.theirs, self.images)
            ours = self.ours.features(self.batch.images, self.batch.sizes)
            return max(
                float((a.float() - b.float()).abs().max() / b.float().std())
                for a, b in zip(ours, theirs, strict=True)
            )

    def check(self) -> None:
        """Stop where their features differ.

        Raises:
            AssertionError: by more than the order of summation explains.
        """
        difference = self.difference()
        assert difference < 1e-2, f"{self.who}: features differ by {difference:.2g} standard deviations"


def make_pair(name: str, batch: int, height: int, width: int, device: torch.device) -> Pair:
    """Both detectors with random weights, calibrated so that activations keep their scale."""
    torch.manual_seed(0)
    theirs = BUILDERS[name]()
    theirs.transform.resize = lambda image, target=None: (image, target)  # pyright: ignore
    theirs.transform.postprocess = lambda result, shapes, originals: result  # pyright: ignore
    images, targets, ours = make_input(batch, height, width, "mask" in name)
    calibrate(theirs, lambda: theirs(images[:1]))
    find_something(theirs, lambda: theirs(images[:1]))
    model = from_torchvision(theirs)
    shift = 1 if isinstance(model, TwoStageDetector) else 0
    moved = [{k: v.to(device) for k, v in t.items()} for t in targets]
    for target in moved:
        target["labels"] = target["labels"] + shift
    pair = Pair(
        theirs.to(device), model.to(device), [i.to(device) for i in images], moved, to_device(ours, device)
    )  # pyright: ignore
    pair.check()
    return pair


def make_input(
    batch: int, height: int, width: int, masks: bool
) -> tuple[list[Tensor], list[dict[str, Tensor]], Batch]:
    """Smooth random images with eight ellipses each."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, height // 16, width // 16, generator=g)
    pixels = nn.functional.interpolate(coarse, (height, width), mode="bilinear").mul(255).to(torch.uint8)
    side = torch.rand(batch, OBJECTS, 2, generator=g) * 0.35 + 0.05
    start = torch.rand(batch, OBJECTS, 2, generator=g) * (0.99 - side)
    boxes = torch.cat((start, start + side), -1) * torch.tensor([width, height, width, height])
    labels = torch.randint(0, CLASSES, (batch, OBJECTS), generator=g)
    valid = torch.ones(batch, OBJECTS, dtype=torch.bool)
    bitmaps = [torch.stack([_ellipse(box, height, width) for box in image]) for image in boxes]
    targets = [
        {"boxes": b, "labels": n} | ({"masks": m} if masks else {})
        for b, n, m in zip(boxes, labels, bitmaps, strict=True)
    ]
    truth = Targets(boxes, labels, valid, ~valid, pack(bitmaps, OBJECTS) if masks else None)
    sizes = torch.tensor([[height, width]]).repeat(batch, 1)
    return [image / 255 for image in pixels], targets, Batch(pixels, sizes, truth)


def _ellipse(box: Tensor, height: int, width: int) -> Tensor:
    x1, y1, x2, y2 = box
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    return ((((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2) <= 1).to(
        torch.uint8
    )


@torch.no_grad()
def find_something(
    module: nn.Module,
    predict: Callable[[], object],
    spread: Mapping[str, float] = CLASS_LOGITS,
    background: int = 0,
) -> None:
    """Spread a detector's class logits, so that some hundred candidates are left; `predict` runs it.

    Random predictors give all classes nearly one score, below any threshold: post-processing is never done.
    The layers have these names, and a linear one has that column for the background.
    """
    for name, layer in module.named_modules():
        if name not in spread:
            continue
        outputs: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, output, to=outputs: to.append(output.flatten()))
        module.eval()
        predict()
        hook.remove()
        layer.weight.mul_(spread[name] / torch.cat(outputs).std())  # pyright: ignore
        if isinstance(layer, nn.Linear):
            layer.bias[background] += BACKGROUND


@torch.no_grad()
def calibrate(module: nn.Module, predict: Callable[[], object]) -> None:
    """Give the norms of a random network the statistics of an image, as pretrained ones have.

    Without, activations grow from block to block, and boxes and scores become meaningless. `predict` runs it.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        norm.running_mean.copy_(x.mean((0, 2, 3)))  # pyright: ignore
        norm.running_var.copy_(x.var((0, 2, 3)).clamp(min=1e-3))  # pyright: ignore

    norms = [m for m in module.modules() if hasattr(m, "running_var")]  # each toolbox has its frozen one
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    module.eval()
    predict()
    for hook in hooks:
        hook.remove()
