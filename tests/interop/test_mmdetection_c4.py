"""MMDetection's names where a stage of the backbone stands in the RoI head, and what no checkpoint has."""

import pytest
import torch
from fiddle import Config, Partial

from boxwright.config import Pretrained, build, set_tagged
from boxwright.errors import CheckpointError
from boxwright.interop import from_mmdetection
from boxwright.models.backbones import ResNet
from boxwright.models.roi_heads import MaskHead
from boxwright.recipes import c4, recipe

NAMES = {
    "roi.stages.0.trunk.stage.": "roi_head.shared_head.layer4.",
    "roi.stages.0.class_predictor.": "roi_head.bbox_head.fc_cls.",
    "roi.stages.0.box_predictor.": "roi_head.bbox_head.fc_reg.",
    "roi.mask.upsample.": "roi_head.mask_head.upsample.",
    "roi.mask.predictor.": "roi_head.mask_head.conv_logits.",
    "rpn.stem.0.conv.": "rpn_head.rpn_conv.",
    "rpn.class_predictor.": "rpn_head.rpn_cls.",
    "rpn.box_predictor.": "rpn_head.rpn_reg.",
}


def test_the_shared_head_is_the_box_heads_trunk():
    description = c4.c4(18)
    set_tagged(description, Pretrained, None)
    description.roi.mask = Partial(MaskHead, num_classes=80, convs=0)
    description.roi.share_trunk = True
    model = build(description)
    assert isinstance(model.roi.mask, MaskHead)  # pyright: ignore
    state = {}
    for name, value in model.state_dict().items():
        ours = next((prefix for prefix in NAMES if name.startswith(prefix)), "")
        state[NAMES.get(ours, "") + name.removeprefix(ours)] = torch.full_like(value, 3)
    assert "roi_head.shared_head.layer4.0.bn1.running_mean" in state
    report = from_mmdetection({"state_dict": state}, model)
    assert set(report.names) == set(model.state_dict())
    assert all((value == 3).all() for value in model.state_dict().values())
    del state["roi_head.shared_head.layer4.1.conv2.weight"]
    with pytest.raises(CheckpointError, match=r"roi\.stages\.0\.trunk\.stage\.1\.conv2\.weight"):
        from_mmdetection(state, model)


def test_numbers_that_follow_the_training_are_left_as_they_are():
    description = recipe("dynamic_rcnn_mnv2_320").model
    set_tagged(description, Pretrained, None)
    description.backbone = Config(ResNet, 18, out_stages=(2, 3, 4))
    model = build(description)
    names = {
        "roi.stages.0.trunk.1.": "roi_head.bbox_head.shared_fcs.0.",
        "roi.stages.0.trunk.3.": "roi_head.bbox_head.shared_fcs.1.",
        "neck.laterals.": "neck.lateral_convs.",
        "neck.outputs.": "neck.fpn_convs.",
        **{ours: theirs for ours, theirs in NAMES.items() if "trunk" not in ours},
    }
    own = {name for name in model.state_dict() if ".state." in name}
    assert own == {
        f"roi.stages.0.state.{slot}.{entry}"
        for slot in ("assigner.threshold", "code_loss.beta")
        for entry in ("value", "history", "steps")
    }
    state = {}
    for name, value in model.state_dict().items():
        ours = next((prefix for prefix in names if name.startswith(prefix)), "")
        if name not in own:
            state[names.get(ours, "") + name.removeprefix(ours)] = value.clone()
    report = from_mmdetection(state, model)
    assert set(report.names) == set(model.state_dict()) - own
    assert model.roi.stages[0].state["assigner"].threshold.value == 0.5  # pyright: ignore
