"""What of a torchvision detector's settings is carried over, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection, mobilenet_v2
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import FrozenBatchNorm2d as TheirFrozenBatchNorm2d
from torchvision.ops import MultiScaleRoIAlign

from boxwright.errors import CheckpointError
from boxwright.interop import from_torchvision, torchvision_label_map
from boxwright.interop.torchvision_parts import TorchvisionBody
from boxwright.models.backbones.resnet import ResNet
from boxwright.models.detectors import Normalise, TwoStageDetector
from boxwright.models.layers import FrozenBatchNorm2d
from boxwright.models.suppression import GreedyNMS

BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}


def small(**settings: Any) -> FasterRCNN:
    """Faster R-CNN on a ResNet-18."""
    body = settings.pop("body", None) or resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return FasterRCNN(body, 4, **settings)


def test_settings_are_carried_over() -> None:
    module = small(
        rpn_pre_nms_top_n_train=70,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=40,
        rpn_nms_thresh=0.6,
        rpn_fg_iou_thresh=0.65,
        rpn_bg_iou_thresh=0.25,
        rpn_batch_size_per_image=128,
        rpn_positive_fraction=0.4,
        rpn_score_thresh=0.1,
        box_score_thresh=0.3,
        box_nms_thresh=0.45,
        box_detections_per_img=7,
        box_fg_iou_thresh=0.55,
        box_bg_iou_thresh=0.35,
        box_batch_size_per_image=64,
        box_positive_fraction=0.2,
        bbox_reg_weights=(5.0, 5.0, 2.5, 2.5),
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.1, 0.2, 0.4],
    ).eval()
    ours = from_torchvision(module)
    assert isinstance(ours, TwoStageDetector)
    assert not ours.training
    train, test = ours.train_proposals, ours.rpn.postprocess
    assert (train.candidates, train.max_detections, train.nms) == (70, 50, GreedyNMS(0.6))
    assert (test.candidates, test.max_detections, test.score_threshold) == (60, 40, 0.1)
    criterion = ours.rpn.criterion
    assert (criterion.assigner.positive_iou, criterion.assigner.negative_iou) == (0.65, 0.25)  # pyright: ignore
    assert (criterion.sampler.number, criterion.sampler.positive_share) == (128, 0.4)  # pyright: ignore
    stage: Any = ours.roi.stages[0]
    assert (stage.postprocess.score_threshold, stage.postprocess.nms) == (0.3, GreedyNMS(0.45))
    assert stage.postprocess.max_detections == 7
    assert stage.postprocess.candidates == 40 * 3
    assert (stage.criterion.assigner.positive_iou, stage.criterion.assigner.negative_iou) == (0.55, 0.35)
    assert (stage.criterion.sampler.number, stage.criterion.sampler.positive_share) == (64, 0.2)
    assert stage.coder.stds == (0.2, 0.2, 0.4, 0.4)
    assert stage.num_classes == 3
    assert ours.normalise.mean.flatten().tolist() == pytest.approx([127.5, 102.0, 76.5])
    assert ours.normalise.std.flatten().tolist() == pytest.approx([25.5, 51.0, 102.0])


def test_images_are_normalised_alike() -> None:
    module = small()
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [50, 70]])
    images = [image[:, :h, :w].float() / 255 for image, (h, w) in zip(pixels, sizes.tolist(), strict=True)]
    module.transform.resize = lambda image, target: (image, target)  # pyright: ignore
    theirs = module.transform(images)[0].tensors
    ours: Normalise = from_torchvision(module).normalise
    torch.testing.assert_close(ours(pixels, sizes), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("trainable", [0, 3, 5])
def test_frozen_norms_and_layers_stay_frozen(trainable: int) -> None:
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=trainable)
    for layer in body.modules():
        if isinstance(layer, TheirFrozenBatchNorm2d):
            layer.eps = 0.0  # as in the oldest of torchvision's weights
            layer.running_var.uniform_(0.5, 2)
    module = small(body=body).eval()
    ours = from_torchvision(module)
    norms = [layer for layer in ours.backbone.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert len(norms) == 20
    assert {norm.eps for norm in norms} == {0.0}
    frozen = {n for n, p in module.backbone.body.named_parameters() if not p.requires_grad}  # pyright: ignore
    assert {n for n, p in ours.backbone.named_parameters() if not p.requires_grad} == frozen
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    theirs = module.backbone(ours.normalise(images, sizes))
    for mine, other in zip(ours.features(images, sizes), theirs.values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_weights_are_copies() -> None:
    module = small()
    ours = from_torchvision(module)
    before = ours.backbone.conv1.weight.clone()  # pyright: ignore
    with torch.no_grad():
        module.backbone.body["conv1"].weight.zero_()  # pyright: ignore
    torch.testing.assert_close(ours.backbone.conv1.weight, before)  # pyright: ignore


def test_bodies() -> None:
    wide = resnet_fpn_backbone(backbone_name="resnext50_32x4d", weights=None, returned_layers=[2, 3])
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    anchors = AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0),) * 3)
    resnext = from_torchvision(small(body=wide, box_roi_pool=pool, rpn_anchor_generator=anchors))
    assert isinstance(resnext, TwoStageDetector)
    assert isinstance(resnext.backbone, ResNet)
    assert (resnext.backbone.depth, resnext.backbone.groups, resnext.backbone.width_per_group) == (50, 32, 4)
    assert [spec.stride for spec in resnext.backbone.specs] == [8, 16]
    stage: Any = resnext.roi.stages[0]
    assert (stage.extractor.levels, stage.extractor.finest_scale) == (2, 112.0)

    mobile = from_torchvision(detection.fasterrcnn_mobilenet_v3_large_320_fpn(**BARE, num_classes=3).train())
    assert isinstance(mobile, TwoStageDetector)
    assert mobile.training
    assert isinstance(mobile.backbone, TorchvisionBody)
    assert mobile.backbone.body.training
    assert [spec.stride for spec in mobile.backbone.specs] == [32, 32]
    stage = mobile.roi.stages[0]
    assert stage.extractor.levels == 1  # both have the same stride, and torchvision then takes the first


def test_label_maps() -> None:
    module = small()
    assert torchvision_label_map(module).names == ("1", "2", "3")
    assert torchvision_label_map(module).source_ids == (1, 2, 3)
    retinanet = detection.retinanet_resnet50_fpn(**BARE, num_classes=2)
    assert torchvision_label_map(retinanet).source_ids == (0, 1)
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    coco = torchvision_label_map(detection.fasterrcnn_resnet50_fpn(**BARE), weights)
    assert len(coco) == 90
    assert coco.names[:2] == ("person", "bicycle")
    assert coco.names[11] == "N/A 12"
    assert coco.from_source(90) == coco.index("toothbrush") == 89
    with pytest.raises(CheckpointError, match="91 categories, the module has 4"):
        torchvision_label_map(module, weights)


def plain_retinanet() -> nn.Module:
    body = mobilenet_v2(weights=None).features
    body.out_channels = 1280  # pyright: ignore
    return RetinaNet(body, 3, anchor_generator=AnchorGenerator(((32, 64),), ((1.0,),)))


def other_loss() -> nn.Module:
    module = detection.retinanet_resnet50_fpn(**BARE)
    module.head.regression_head._loss_type = "ciou"
    return module


REFUSED = {
    "SSD cannot be converted": lambda: detection.ssd300_vgg16(**BARE),
    "KeypointRCNN cannot be converted": lambda: detection.keypointrcnn_resnet50_fpn(**BARE),
    "a feature pyramid": plain_retinanet,
    "box loss 'ciou'": other_loss,
    "2 convolutions": lambda: small(box_head=FastRCNNConvFCHead((256, 7, 7), [256, 256], [1024])),
    "other ratios": lambda: small(
        rpn_anchor_generator=AnchorGenerator(((32,),) * 5, ((1.0,), (2.0,), (1.0,), (1.0,), (1.0,)))
    ),
    "use the finest": lambda: small(box_roi_pool=MultiScaleRoIAlign(["1", "2"], 7, 2)),
    "without a pyramid": lambda: small(
        body=mobilenet_backbone(backbone_name="mobilenet_v2", weights=None, fpn=False),
        rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
    ),
}


@pytest.mark.parametrize("message", [m for m in REFUSED if m != "without a pyramid"])
def test_what_cannot_be_converted_is_refused(message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_torchvision(REFUSED[message]())


def test_a_backbone_without_pyramid_is_refused() -> None:
    with pytest.raises(CheckpointError, match="only those with a feature pyramid"):
        from_torchvision(REFUSED["without a pyramid"]())
