"""MMDetection's detectors, ours built from their configurations and weights, and the same images for both.

The settings are its own configurations'. A run begins with its data preprocessor, as ours begins with
normalising. Masks are left as probabilities inside their boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import Tensor, nn

from boxwright.config import build
from boxwright.convert import model_from_mmdetection
from boxwright.interop import from_mmdetection
from boxwright.structures import to_device

from .detectors import Pair, calibrate, find_something, make_input
from .peer_losses import EVERY, compare, our_losses

CONFIGS = Path(mmdet.__path__[0]) / ".mim" / "configs"
BUILDERS = {
    "retinanet_r50_fpn": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "fcos_r50_fpn": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "faster_rcnn_r50_fpn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn_r50_fpn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}
# Its names of the losses, and ours.
NAMES = {
    "loss_cls": "class",
    "loss_bbox": "box",
    "loss_centerness": "quality",
    "loss_rpn_cls": "rpn_class",
    "loss_rpn_bbox": "rpn_box",
    "loss_mask": "mask",
}

# Its class logits, and the standard deviation that `find_something` gives them.
SPREAD = {
    "model.bbox_head.retina_cls": 0.6,
    "model.bbox_head.conv_cls": 0.6,
    "model.roi_head.bbox_head.fc_cls": 1.5,
}


class Called(nn.Module):
    """A detector of MMDetection, called as `Pair` calls: images with their objects, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[tuple[Tensor, DetDataSample]], _: object = None) -> Any:
        """Losses in training, detections otherwise."""
        data = self.prepared(inputs, self.training)
        if not self.training:
            found = self.model.predict(**data, rescale=False)  # pyright: ignore
            return [
                {"scores": sample.pred_instances.scores, "all": sample.pred_instances} for sample in found
            ]
        losses = self.model.loss(**data)  # pyright: ignore
        return {name: summed(value) for name, value in losses.items() if "loss" in name}

    def prepared(self, inputs: list[tuple[Tensor, DetDataSample]], training: bool) -> dict[str, Any]:
        """What the network takes: `batch_inputs` and `batch_data_samples`."""
        images, samples = zip(*inputs, strict=True)
        copies = [sample.clone() for sample in samples] if not training else list(samples)
        data = self.model.data_preprocessor({"inputs": list(images), "data_samples": copies}, training)  # pyright: ignore
        return {"batch_inputs": data["inputs"], "batch_data_samples": data["data_samples"]}


def summed(value: Tensor | Iterable[Tensor]) -> Tensor:
    """A loss, which may be one a level."""
    return value.sum() if isinstance(value, Tensor) else torch.stack(list(value)).sum()


def make_pair(name: str, batch: int, height: int, width: int, device: torch.device) -> Pair:
    """Both detectors with random weights, their features and losses compared."""
    torch.manual_seed(0)
    register_all_modules()
    MMLogger.get_current_instance().setLevel("ERROR")
    config = Config.fromfile(str(CONFIGS / BUILDERS[name])).model
    config.backbone.init_cfg = None
    theirs = MODELS.build(config).to(device)
    theirs.init_weights()
    if hasattr(theirs, "roi_head") and theirs.roi_head.with_mask:
        theirs.roi_head.mask_head._predict_by_feat_single = probabilities
    images, targets, ours = make_input(batch, height, width, "mask" in name)
    inputs = [
        ((image * 255).flip(0).to(device), data_sample(target, height, width).to(device))
        for image, target in zip(images, targets, strict=True)
    ]
    called = Called(theirs)
    calibrate(called, lambda: called(inputs[:1]))
    find_something(called, lambda: called(inputs[:1]), SPREAD, background=-1)
    model = build(model_from_mmdetection(config.to_dict()))
    from_mmdetection(theirs.state_dict(), model)
    pair = Pair(
        called,
        model.to(device),
        inputs,
        [],
        to_device(ours, device),
        f"mmdetection {mmdet.__version__}",
        features,
    )
    pair.check()
    compare("MMDetection", their_losses(pair), our_losses(pair.ours, pair.batch))
    return pair


def data_sample(target: Mapping[str, Tensor], height: int, width: int) -> DetDataSample:
    """The objects of an image as MMDetection takes them."""
    about = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    objects = InstanceData(bboxes=target["boxes"], labels=target["labels"])
    if "masks" in target:
        objects.masks = BitmapMasks(target["masks"].numpy(), height, width)
    sample = DetDataSample(metainfo=about)
    sample.gt_instances = objects
    sample.ignored_instances = InstanceData(bboxes=target["boxes"][:0], labels=target["labels"][:0])
    return sample


def probabilities(mask_preds: Tensor, labels: Tensor, **_: object) -> Tensor:
    """Masks inside their boxes, instead of pasting them into the image."""
    return mask_preds[torch.arange(len(labels), device=labels.device), labels].sigmoid()


def features(called: nn.Module, inputs: list[Any]) -> list[Tensor]:
    """The pyramid's levels."""
    prepared = called.prepared(inputs, training=False)  # pyright: ignore
    return list(called.model.extract_feat(prepared["batch_inputs"]))  # pyright: ignore


def their_losses(pair: Pair) -> dict[str, float]:
    """MMDetection's, with samplers that take all."""
    model: Any = pair.theirs.model
    pair.theirs.train()
    samplers = []
    if hasattr(model, "roi_head"):
        samplers = [model.rpn_head.sampler, model.roi_head.bbox_sampler]
    before = [(sampler.num, sampler.neg_pos_ub) for sampler in samplers]
    for sampler in samplers:
        sampler.num, sampler.neg_pos_ub = EVERY, -1
    with torch.no_grad():
        losses = pair.theirs(pair.images)
    for sampler, (number, bound) in zip(samplers, before, strict=True):
        sampler.num, sampler.neg_pos_ub = number, bound
    return {NAMES[key]: float(value) for key, value in losses.items() if key in NAMES}
