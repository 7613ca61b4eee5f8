"""Checkpoints of Detectron2: names, the order of anchors, and what is read off the shapes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import boxwright as bw
from boxwright.config import build
from boxwright.convert import convert_checkpoint, experiment_of_detectron2
from boxwright.errors import CheckpointError, ConfigError
from boxwright.interop import from_detectron2
from boxwright.models.priors import Anchors

# Detectron2's names of our entries, written by hand for these architectures alone.
NAMES = (
    (r"backbone\.conv1\.weight", "BODY.stem.conv1.weight"),
    (r"backbone\.bn1\.(.+)", r"BODY.stem.conv1.norm.\1"),
    (r"neck\.laterals\.(\d)\.conv\.(.+)", "backbone.fpn_lateral{LEVEL}.\\2"),
    (r"neck\.outputs\.(\d)\.conv\.(.+)", "backbone.fpn_output{LEVEL}.\\2"),
    (r"neck\.extras\.0\.conv\.(.+)", r"backbone.top_block.p6.\1"),
    (r"neck\.extras\.1\.conv\.(.+)", r"backbone.top_block.p7.\1"),
    (r"rpn\.stem\.0\.conv\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.class_predictor\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.box_predictor\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi\.stages\.(\d)\.trunk\.1\.(.+)", r"roi_heads.box_head.\1.fc1.\2"),
    (r"roi\.stages\.(\d)\.trunk\.3\.(.+)", r"roi_heads.box_head.\1.fc2.\2"),
    (r"roi\.stages\.(\d)\.class_predictor\.(.+)", r"roi_heads.box_predictor.\1.cls_score.\2"),
    (r"roi\.stages\.(\d)\.box_predictor\.(.+)", r"roi_heads.box_predictor.\1.bbox_pred.\2"),
    (r"roi\.mask\.upsample\.(.+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi\.mask\.predictor\.(.+)", r"roi_heads.mask_head.predictor.\1"),
    (r"head\.class_predictor\.(.+)", r"head.cls_score.\1"),
    (r"head\.box_predictor\.(.+)", r"head.bbox_pred.\1"),
)


def theirs(name: str, body: str, first_level: int, single: bool) -> str:
    name = name.replace("roi.stages.0.trunk.stage.", "roi.stages.0.trunk.layer4.")
    block = re.fullmatch(r"(backbone|roi\.stages\.0\.trunk)\.layer(\d)\.(\d+)\.(.+)", name)
    if block:
        place = body if block[1] == "backbone" else "roi_heads"
        rest = re.sub(r"^conv(\d)\.", r"conv\1.", block[4])
        rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
        rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        return f"{place}.res{int(block[2]) + 1}.{block[3]}.{rest}"
    tower = re.fullmatch(r"head\.(class|box)_tower\.(\d)\.conv\.(.+)", name)
    if tower:
        subnet = "cls_subnet" if tower[1] == "class" else "bbox_subnet"
        return f"head.{subnet}.{2 * int(tower[2])}.{tower[3]}"
    mask = re.fullmatch(r"roi\.mask\.convs\.(\d)\.conv\.(.+)", name)
    if mask:
        return f"roi_heads.mask_head.mask_fcn{int(mask[1]) + 1}.{mask[2]}"
    for pattern, new in NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            if "{LEVEL}" in new:
                new = new.replace("{LEVEL}", str(first_level + int(found[1])))
            made = found.expand(new).replace("BODY", body)
            return (
                made.replace("box_head.0.", "box_head.").replace("box_predictor.0.", "box_predictor.")
                if single
                else made
            )
    raise AssertionError(name)


def by_scale(value: Tensor, priors: Anchors) -> Tensor:
    """Rows of our predictor in Detectron2's order of anchors."""
    rows = value.unflatten(0, (len(priors.ratios), len(priors.scales), -1))
    return torch.stack(
        [rows[r, s] for s in range(len(priors.scales)) for r in range(len(priors.ratios))]
    ).flatten(0, 1)


def their_weights(model: nn.Module, body: str) -> dict[str, np.ndarray]:
    head = getattr(model, "head", None)
    stages = 0 if head is not None else len(model.roi.stages)
    priors = (head or model.rpn).priors
    weights = {}
    for name, value in model.state_dict().items():
        if re.match(r"(head|rpn)\.(class|box)_predictor\.", name):
            value = by_scale(value, priors)
        weights[theirs(name, body, 3 if head is not None else 2, stages == 1)] = value.numpy()
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    return weights


@pytest.mark.parametrize(
    ("recipe", "body"),
    [
        ("retinanet_r50_fpn_1x", "backbone.bottom_up"),
        ("mask_rcnn_r50_fpn_1x", "backbone.bottom_up"),
        ("faster_rcnn_x101_32x4d_fpn_1x", "backbone.bottom_up"),
        ("cascade_rcnn_r50_fpn_1x", "backbone.bottom_up"),
        ("faster_rcnn_r50_c4_1x", "backbone"),
        ("mask_rcnn_r50_c4_1x", "backbone"),
    ],
)
def test_every_weight_finds_its_place_in_the_detector_read_off_the_weights(recipe: str, body: str) -> None:
    torch.manual_seed(0)
    ours = bw.build(bw.recipe(recipe), num_classes=5, pretrained=False)
    for name, value in ours.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(torch.rand(value.shape))
    weights = their_weights(ours, body)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    experiment, count = experiment_of_detectron2(tensors)
    assert count == 5
    model = build(experiment.model)
    from_detectron2({"model": weights}, model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name])


def test_what_the_weights_do_not_say_is_as_in_the_zoo() -> None:
    # LastLevelP6P7 has a ReLU before P7; Matcher takes the best anchors of an object however little they
    # overlap, and leaves them to the object that they overlap most; Base-RetinaNet.yaml has the L1 loss.
    for recipe in ("retinanet_r50_fpn_1x", "faster_rcnn_r50_fpn_1x"):
        ours = bw.build(bw.recipe(recipe), num_classes=2, pretrained=False)
        weights = their_weights(ours, "backbone.bottom_up")
        experiment, _ = experiment_of_detectron2({k: torch.from_numpy(v) for k, v in weights.items()})
        model = experiment.model
        dense = model.head if recipe.startswith("retinanet") else model.rpn
        assert dense.criterion.assigner.min_positive_iou == 0
        assert dense.criterion.assigner.low_quality_keeps_best
        assert dense.criterion.code_loss.beta == 0
        assert model.neck.relu_before_extra == recipe.startswith("retinanet")


def test_a_pickle_of_the_zoo_becomes_a_detector(tmp_path: Path) -> None:
    ours = bw.build(bw.recipe("faster_rcnn_r50_fpn_1x"), num_classes=2, pretrained=False)
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": their_weights(ours, "backbone.bottom_up"), "__author__": "zoo"}))
    done = convert_checkpoint(file, tmp_path / "ours", classes=("cat", "dog"))
    assert done.path == tmp_path / "ours.safetensors"
    assert bw.load(done.path).label_map.names == ("cat", "dog")
    with pytest.raises(CheckpointError, match="has 2 classes, 1 names"):
        convert_checkpoint(file, tmp_path / "ours", classes=("cat",))
    with pytest.raises(ConfigError, match="leave out the configuration"):
        convert_checkpoint(file, tmp_path / "ours", config="x.py")
    file.write_bytes(pickle.dumps({"model": {"backbone.stem.conv1.weight": np.zeros((1,), np.float32)}}))
    with pytest.raises(CheckpointError, match="none of the detectors"):
        convert_checkpoint(file, tmp_path / "ours")
