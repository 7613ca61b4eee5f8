"""Checkpoints of Detectron2: names, the order of anchors, and what is read off the shapes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fiddle import Config, Partial
from torch import Tensor, nn

import boxwright as bw
from boxwright.config import build
from boxwright.convert import convert_checkpoint, experiment_of_detectron2
from boxwright.convert.detectron2_keys import Keys, read_keys
from boxwright.errors import CheckpointError, ConfigError
from boxwright.interop import from_detectron2
from boxwright.models.dense_heads import DensePostprocess
from boxwright.models.layers import OffsetDeformConv2d, group_norm
from boxwright.models.priors import Anchors
from boxwright.models.roi_heads import FourConvOneFC, TwoFC
from boxwright.models.suppression import GreedyNMS
from boxwright.recipes import mask_rcnn
from boxwright.recipes.experiment import Experiment

# Detectron2's names of our entries, written by hand for these architectures alone.
NAMES = (
    (r"backbone\.conv1\.weight", "BODY.stem.conv1.weight"),
    (r"backbone\.bn1\.(.+)", r"BODY.stem.conv1.norm.\1"),
    (r"neck\.laterals\.(\d)\.(?:conv\.)?(.+)", "backbone.fpn_lateral{LEVEL}.\\2"),
    (r"neck\.outputs\.(\d)\.(?:conv\.)?(.+)", "backbone.fpn_output{LEVEL}.\\2"),
    (r"neck\.extras\.0\.conv\.(.+)", r"backbone.top_block.p6.\1"),
    (r"neck\.extras\.1\.conv\.(.+)", r"backbone.top_block.p7.\1"),
    (r"rpn\.stem\.0\.conv\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.class_predictor\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.box_predictor\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"rpn\.stem\.(\d)\.conv\.(.+)", r"proposal_generator.rpn_head.conv.conv\1.\2"),
    (r"roi\.stages\.(\d)\.trunk\.5\.(.+)", r"roi_heads.box_head.\1.fc1.\2"),
    (r"roi\.stages\.(\d)\.trunk\.1\.(.+)", r"roi_heads.box_head.\1.fc1.\2"),
    (r"roi\.stages\.(\d)\.trunk\.3\.(.+)", r"roi_heads.box_head.\1.fc2.\2"),
    (r"roi\.stages\.(\d)\.class_predictor\.(.+)", r"roi_heads.box_predictor.\1.cls_score.\2"),
    (r"roi\.stages\.(\d)\.box_predictor\.(.+)", r"roi_heads.box_predictor.\1.bbox_pred.\2"),
    (r"roi\.mask\.upsample\.(.+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi\.mask\.predictor\.(.+)", r"roi_heads.mask_head.predictor.\1"),
    (r"head\.class_predictor\.(.+)", r"head.cls_score.\1"),
    (r"head\.box_predictor\.(.+)", r"head.bbox_pred.\1"),
)


def theirs(name: str, body: str, first_level: int, single: bool, stem_convs: int = 1) -> str:
    name = name.replace("roi.stages.0.trunk.stage.", "roi.stages.0.trunk.layer4.")
    block = re.fullmatch(r"(backbone|roi\.stages\.0\.trunk)\.layer(\d)\.(\d+)\.(.+)", name)
    if block:
        place = body if block[1] == "backbone" else "roi_heads"
        rest = re.sub(r"^conv(\d)\.", r"conv\1.", block[4])
        rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
        rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        rest = rest.replace("conv2.conv_offset.", "conv2_offset.")
        return f"{place}.res{int(block[2]) + 1}.{block[3]}.{rest}"
    tower = re.fullmatch(r"head\.(class|box)_tower\.(\d)\.conv\.(.+)", name)
    if tower:
        subnet = "cls_subnet" if tower[1] == "class" else "bbox_subnet"
        return f"head.{subnet}.{2 * int(tower[2])}.{tower[3]}"
    mask = re.fullmatch(r"roi\.mask\.convs\.(\d)\.(?:conv\.)?(.+)", name)
    if mask:
        return f"roi_heads.mask_head.mask_fcn{int(mask[1]) + 1}.{mask[2]}"
    conv = re.fullmatch(r"roi\.stages\.0\.trunk\.([0-3])\.(?:conv|(norm))\.(.+)", name)
    if conv:
        return f"roi_heads.box_head.conv{int(conv[1]) + 1}.{'norm.' if conv[2] else ''}{conv[3]}"
    for pattern, new in NAMES if stem_convs == 1 else [row for row in NAMES if "stem\\.0" not in row[0]]:
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
    stem = 1 if head is not None else len(model.rpn.stem)
    priors = (head or model.rpn).priors
    weights = {}
    for name, value in model.state_dict().items():
        if re.match(r"(head|rpn)\.(class|box)_predictor\.", name):
            value = by_scale(value, priors)
        weights[theirs(name, body, 3 if head is not None else 2, stages == 1, stem)] = value.numpy()
    kept = "anchor_generator.cell_anchors.0"
    stride = (head or model.rpn).strides[0]
    anchors = by_scale(priors.base(0, stride), priors).numpy()
    weights[kept if head is not None else f"proposal_generator.{kept}"] = anchors
    return weights


def cascade_with_masks() -> Config[Experiment]:
    recipe = bw.recipe("cascade_mask_rcnn_r50_fpn_1x")
    recipe.model.roi.mask = mask_rcnn.mask_head()
    return recipe


def dilated() -> Config[Experiment]:
    recipe = bw.recipe("faster_rcnn_r50_caffe_dc5_1x")
    recipe.model.roi.stages[0].trunk = Partial(TwoFC, width=8)
    recipe.model.roi.mask = mask_rcnn.mask_head(levels=1)
    return recipe


def deformable() -> Config[Experiment]:
    recipe = bw.recipe("mask_rcnn_r50_fpn_1x")
    layer = Partial(OffsetDeformConv2d, deform_groups=2)
    recipe.model.backbone.conv3x3 = [None, None, layer, layer]
    recipe.model.rpn.stem_convs = 2
    recipe.model.roi.mask.class_agnostic = True
    recipe.model.neck.norm = recipe.model.roi.mask.norm = group_norm
    recipe.model.roi.stages[0].trunk = Partial(FourConvOneFC, width=8, conv_width=32, norm=group_norm)
    return recipe


@pytest.mark.parametrize(
    ("recipe", "body"),
    [
        ("retinanet_r50_fpn_1x", "backbone.bottom_up"),
        ("faster_rcnn_x101_32x4d_fpn_1x", "backbone.bottom_up"),
        (cascade_with_masks, "backbone.bottom_up"),
        (deformable, "backbone.bottom_up"),
        ("mask_rcnn_r50_c4_1x", "backbone"),
        (dilated, "backbone"),
    ],
)
def test_every_weight_finds_its_place_in_the_detector_read_off_the_weights(recipe: Any, body: str) -> None:
    torch.manual_seed(0)
    described = bw.recipe(recipe) if isinstance(recipe, str) else recipe()
    ours = bw.build(described, num_classes=5, pretrained=False)
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


def test_a_pickle_of_the_zoo_becomes_a_detector(tmp_path: Path, zoo: dict[str, Tensor]) -> None:
    file, keys = tmp_path / "model_final.pkl", tmp_path / "config.yaml"
    weights = {name: value.numpy() for name, value in zoo.items()}
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}))
    keys.write_text(
        "MODEL: {RPN: {NMS_THRESH: 0.6, POST_NMS_TOPK_TEST: 20}}\nTEST: {DETECTIONS_PER_IMAGE: 7}\n"
    )
    done = convert_checkpoint(file, tmp_path / "ours", config=keys, classes=("cat", "dog", "owl"))
    assert done.path == tmp_path / "ours.safetensors"
    detector = bw.load(done.path, precision="fp32")
    assert detector.label_map.names == ("cat", "dog", "owl")
    proposals = detector.model.get_submodule("rpn").postprocess
    assert isinstance(proposals, DensePostprocess)
    assert (proposals.nms, proposals.max_detections) == (GreedyNMS(0.6), 20)
    detector.transforms = ()  # as it is, not at 800 pixels
    assert len(detector(np.zeros((64, 64, 3), np.uint8)).boxes) <= 7
    with pytest.raises(CheckpointError, match="has 3 classes, 1 names"):
        convert_checkpoint(file, tmp_path / "ours", classes=("cat",))
    with pytest.raises(ConfigError, match="leave out the recipe"):
        convert_checkpoint(file, tmp_path / "ours", recipe=bw.recipe("faster_rcnn_r50_fpn_1x"))
    file.write_bytes(pickle.dumps({"model": {"backbone.stem.conv1.weight": np.zeros((1,), np.float32)}}))
    with pytest.raises(CheckpointError, match="none of the detectors"):
        convert_checkpoint(file, tmp_path / "ours")


@pytest.fixture(scope="module")
def zoo() -> dict[str, Tensor]:
    """Weights of a Mask R-CNN, of which only the shapes matter here."""
    ours = bw.build(bw.recipe("mask_rcnn_r50_fpn_1x"), num_classes=3, pretrained=False)
    return {
        name: torch.from_numpy(value) for name, value in their_weights(ours, "backbone.bottom_up").items()
    }


def test_what_the_weights_do_not_say_is_in_the_keys(zoo: dict[str, Tensor]) -> None:
    del_anchors = {name: value for name, value in zoo.items() if "cell_anchors" not in name}
    given = {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": 640,
        "MODEL.PIXEL_MEAN": [1, 2, 3],
        "MODEL.PIXEL_STD": [4, 5, 6],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [64], [128], [256], [512]],
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.3,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (5.0, 5.0, 4.0, 4.0),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "SOLVER.BASE_LR": 1.0,
    }
    experiment, _ = experiment_of_detectron2(del_anchors, Keys(given))
    model, box = experiment.model, experiment.model.roi.stages[0]
    assert (model.normalise.bgr, model.normalise.mean, model.normalise.std) == (False, (1, 2, 3), (4, 5, 6))
    assert (model.backbone.style, model.backbone.frozen_stages) == ("pytorch", 0)
    assert model.backbone.frozen_stem
    assert model.rpn.priors.sizes == ((16,), (64,), (128,), (256,), (512,))
    assert model.rpn.postprocess.max_detections == 50
    assert box.postprocess.score_threshold == 0.3
    assert box.postprocess.max_detections == 20
    assert box.coder.stds == (0.2, 0.2, 0.25, 0.25)
    assert not box.extractor.aligned
    assert model.roi.mask.extractor.size == 7
    assert experiment.eval_transforms[0].short == 640


def test_early_checkpoints_say_more(zoo: dict[str, Tensor]) -> None:
    kept = {
        "pixel_mean": torch.tensor([3.0, 2.0, 1.0])[:, None, None],
        "pixel_std": torch.full((3, 1, 1), 7.0),
    }
    experiment, _ = experiment_of_detectron2(zoo | kept)
    assert experiment.model.normalise.mean == (1, 2, 3)
    assert experiment.model.normalise.std == (7, 7, 7)
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    with pytest.raises(ConfigError, match=r"trained with other anchors than MODEL\.ANCHOR_GENERATOR\.SIZES"):
        experiment_of_detectron2(zoo | {name: zoo[name] * 2})


def test_lvis_detectors_of_the_zoo_find_more(zoo: dict[str, Tensor]) -> None:
    name = "roi_heads.box_predictor"
    columns = {
        f"{name}.cls_score.weight": torch.zeros(1204, 1),
        f"{name}.bbox_pred.weight": torch.zeros(4812, 1),
    }
    experiment, _ = experiment_of_detectron2(zoo | columns)
    post = experiment.model.roi.stages[0].postprocess
    assert (post.score_threshold, post.max_detections) == (1e-4, 300)


@pytest.mark.parametrize(
    ("added", "given", "words"),
    [
        ({"roi_heads.keypoint_head.conv_fcn1.weight": 4}, {}, r"MODEL\.KEYPOINT_ON.*keypoints"),
        ({"sem_seg_head.predictor.weight": 4}, {}, r"MODEL\.META_ARCHITECTURE.*PanopticFPN"),
        ({"roi_heads.box_head.fc3.weight": 2}, {}, r"MODEL\.ROI_BOX_HEAD\.NUM_FC=3"),
        ({}, {"MODEL.KEYPOINT_ON": True}, r"MODEL\.KEYPOINT_ON is True"),
        ({}, {"MODEL.FPN.FUSE_TYPE": "avg"}, r"MODEL\.FPN\.FUSE_TYPE is 'avg'.*only 'sum'"),
        ({}, {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool"}, r"ROI_BOX_HEAD\.POOLER_TYPE is 'ROIPool'"),
        ({}, {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}, r"USE_SIGMOID_CE is True"),
        ({}, {"MODEL.RESNETS.NORM": "LN"}, r"MODEL\.RESNETS\.NORM is 'LN'; Boxwright has FrozenBN"),
        (
            {},
            {"MODEL.VOVNET.CONV_BODY": "V-39"},
            r"without a counterpart here: MODEL\.VOVNET\.CONV_BODY='V-39'",
        ),
        ({}, {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 2.0]]}, r"3 anchors at a place.*ASPECT_RATIOS"),
    ],
)
def test_what_has_no_counterpart_is_named_by_its_key(
    zoo: dict[str, Tensor], added: dict[str, int], given: dict[str, Any], words: str
) -> None:
    weights = zoo | {name: torch.zeros((4,) * dimensions) for name, dimensions in added.items()}
    with pytest.raises(ConfigError, match=words):
        experiment_of_detectron2(weights, Keys(given))


def test_parts_of_detectors_are_refused_by_their_key(zoo: dict[str, Tensor]) -> None:
    proposals = {name: value for name, value in zoo.items() if not name.startswith("roi_heads.")}
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE.*proposal network alone"):
        experiment_of_detectron2(proposals)
    regions = {name: value for name, value in zoo.items() if not name.startswith("proposal_generator.")}
    with pytest.raises(ConfigError, match=r"MODEL\.PROPOSAL_GENERATOR\.NAME.*Fast R-CNN"):
        experiment_of_detectron2(regions)
    pooled = {name: value for name, value in zoo.items() if "res4.3." not in name}
    with pytest.raises(ConfigError, match=r"MODEL\.RESNETS\.DEPTH.*res4 has 5 blocks"):
        experiment_of_detectron2(pooled)
    shifted = {name.replace("fpn_lateral2", "fpn_lateral6"): value for name, value in zoo.items()}
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.IN_FEATURES"):
        experiment_of_detectron2(shifted)


def test_what_the_zoo_has_several_of_has_to_be_given(zoo: dict[str, Tensor]) -> None:
    # Of group norm there are detectors trained with and without division by the deviation; of trained batch
    # norms, ones with the stride on the first and on the second convolution, too.
    grouped = {name: value for name, value in zoo.items() if "running_" not in name}
    with pytest.raises(ConfigError, match=r"does not say MODEL\.PIXEL_STD.*--config"):
        experiment_of_detectron2(grouped)
    experiment, _ = experiment_of_detectron2(grouped, Keys({"MODEL.PIXEL_STD": [1.0] * 3}))
    assert experiment.model.backbone.norm is group_norm
    assert experiment.model.backbone.style == "pytorch"
    norm = {f"backbone.fpn_output2.norm.{entry}": torch.ones(256) for entry in ("weight", "running_mean")}
    with pytest.raises(ConfigError, match=r"does not say MODEL\.RESNETS\.STRIDE_IN_1X1"):
        experiment_of_detectron2(zoo | norm)


def test_yaml_with_a_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: {RPN: {NMS_THRESH: 0.6, MIN_SIZE: 1}, MASK_ON: true}\n")
    child = tmp_path / "child.yaml"
    child.write_text('_BASE_: base.yaml\nMODEL:\n  RPN: {MIN_SIZE: 2}\n  X: "(1, 2)"\n')
    found = {"MODEL.RPN.NMS_THRESH": 0.6, "MODEL.RPN.MIN_SIZE": 2, "MODEL.MASK_ON": True, "MODEL.X": (1, 2)}
    assert read_keys(child) == found
    child.write_text('MODEL: {X: !!python/object/apply:os.system ["false"]}\n')
    with pytest.raises(ConfigError, match="no plain YAML"):
        read_keys(child)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none.yaml")
    child.write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no keys"):
        read_keys(child)
