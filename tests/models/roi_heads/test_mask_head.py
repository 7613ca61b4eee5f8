"""One mask for all classes; objects without a mask."""

from dataclasses import replace

import torch
from roi_parts import CLASSES, SPECS, inputs

from boxwright.models.roi_heads import MaskHead, RoIExtractor
from boxwright.ops.masks import pack, unpack
from boxwright.structures import Targets


def make(class_agnostic: bool) -> MaskHead:
    torch.manual_seed(0)
    extractor = RoIExtractor(size=6, levels=2, finest_scale=16.0)
    return MaskHead(
        SPECS,
        num_classes=CLASSES,
        extractor=extractor,
        channels=8,
        convs=1,
        class_agnostic=class_agnostic,
    )


def test_masks_of_all_classes_are_the_same_where_there_is_one() -> None:
    features, regions, targets = inputs()
    shared, own = make(True), make(False)
    assert shared.predictor.weight.shape[0] == 1
    assert own.predictor.weight.shape[0] == CLASSES
    # As a head of several classes that all have this predictor.
    weights = {name: value.expand_as(own.state_dict()[name]) for name, value in shared.state_dict().items()}
    own.load_state_dict(weights)
    masks = []
    for label in range(CLASSES):
        labels = torch.full_like(regions.labels, label)
        masks.append(shared(features, regions.boxes, labels, regions.valid))
        torch.testing.assert_close(own(features, regions.boxes, labels, regions.valid), masks[-1])
    assert torch.equal(masks[0], masks[1])
    assert masks[0].std() > 0
    gt_index = torch.zeros_like(regions.labels)
    loss = shared.loss(features, regions.boxes, gt_index, regions.valid, targets, (48, 64))["loss/mask"]
    loss.backward()
    assert shared.predictor.weight.grad is not None
    assert shared.predictor.weight.grad.abs().sum() > 0


def test_regions_of_an_object_without_a_mask_are_left_out() -> None:
    features, regions, targets = inputs()
    assert targets.masks is not None
    head = make(False)
    gt_index = torch.tensor([[0, 1, 0, 1, 1, 0, 0], [0] * 7])
    bitmaps = unpack(targets.masks, 48, 64)
    bitmaps[0, 1] = 0
    lacking = replace(targets, masks=pack([bitmaps[0], bitmaps[1, :1]], 2))
    assert lacking.masks is not None
    assert lacking.masks.present.tolist() == [[True, False], [True, False]]

    def loss(positive: torch.Tensor, truth: Targets) -> torch.Tensor:
        return head.loss(features, regions.boxes, gt_index, positive, truth, (48, 64))["loss/mask"]

    of_first = regions.valid & torch.tensor([[True, False, True, False, False, True, True], [True] * 7])
    torch.testing.assert_close(loss(regions.valid, lacking), loss(of_first, targets))
    assert loss(regions.valid, targets) != loss(of_first, targets)
    none = replace(targets, masks=pack([bitmaps[0] * 0, bitmaps[1, :1] * 0], 2))
    assert loss(regions.valid, none) == 0
