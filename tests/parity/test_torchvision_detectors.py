"""Torchvision's detectors and ours made of them: same features, outputs, detections, losses, gradients."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision_pair import CLASSES, SIZES, Input, Pair, make_input, make_pair, relative

from boxwright.interop.torchvision import RCNN
from boxwright.models.detectors import OneStageDetector, TwoStageDetector

BARE = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
# Sampling that takes every anchor and every proposal, and few enough proposals to be quick.
EXHAUSTIVE = {
    "rpn_batch_size_per_image": 1_000_000,
    "box_batch_size_per_image": 1_000_000,
    "box_positive_fraction": 0.5,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 120,
    "rpn_pre_nms_top_n_test": 150,
    "rpn_post_nms_top_n_test": 100,
}
VARIANTS = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> Pair:
    more = EXHAUSTIVE if "rcnn" in request.param else {}
    if "mask" in request.param:
        more = more | {"box_detections_per_img": 40}
    return make_pair(lambda: getattr(detection, request.param)(**BARE, **more))


@pytest.fixture(params=SIZES, ids=lambda sizes: "x".join(map(str, sizes[0])))
def data(request: pytest.FixtureRequest, pair: Pair) -> Input:
    return make_input(request.param, pair.ours.normalise, pair.label_shift)


@torch.no_grad()
def test_features_and_raw_outputs(pair: Pair, data: Input) -> None:
    theirs, ours = pair.eval().theirs, pair.ours
    images = pair.image_list(data)
    their_features: OrderedDict[str, Tensor] = theirs.backbone(images.tensors)  # pyright: ignore
    features = ours.features(data.batch.images, data.batch.sizes)
    for mine, other in zip(features, their_features.values(), strict=True):
        assert relative(mine, other) < TOLERANCE
    if isinstance(ours, OneStageDetector):
        outputs, other = ours.head(features), theirs.head(list(their_features.values()))  # pyright: ignore
        assert relative(outputs.class_logits, other["cls_logits"]) < TOLERANCE
        codes = outputs.codes
        if outputs.quality_logits is not None:
            assert relative(outputs.quality_logits, other["bbox_ctrness"][..., 0]) < TOLERANCE
            codes = codes.relu()  # torchvision's head gives distances, ours what the coder makes them of
        assert relative(codes, other["bbox_regression"]) < TOLERANCE
    else:
        outputs = ours.rpn(features)
        logits, codes = theirs.rpn.head(list(their_features.values()))  # pyright: ignore
        logits, codes = concat_box_prediction_layers(logits, codes)
        assert relative(outputs.class_logits.flatten(0, 1), logits) < TOLERANCE
        assert relative(outputs.codes.flatten(0, 1), codes) < TOLERANCE
        _compare_regions(pair, ours, features, their_features, images.image_sizes)


def _compare_regions(
    pair: Pair,
    ours: TwoStageDetector,
    features: list[Tensor],
    their_features: OrderedDict[str, Tensor],
    sizes: list[tuple[int, int]],
) -> None:
    """Class logits, box codes and mask logits of given regions of all sizes."""
    heads, stage = pair.theirs.roi_heads, ours.roi.stages[0]  # pyright: ignore
    parts = torch.tensor(((0.05, 0.1, 0.2, 0.3), (0.3, 0.2, 0.65, 0.7), (0.0, 0.04, 0.96, 0.9)))
    regions = torch.stack([parts * torch.tensor([w, h, w, h]) for h, w in sizes])
    logits, codes = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(their_features, list(regions), sizes))
    )
    found = stage(features, regions, torch.ones(regions.shape[:2], dtype=torch.bool))
    assert relative(found.class_logits.flatten(0, 1), logits.roll(-1, 1)) < TOLERANCE
    assert relative(found.codes.flatten(0, 1), codes.unflatten(1, (-1, 4))[:, 1:]) < TOLERANCE
    if ours.roi.mask is not None:
        masks = heads.mask_predictor(
            heads.mask_head(heads.mask_roi_pool(their_features, list(regions), sizes))
        )
        for label in (0, CLASSES - 2):
            labels = torch.full(regions.shape[:2], label)
            found = ours.roi.mask(features, regions, labels, labels >= 0)
            assert relative(found.flatten(0, 1), masks[:, label + 1]) < TOLERANCE


@torch.no_grad()
def test_detections(pair: Pair, data: Input) -> None:
    pair.eval()
    results = pair.theirs(data.copy()[0])
    found = pair.ours.predict(data.batch.images, data.batch.sizes)
    assert len({int(label) for result in results for label in result["labels"]}) > 2, "no diverse detections"
    # Regions smaller than a cell of the finest level pool the same features at one corner, so their scores
    # are equal and the order of suppression is open. At stride 32 that happens.
    may_tie = 4 if min(spec.stride for spec in pair.ours.neck.specs) == 32 else 0  # pyright: ignore
    for i, result in enumerate(results):
        valid = found.valid[i]
        assert int(valid.sum()) == len(result["boxes"]) >= 20
        assert (found.scores[i, valid] - result["scores"]).abs().max() < TOLERANCE
        distance = (found.boxes[i, valid][:, None] - result["boxes"]).abs().amax(-1)
        distance += (found.scores[i, valid][:, None] - result["scores"]).abs()
        distance[found.labels[i, valid][:, None] != result["labels"] - pair.label_shift] = torch.inf
        nearest = distance.argmin(1)
        same = distance.amin(1) < 50 * TOLERANCE  # of boxes in pixels, on canvases of some 200
        assert int((~same).sum()) <= may_tie
        assert len(nearest[same].unique()) == int(same.sum()), "two detections match one of torchvision's"
        if found.masks is not None:
            assert (found.masks[i, valid] - result["masks"][nearest, 0]).abs().max() < TOLERANCE


LOSSES = {
    "classification": "loss/class",
    "bbox_regression": "loss/box",
    "bbox_ctrness": "loss/quality",
    "loss_objectness": "loss/rpn_class",
    "loss_rpn_box_reg": "loss/rpn_box",
    "loss_classifier": "loss/class",
    "loss_box_reg": "loss/box",
    "loss_mask": "loss/mask",
}
CONVERTED = [(re.compile(rule.pattern), rule.convert) for rule in RCNN if rule.convert is not None]


@pytest.mark.parametrize(("learning", "tolerance"), [(False, TOLERANCE), (True, 10 * TOLERANCE)])
def test_losses_and_gradients(pair: Pair, learning: bool, tolerance: float) -> None:
    """With fixed norms closely; norms that learn from two small images magnify rounding a hundredfold."""
    data = make_input(SIZES[0], pair.ours.normalise, pair.label_shift)
    pair.train()
    for module in (*pair.theirs.modules(), *pair.ours.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(learning and module.training)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    expected = pair.theirs(*data.copy())
    sum(expected.values()).backward()
    losses = pair.ours.loss(data.batch)
    assert {k for k in losses if k.startswith("loss/")} == {LOSSES[name] for name in expected}
    assert losses["stat/positives"] > 1
    for name, value in expected.items():
        assert losses[LOSSES[name]].item() == pytest.approx(value.item(), rel=tolerance), name
    sum(v for k, v in losses.items() if k.startswith("loss/")).backward()  # pyright: ignore

    gradients = {name: p.grad for name, p in pair.theirs.named_parameters()}
    size = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    for name, parameter in pair.ours.named_parameters():
        gradient = gradients[pair.names[name]]
        assert (parameter.grad is None) == (gradient is None), name
        if parameter.grad is not None and gradient is not None:
            convert = next((c for p, c in CONVERTED if p.fullmatch(pair.names[name])), lambda g: g)
            difference = (parameter.grad - convert(gradient)).norm()
            # Some gradients are zero but for rounding: of a bias before a norm, for instance.
            assert difference <= tolerance * convert(gradient).norm() + 1e-6 * size, name
