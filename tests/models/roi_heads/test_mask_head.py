"""One mask for all classes."""

import torch
from roi_parts import CLASSES, SPECS, inputs

from boxwright.models.roi_heads import MaskHead, RoIExtractor


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
