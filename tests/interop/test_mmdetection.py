"""MMDetection's names of parts that the recorded configurations do not have, and misfits."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from boxwright.config import NumClasses, Pretrained, build, set_tagged
from boxwright.errors import CheckpointError
from boxwright.interop import from_mmdetection
from boxwright.interop.mmdetection import rules_for
from boxwright.interop.renaming import load_renamed
from boxwright.models.layers import group_norm
from boxwright.models.roi_heads import FourConvOneFC
from boxwright.recipes import recipe


def mask_rcnn(**changes: object) -> nn.Module:
    config = recipe("mask_rcnn_r50_fpn_1x").model
    set_tagged(config, Pretrained, None)
    config.backbone.depth = 18
    for path, value in changes.items():
        part, _, name = path.rpartition("__")
        place = config
        for step in part.split("__") if part else ():
            place = place[int(step)] if step.isdigit() else getattr(place, step)
        setattr(place, name, value)
    return build(config)


def theirs(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights under MMDetection's names, for the parts that differ most."""
    names = {
        "rpn.stem.0.conv": "rpn_head.rpn_conv",
        "rpn.class_predictor": "rpn_head.rpn_cls",
        "rpn.box_predictor": "rpn_head.rpn_reg",
        "roi.stages.0.class_predictor": "roi_head.bbox_head.fc_cls",
        "roi.stages.0.box_predictor": "roi_head.bbox_head.fc_reg",
        "roi.stages.0.trunk.5": "roi_head.bbox_head.shared_fcs.0",
        "roi.mask.upsample": "roi_head.mask_head.upsample",
        "roi.mask.predictor": "roi_head.mask_head.conv_logits",
        "neck.laterals": "neck.lateral_convs",
        "neck.outputs": "neck.fpn_convs",
        "roi.mask.convs": "roi_head.mask_head.convs",
        "roi.stages.0.trunk": "roi_head.bbox_head.shared_convs",
    }
    state = {}
    for name, value in model.state_dict().items():
        ours = next((prefix for prefix in names if name.startswith(f"{prefix}.")), None)
        if ours is not None:
            name = names[ours] + name[len(ours) :].replace(".norm.", ".gn.")
        elif name.startswith("backbone."):
            name = name.replace("bn", "gn")
        state[name] = torch.randn_like(value) if value.is_floating_point() else value
    return state


def test_group_norms_and_convolutions_in_the_box_head() -> None:
    norm = group_norm
    model = mask_rcnn(
        backbone__norm=norm,
        neck__norm=norm,
        roi__stages__0__trunk=partial(FourConvOneFC, norm=norm),
        roi__mask__norm=norm,
    )
    state = theirs(model)
    report = from_mmdetection(state | {"data_preprocessor.mean": torch.zeros(3)}, model)
    assert report.dropped == ("data_preprocessor.mean",)
    filled = model.state_dict()
    assert set(report.names) == set(filled)
    for ours, name in report.names.items():
        torch.testing.assert_close(filled[ours], state[name])
    # A cascade of one stage has a list all the same.
    in_list = {name.replace(".bbox_head.", ".bbox_head.0."): value for name, value in state.items()}
    assert set(from_mmdetection(in_list, model).names) == set(filled)


def test_distributions_of_gfl() -> None:
    config = recipe("gfl_mnv2_320").model
    set_tagged(config, Pretrained, None)
    model = build(config)
    prefixes = {
        "neck.laterals": "neck.lateral_convs",
        "neck.outputs": "neck.fpn_convs",
        "neck.extras.0": "neck.fpn_convs.3",
        "head.class_tower": "bbox_head.cls_convs",
        "head.box_tower": "bbox_head.reg_convs",
        "head.class_predictor": "bbox_head.gfl_cls",
        "head.box_predictor": "bbox_head.gfl_reg",
        "head.scales": "bbox_head.scales",
    }
    state = {}
    for name, value in model.state_dict().items():
        ours = next((prefix for prefix in prefixes if name.startswith(f"{prefix}.")), None)
        if ours is not None:
            name = prefixes[ours] + name[len(ours) :].replace(".norm.", ".gn.")
        state[name] = torch.randn_like(value) if value.is_floating_point() else value
    assert state["bbox_head.gfl_reg.weight"].shape[0] == 4 * 17
    # The values that a distribution is over are kept in a checkpoint, but are no weights.
    report = from_mmdetection(state | {"bbox_head.integral.project": torch.arange(17.0)}, model)
    assert report.dropped == ("bbox_head.integral.project",)
    filled = model.state_dict()
    assert set(report.names) == set(filled)
    for name, theirs_name in report.names.items():
        torch.testing.assert_close(filled[name], state[theirs_name])

    head_of_8 = {k: v[: 4 * 8] if "gfl_reg" in k else v for k, v in state.items()}
    with pytest.raises(CheckpointError, match=r"the shape differs of bbox_head\.gfl_reg\.weight"):
        from_mmdetection(head_of_8, model)


def test_misfits() -> None:
    model = mask_rcnn()
    with pytest.raises(CheckpointError, match=r"no rule knows bbox_head\.unheard_of\.weight"):
        load_renamed(model, {"bbox_head.unheard_of.weight": torch.ones(1)}, rules_for(model))
    with pytest.raises(CheckpointError, match=r"source does not have backbone\.conv1\.weight"):
        from_mmdetection({"state_dict": {}}, model)


@pytest.mark.parametrize("version", ["3.x", "2.13"])
def test_ssd_before_and_after_its_neck_was_made(version: str) -> None:
    config = recipe("ssd300").model
    set_tagged(config, Pretrained, None)
    set_tagged(config, NumClasses, 2)
    config.backbone.depth = 11
    model, state = build(config), {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "neck" and version == "2.13":
            found = re.fullmatch(r"extras\.(\d)\.(\d)\.conv\.(.+)", rest)
            extra = found and f"backbone.extra.{2 * int(found[1]) + int(found[2])}.{found[3]}"
            name = extra or f"backbone.{rest}"
        elif part == "neck":
            name = name.replace("extras", "extra_layers")
        elif part == "head":
            number = "" if version == "2.13" else r".0"
            name = re.sub(r"head\.class_predictors\.(\d)", rf"bbox_head.cls_convs.\1{number}", name)
            name = re.sub(r"head\.box_predictors\.(\d)", rf"bbox_head.reg_convs.\1{number}", name)
        state[name] = torch.randn_like(value)
    from_mmdetection(state, model)
    extra = "backbone.extra.3.bias" if version == "2.13" else "neck.extra_layers.1.1.conv.bias"
    assert torch.equal(model.neck.extras[1][1].conv.bias, state[extra])
    scale = "backbone.l2_norm.weight" if version == "2.13" else "neck.l2_norm.weight"
    assert torch.equal(model.neck.l2_norm.weight, state[scale])
