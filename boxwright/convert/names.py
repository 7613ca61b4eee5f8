"""Names of MMDetection's configurations as our recipes, read word by word.

A name says method, backbone, what was changed, schedule and data set, as in
`mask-rcnn_x101-32x4d_fpn_gn-ws-all_2x_coco`. Each word is a change of the method's recipe, so combinations
need no table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from fiddle import Config, Partial

from ..assembly import set_num_classes
from ..errors import ConfigError
from ..models.assigners import FCOSAssigner
from ..models.coders import DistanceCoder
from ..models.detectors import Normalise
from ..models.layers import FrozenBatchNorm2d, ModulatedDeformConv2d, OffsetDeformConv2d, biased
from ..models.losses import BoundedIoULoss, CIoULoss, GIoULoss, IoULoss, SmoothL1
from ..models.samplers import OHEMSampler
from ..models.suppression import GreedyNMS, SoftNMS
from ..recipes import common, dcn, gcnet, group_norm, hrnet
from ..recipes import recipe as recipe_named
from ..recipes.experiment import Experiment

Recipe = Config[Experiment]
Change = Callable[[Recipe], Any]

METHODS = {
    "cascade_mask_rcnn": "cascade_mask_rcnn_r50_fpn_1x",
    "cascade_rcnn": "cascade_rcnn_r50_fpn_1x",
    "htc_without_semantic": "htc_without_semantic_r50_fpn_1x",
    "htc": "htc_r50_fpn_1x",
    "dynamic_rcnn": "dynamic_rcnn_r50_fpn_1x",
    "faster_rcnn": "faster_rcnn_r50_fpn_1x",
    "mask_rcnn": "mask_rcnn_r50_fpn_1x",
    "ga_retinanet": "ga_retinanet_r50_fpn_1x",
    "ga_rpn": "ga_rpn_r50_fpn_1x",
    "ga_faster_rcnn": "ga_faster_rcnn_r50_fpn_1x",
    "ga_faster": "ga_faster_rcnn_r50_fpn_1x",
    "retinanet": "retinanet_r50_fpn_1x",
    "rpn": "rpn_r50_fpn_1x",
    "fcos": "fcos_r50_fpn_1x",
    "atss": "atss_r50_fpn_1x",
    "gfl": "gfl_r50_fpn_1x",
    "ssd300": "ssd300",
    "ssd512": "ssd512",
    "yolov3_d53_8xb8_320": "yolov3_d53_320",
    "yolov3_d53_8xb8_ms_416": "yolov3_d53_416",
    "yolov3_d53_8xb8_ms_608": "yolov3_d53_608",
    "yolov3_d53_8xb8_amp_ms_608": "yolov3_d53_608",
    "yolov3_d53_320": "yolov3_d53_320",
    "yolov3_d53_mstrain_416": "yolov3_d53_416",
    "yolov3_d53_mstrain_608": "yolov3_d53_608",
    "yolov3_d53_fp16_mstrain_608": "yolov3_d53_608",
}
"""What a name begins with, and the recipe that the rest of it changes."""

CAFFE_IN_RGB = {"faster_rcnn": ("r101_caffe_fpn_ms_3x", "r101_caffe_fpn_mstrain_3x")}
"""Networks in Caffe's style that were trained, as published, on images as torchvision normalises them."""

NOTHING = (
    r"coco|fpn|1x|90k|300k|wandb|person|car|bicycle|tnr_pre|pre|"
    r"(?:amp|fp16)|(?:ms|mstrain|poly|lsj)|(?:400|480|640)|(?:800|960|1400)|\d+xb\d+|\d+x\d+|200e|273e|120e|400e|all|torchvision"
)
"""Words that change how a model is trained on what, not what it computes."""


def recipe_of_mmdetection(name: str) -> Config[Experiment]:
    """Our recipe for a configuration of MMDetection, by its name.

    Args:
        name: with or without folder and suffix, in the spelling of 2.x or 3.x.

    Raises:
        ConfigError: the method is not here, or a word of the name is not known.
    """
    words = re.sub(r"[-.]", "_", name.lower().rsplit("/", 1)[-1].removesuffix(".py"))
    method = next(
        (m for m in sorted(METHODS, key=len, reverse=True) if f"{words}_".startswith(f"{m}_")), None
    )
    if method is None:
        raise ConfigError(f"{name}: no method of this name; there are {', '.join(sorted(METHODS))}")
    rest = words.removeprefix(method).strip("_")
    caffe = "caffe" in rest and not rest.startswith(CAFFE_IN_RGB.get(method, ("-",)))
    single = re.search(r"(?:^|_)(c4(?!_c5)|dc5)(?:_|$)", rest)
    if single:
        style = "caffe_" if caffe or single[1] == "dc5" else ""
        detector = "faster_rcnn" if method == "rpn" else method
        recipe = recipe_named(f"{detector}_r50_{style}{single[1]}_1x")
        recipe = _proposals_alone(recipe) if method == "rpn" else recipe
        rest = re.sub(r"caffe|c4|dc5", "", rest)
    else:
        recipe = recipe_named(METHODS[method])
        if method == "fcos" and not caffe:
            _torchvision_network(recipe)
    while rest := rest.strip("_"):
        for pattern, change in WORDS:
            if found := re.match(rf"(?:{pattern})(?:_|$)", rest):
                change(recipe, *found.groups()) if found.groups() else change(recipe)
                rest = rest[found.end() :]
                break
        else:
            raise ConfigError(f"{name}: the word at {rest!r} is not known")
    if "caffe" in words and not caffe:
        del recipe.model.normalise
    return recipe


def _proposals_alone(recipe: Recipe) -> Recipe:
    """The proposal network of a two-stage recipe as a detector of its own."""
    two_stage, alone = recipe.model, recipe_named(METHODS["rpn"])
    alone.model.head = two_stage.rpn
    alone.model.head.criterion.class_agnostic = True
    alone.model.head.postprocess.candidates, alone.model.head.postprocess.max_detections = 12000, 2000
    alone.model.backbone, alone.model.neck = two_stage.backbone, two_stage.neck
    if "normalise" in two_stage.__arguments__:
        alone.model.normalise = two_stage.normalise
    return alone


def _nothing(recipe: Recipe) -> None:
    """A word without a meaning for the model."""


def _depth(recipe: Recipe, depth: str) -> None:
    recipe.model.backbone.depth = int(depth)


def _resnext(recipe: Recipe, depth: str, groups: str, width: str) -> None:
    common.resnext(recipe, groups=int(groups), depth=int(depth), width=int(width))
    if width == "8":  # Facebook's weights, for images in blue, green, red
        _bgr(recipe, (58.395, 57.12, 57.375))
        recipe.model.backbone.norm = FrozenBatchNorm2d


def _bgr(recipe: Recipe, std: tuple[float, float, float]) -> None:
    recipe.model.normalise = Config(Normalise, mean=(123.675, 116.28, 103.53), std=std, bgr=True)


def _caffe(recipe: Recipe) -> None:
    recipe.model.backbone.style, recipe.model.backbone.norm = "caffe", FrozenBatchNorm2d
    if "normalise" not in recipe.model.__arguments__:
        _bgr(recipe, (1.0, 1.0, 1.0))


def _torchvision_network(recipe: Recipe) -> None:
    """FCOS on the network that other methods have; our recipe is the published one, in Caffe's style."""
    recipe.model.backbone = common.resnet(50)
    del recipe.model.normalise


def _high_resolution(recipe: Recipe, width: str) -> None:
    """HRNet; one-stage detectors look at images in blue, green, red."""
    hrnet.high_resolution(recipe, int(width))
    if "head" in recipe.model.__arguments__:
        _bgr(recipe, (58.395, 57.12, 57.375))


def _deform(layer: type[OffsetDeformConv2d], recipe: Recipe, groups: str | None = None) -> None:
    dcn.deformable(recipe, layer, int(groups or 1))


def _deform_from(recipe: Recipe, first: str) -> None:
    dcn.deformable(recipe, OffsetDeformConv2d, stages=range(int(first) - 1, 5))


def _centre_sampling(recipe: Recipe) -> None:
    recipe.model.head.criterion.assigner = Config(FCOSAssigner, centre_radius=1.5)


def _improved_fcos(recipe: Recipe) -> None:
    """FCOS with the authors' later changes: distances in strides, centreness beside the boxes, GIoU."""
    _centre_sampling(recipe)
    head = recipe.model.head
    head.coder, head.quality_branch = Config(DistanceCoder, activation=F.relu, in_strides=True), "box"
    head.criterion.box_loss, head.conv = Config(GIoULoss), biased
    head.postprocess.nms = Config(GreedyNMS, iou=0.6)
    if "normalise" in recipe.model.__arguments__:
        _bgr(recipe, (1.0, 1.0, 1.0))


def _deformable_fcos(recipe: Recipe) -> None:
    dcn.deformable(recipe, ModulatedDeformConv2d)
    recipe.model.head.last_conv = Partial(biased, conv=ModulatedDeformConv2d)


def _first_version(recipe: Recipe) -> None:
    """Mask R-CNN as it was first published: smooth L1, and RoIAlign without the half pixel's shift."""
    recipe.model.rpn.criterion.code_loss = Config(SmoothL1, beta=1 / 9)
    for part in (*recipe.model.roi.stages, recipe.model.roi.mask):
        part.extractor.aligned, part.extractor.sampling_ratio = False, 2
    for stage in recipe.model.roi.stages:
        stage.criterion.code_loss = Config(SmoothL1)


def _box_loss(loss: type, recipe: Recipe, weight: float = 10.0) -> None:
    """`reg_decoded_bbox` with a loss of boxes, as in the component study."""
    places = [recipe.model.head] if "head" in recipe.model.__arguments__ else recipe.model.roi.stages
    for place in places:
        place.criterion.code_loss, place.criterion.box_loss = None, Config(loss, weight=weight)


def _epochs(recipe: Recipe, times: str) -> None:
    recipe.epochs = 12 * int(times)
    recipe.schedule.milestones = {2: (16, 22), 3: (28, 34)}[int(times)]


def _long(epochs: int, recipe: Recipe) -> None:
    recipe.epochs, recipe.schedule.milestones = epochs, (epochs - 4, epochs - 1)


def _ohem(recipe: Recipe) -> None:
    for stage in recipe.model.roi.stages:
        sampler = stage.criterion.sampler
        stage.criterion.sampler = Config(
            OHEMSampler, number=sampler.number, positive_share=sampler.positive_share
        )


def _soft_nms(recipe: Recipe) -> None:
    for stage in recipe.model.roi.stages:
        stage.postprocess.nms = Config(SoftNMS, iou=0.5)


def _group_norm(recipe: Recipe) -> None:
    """With Detectron's networks, for images in blue, green, red."""
    group_norm.norms_everywhere(recipe)
    _bgr(recipe, (1.0, 1.0, 1.0))


def _group_norm_of_others(recipe: Recipe) -> None:
    group_norm.norms_everywhere(recipe)


def _group_norm_ws(recipe: Recipe) -> None:
    group_norm.standardised(group_norm.norms_everywhere(recipe))


def _context(recipe: Recipe, share: str) -> None:
    gcnet.with_context(recipe, 1 / int(share))


WORDS: tuple[tuple[str, Change | Callable[..., Any]], ...] = (
    (r"r(18|34|50|101|152)", _depth),
    (r"x(50|101)_(\d+)x(\d+)d", _resnext),
    (r"hrnetv2p_w(\d+)", _high_resolution),
    (r"syncbn", gcnet.synchronised),
    (r"caffe", _caffe),
    (r"mdconv_c3_c5(?:_group(\d))?", partial(_deform, ModulatedDeformConv2d)),
    (r"group(\d)_mdconv_c3_c5", partial(_deform, ModulatedDeformConv2d)),
    (r"mdconv_group(\d)_c3_c5", partial(_deform, ModulatedDeformConv2d)),
    (r"dconv_c([345])_c5", _deform_from),
    (r"dcn", _deformable_fcos),
    (r"center_normbbox_centeronreg_giou", _improved_fcos),
    (r"center", _centre_sampling),
    (r"gcb_r(\d+)_c3_c5", _context),
    (r"r(\d+)_gcb_c3_c5", _context),
    (r"gn_ws_all", _group_norm_ws),
    (r"contrib_fpn_gn_all|gn_all_contrib", _group_norm_of_others),
    (r"gn_all", _group_norm),
    (r"gn_head", _nothing),  # FCOS: the head has it anyway
    (r"soft_nms", _soft_nms),
    (r"ohem", _ohem),
    (r"bounded_iou", partial(_box_loss, BoundedIoULoss)),
    (r"giou", partial(_box_loss, GIoULoss)),
    (r"ciou", partial(_box_loss, CIoULoss, weight=12.0)),
    (r"iou", partial(_box_loss, IoULoss)),
    (r"([23])x", _epochs),
    (r"20e|20_23_24e", partial(_long, 20)),
    (r"28e", partial(_long, 28)),
    (r"coco_person_bicycle_car", partial(set_num_classes, count=3)),
    (r"coco_person", partial(set_num_classes, count=1)),
    (r"v1", _first_version),
    (NOTHING, _nothing),
)
"""Each word with its change of the recipe."""
