"""Detectron2's detectors, ours read off their weights, and the same images for both.

The settings are its model zoo's: a ResNet in Caffe's style on images in blue, green, red, frozen norms, two
frozen stages. Masks are left as probabilities inside their boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import detectron2
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from boxwright.config import build
from boxwright.convert import experiment_of_detectron2
from boxwright.interop import from_detectron2
from boxwright.structures import to_device

from .detectors import CLASSES, Pair, calibrate, find_something, make_input
from .peer_losses import EVERY, compare, our_losses

BUILDERS = {
    "retinanet_r50_fpn": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "faster_rcnn_r50_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask_rcnn_r50_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
}

# Its class logits, and the standard deviation that `find_something` gives them.
SPREAD = {"model.head.cls_score": 0.6, "model.roi_heads.box_predictor.cls_score": 1.5}


class Called(nn.Module):
    """A detector of Detectron2, called as `Pair` calls: inputs, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[dict], _: object = None) -> Any:
        """Losses in training, detections of the network's input size otherwise."""
        with EventStorage():
            if self.training:
                return self.model(inputs)
            if hasattr(self.model, "inference"):
                found = self.model.inference(inputs, do_postprocess=False)  # pyright: ignore
            else:
                found = [image["instances"] for image in self.model(inputs)]
        return [{"scores": image.scores, "all": image} for image in found]


def make_pair(name: str, batch: int, height: int, width: int, device: torch.device) -> Pair:
    """Both detectors with random weights, their features and losses compared."""
    torch.manual_seed(0)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    settings = model_zoo.get_config(BUILDERS[name])
    settings.MODEL.DEVICE, settings.MODEL.WEIGHTS = str(device), ""
    theirs = build_model(settings)
    images, targets, ours = make_input(batch, height, width, "mask" in name)
    inputs = [
        {"image": (image * 255).flip(0).to(device), "instances": instances(target, height, width).to(device)}
        for image, target in zip(images, targets, strict=True)
    ]
    called = Called(theirs)
    calibrate(called, lambda: called(inputs[:1]))
    find_something(called, lambda: called(inputs[:1]), SPREAD, background=-1)
    weights = theirs.state_dict()
    experiment, count = experiment_of_detectron2(weights)
    assert count == CLASSES
    model = build(experiment.model)
    from_detectron2(weights, model)
    pair = Pair(
        called,
        model.to(device),
        inputs,
        [],
        to_device(ours, device),
        f"detectron2 {detectron2.__version__}",
        features,
    )  # pyright: ignore
    pair.check()
    compare("Detectron2", their_losses(pair), our_losses(pair.ours, pair.batch))
    return pair


def instances(target: Mapping[str, Tensor], height: int, width: int) -> Instances:
    """The objects of an image as Detectron2 takes them."""
    made = Instances((height, width))
    made.gt_boxes, made.gt_classes = Boxes(target["boxes"]), target["labels"]
    if "masks" in target:
        made.gt_masks = BitMasks(target["masks"])
    return made


def features(called: nn.Module, inputs: list[dict]) -> list[Tensor]:
    """The pyramid's levels."""
    model: Any = called.model
    return list(model.backbone(model.preprocess_image(inputs).tensor).values())


def their_losses(pair: Pair) -> dict[str, float]:
    """Detectron2's, divided as ours are."""
    model: Any = pair.theirs.model
    pair.theirs.train()
    if not hasattr(model, "roi_heads"):
        with EventStorage() as storage, torch.no_grad():
            losses = model(pair.images)
            count = storage.latest()["num_pos_anchors"][0] * len(pair.images)
        # Its divisor is a moving average that starts at 100; ours is this batch's count.
        scale = (0.9 * 100 + 0.1 * max(count, 1)) / max(count, 1)
        model.loss_normalizer = 100
        return {"class": float(losses["loss_cls"]) * scale, "box": float(losses["loss_box_reg"]) * scale}
    rpn, roi = model.proposal_generator, model.roi_heads
    before = rpn.batch_size_per_image, roi.batch_size_per_image
    rpn.batch_size_per_image = roi.batch_size_per_image = EVERY
    with EventStorage() as storage, torch.no_grad():
        losses = model(pair.images)
        said = {name: value for name, (value, _) in storage.latest().items()}
    rpn.batch_size_per_image, roi.batch_size_per_image = before
    samples = said["rpn/num_pos_anchors"] + said["rpn/num_neg_anchors"]  # of an image
    made = {
        "rpn_class": float(losses["loss_rpn_cls"]) * EVERY / samples,
        "rpn_box": float(losses["loss_rpn_loc"]) * EVERY / samples,
        "class": float(losses["loss_cls"]),
        "box": float(losses["loss_box_reg"]),
    }
    return made | ({"mask": float(losses["loss_mask"])} if "loss_mask" in losses else {})
