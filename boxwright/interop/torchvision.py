"""torchvision's detectors as ours: the same weights, settings and results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead

from ..errors import CheckpointError
from ..labels import LabelMap
from ..models.assigners import FCOSAssigner
from ..models.coders import DistanceCoder
from ..models.dense_heads import (
    Centreness,
    DenseCriterion,
    DenseHead,
    DensePostprocess,
    PerImage,
    Positives,
    Samples,
)
from ..models.detectors import OneStageDetector, TwoStageDetector
from ..models.layers import ConvNorm
from ..models.losses import BinaryCrossEntropy, CrossEntropy, FocalLoss, GIoULoss, SmoothL1
from ..models.priors import Points
from ..models.roi_heads import (
    BoxHead,
    FourConvOneFC,
    MaskHead,
    RoICriterion,
    RoIExtractor,
    RoIHeads,
    RoIPostprocess,
    TwoFC,
)
from ..models.suppression import GreedyNMS
from ..structures import FeatureSpec
from . import torchvision_parts as parts
from .renaming import LoadReport, Rule, load_renamed

Detector = OneStageDetector | TwoStageDetector

ALL_SIDES = -1.0
"""`min_side` that keeps boxes without area, too: RetinaNet and FCOS of torchvision do not drop them."""


def _background_last(columns: Tensor) -> Tensor:
    """Class scores: torchvision's first column is the background, ours is the last."""
    return torch.cat((columns[1:], columns[:1]))


def _without_background(columns: Tensor) -> Tensor:
    """Masks of each class: torchvision has one of the background, which nothing reads."""
    return columns[1:]


def _codes_without_background(columns: Tensor) -> Tensor:
    """Box codes of each class, four columns each."""
    return columns[4:]


DENSE = (
    Rule(r"head\.classification_head\.cls_logits\.(.+)", r"head.class_predictor.\1"),
    Rule(r"head\.regression_head\.bbox_reg\.(.+)", r"head.box_predictor.\1"),
    Rule(r"head\.regression_head\.bbox_ctrness\.(.+)", r"head.quality_predictor.\1"),
)
RETINANET = (
    Rule(r"head\.classification_head\.conv\.(\d+)\.0\.(.+)", r"head.class_tower.\1.conv.\2"),
    Rule(r"head\.classification_head\.conv\.(\d+)\.1\.(.+)", r"head.class_tower.\1.norm.\2"),
    Rule(r"head\.regression_head\.conv\.(\d+)\.0\.(.+)", r"head.box_tower.\1.conv.\2"),
    Rule(r"head\.regression_head\.conv\.(\d+)\.1\.(.+)", r"head.box_tower.\1.norm.\2"),
)
# FCOS's towers are flat: convolution, norm, ReLU, convolution, ...
FCOS_TOWERS = tuple(
    Rule(rf"head\.{theirs}\.conv\.{3 * i + place}\.(.+)", rf"head.{ours}.{i}.{part}.\1")
    for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower"))
    for place, part in enumerate(("conv", "norm"))
    for i in range(8)  # more than any has
)
RCNN = (
    Rule(r"rpn\.head\.conv\.(\d+)\.0\.(.+)", r"rpn.stem.\1.conv.\2"),
    Rule(r"rpn\.head\.cls_logits\.(.+)", r"rpn.class_predictor.\1"),
    Rule(r"rpn\.head\.bbox_pred\.(.+)", r"rpn.box_predictor.\1"),
    Rule(r"roi_heads\.box_head\.fc6\.(.+)", r"roi.stages.0.trunk.1.\1"),
    Rule(r"roi_heads\.box_head\.fc7\.(.+)", r"roi.stages.0.trunk.3.\1"),
    Rule(r"roi_heads\.box_head\.(\d)\.0\.(.+)", r"roi.stages.0.trunk.\1.conv.\2"),
    Rule(r"roi_heads\.box_head\.(\d)\.1\.(.+)", r"roi.stages.0.trunk.\1.norm.\2"),
    Rule(r"roi_heads\.box_head\.5\.(weight|bias)", r"roi.stages.0.trunk.5.\1"),
    Rule(r"roi_heads\.box_predictor\.cls_score\.(.+)", r"roi.stages.0.class_predictor.\1", _background_last),
    Rule(
        r"roi_heads\.box_predictor\.bbox_pred\.(.+)",
        r"roi.stages.0.box_predictor.\1",
        _codes_without_background,
    ),
    Rule(r"roi_heads\.mask_head\.(\d)\.0\.(.+)", r"roi.mask.convs.\1.conv.\2"),
    Rule(r"roi_heads\.mask_head\.(\d)\.1\.(.+)", r"roi.mask.convs.\1.norm.\2"),
    Rule(r"roi_heads\.mask_predictor\.conv5_mask\.(.+)", r"roi.mask.upsample.\1"),
    Rule(r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.+)", r"roi.mask.predictor.\1", _without_background),
)


def from_torchvision(module: nn.Module) -> Detector:
    """Our detector with the weights and settings of a built torchvision one.

    RetinaNet, FCOS, Faster R-CNN and Mask R-CNN with a feature pyramid can be converted, in all the variants
    that `torchvision.models.detection` builds and with any of their constructors' thresholds. The weights
    are copied; which parameters are trained, and training or evaluation mode, is as in the module.

    Two things are different on purpose. Images are in 0..255 and arrive resized: `min_size` and `max_size`
    belong to the data here. Labels of R-CNNs count from 0 without the background, so they are torchvision's
    minus 1; RetinaNet and FCOS of torchvision keep a column for each label from 0 on, and so do ours.

    Args:
        module: a built detector, with random or pretrained weights.

    Raises:
        CheckpointError: the module is of another kind, or has parts of its own.
    """
    return convert(module)[0]


def convert(module: nn.Module) -> tuple[Detector, LoadReport]:
    """As `from_torchvision`, with the table of the parameters' names."""
    makers: list[tuple[type, Callable[..., Detector], Sequence[Rule]]] = [
        (RetinaNet, _retinanet, DENSE + RETINANET),
        (FCOS, _fcos, DENSE + FCOS_TOWERS),
        (FasterRCNN, _rcnn, RCNN),
    ]
    found = [entry for entry in makers if isinstance(module, entry[0])]
    if not found or isinstance(module, KeypointRCNN):
        raise CheckpointError(
            f"{type(module).__name__} cannot be converted: torchvision's RetinaNet, FCOS, FasterRCNN and "
            "MaskRCNN can"
        )
    _, maker, head = found[0]
    pyramid = parts.pyramid_of(module)
    backbone, body_rule = parts.backbone_of(pyramid)
    detector = maker(module, pyramid, backbone)
    rules = (*parts.PYRAMID, body_rule, *head)
    report = load_renamed(detector, module.state_dict(), rules, f"torchvision's {type(module).__name__}")
    theirs = dict(module.named_parameters())
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(theirs[report.names[name]].requires_grad)
    return detector.to(next(module.parameters()).device).train(module.training), report


def torchvision_label_map(module: Any, weights: Any = None) -> LabelMap:
    """Names of a converted detector's classes.

    Args:
        module: the torchvision detector.
        weights: the entry of torchvision's weights that it was built with, whose "categories" are taken.
            Without it classes are called by their number. Categories named "N/A" (gaps in COCO's ids) get
            their id as well, since names are unique.

    Raises:
        CheckpointError: the number of categories is not that of the module.
    """
    skipped = int(hasattr(module, "roi_heads"))  # the first category has no column of ours in R-CNNs
    if skipped:
        count: int = module.roi_heads.box_predictor.cls_score.out_features
    else:
        count = module.head.classification_head.num_classes
    names = weights.meta["categories"] if weights is not None else [str(i) for i in range(count)]
    if len(names) != count:
        raise CheckpointError(f"the weights name {len(names)} categories, the module has {count}")
    named = [(f"N/A {i}" if name == "N/A" else name, i) for i, name in enumerate(names)][skipped:]
    return LabelMap(tuple(name for name, _ in named), tuple(i for _, i in named))


def _expect(part: object, kind: type, what: str) -> None:
    if type(part) is not kind:
        raise CheckpointError(
            f"{what} of type {type(part).__name__} cannot be converted: it has to be torchvision's own "
            f"{kind.__name__}"
        )


# --- one stage


def _retinanet(module: RetinaNet, pyramid: BackboneWithFPN, backbone: nn.Module) -> OneStageDetector:
    _expect(module.head, RetinaNetHead, "a RetinaNet's head")
    theirs: Any = module.head.classification_head
    boxes: Any = module.head.regression_head
    kinds: dict[str, dict[str, Any]] = {
        "l1": {"code_loss": SmoothL1(0.0)},
        "smooth_l1": {"code_loss": SmoothL1(1.0)},
        "giou": {"box_loss": GIoULoss()},
    }
    if boxes._loss_type not in kinds:
        raise CheckpointError(f"the box loss {boxes._loss_type!r} cannot be converted; {list(kinds)} can")
    criterion = DenseCriterion(
        parts.assigner_of(module.proposal_matcher), FocalLoss(), divisor=PerImage(), **kinds[boxes._loss_type]
    )
    head = partial(
        DenseHead,
        num_classes=theirs.num_classes,
        priors=parts.anchors_of(module.anchor_generator),
        coder=parts.coder_of(module.box_coder),
        criterion=criterion,
        postprocess=_dense_postprocess(module),
        channels=theirs.cls_logits.in_channels,
        tower_convs=len(theirs.conv),
        norm=parts.norm_in(theirs.conv),
    )
    return OneStageDetector(backbone, parts.neck_of(pyramid.fpn), head, parts.normalise_of(module.transform))


def _fcos(module: FCOS, pyramid: BackboneWithFPN, backbone: nn.Module) -> OneStageDetector:
    _expect(module.head, FCOSHead, "an FCOS's head")
    theirs: Any = module.head.classification_head
    generator: Any = module.anchor_generator
    sides = [float(side) for level in generator.sizes for side in level]
    # A level's smallest and largest reach are 4 and 8 of its strides (torchvision's FCOS.compute_loss). A
    # reach of exactly a limit is of no level there; here it is of both, as in the paper.
    limits = (0.0, *(4.0 * side for side in sides[1:]), math.inf)
    head = partial(
        DenseHead,
        num_classes=theirs.num_classes,
        priors=Points(offset=0.0, step_from_canvas=True),
        coder=DistanceCoder(activation=F.relu, in_strides=True),
        criterion=DenseCriterion(
            FCOSAssigner(limits, centre_radius=float(module.center_sampling_radius)),
            FocalLoss(),
            box_loss=GIoULoss(),
            quality=Centreness(),
            divisor=Positives(),
        ),
        postprocess=_dense_postprocess(module, quality_power=0.5, rank_with_quality=True),
        channels=theirs.cls_logits.in_channels,
        tower_convs=len(theirs.conv) // 3,
        norm=parts.norm_in(theirs.conv),
        quality_branch="box",
    )
    detector = OneStageDetector(
        backbone, parts.neck_of(pyramid.fpn), head, parts.normalise_of(module.transform)
    )
    if list(detector.head.strides) != sides or any(b != 2 * a for a, b in pairwise(sides)):
        raise CheckpointError(
            f"FCOS with anchors of {sides} px on strides {detector.head.strides} cannot be converted: they "
            "have to be equal, and double from level to level"
        )
    for tower in (detector.head.class_tower, detector.head.box_tower):
        assert isinstance(tower, nn.Sequential)
        for layer in tower:
            # Ours leave out the bias before a norm; torchvision's have it, and a group norm does not undo it.
            assert isinstance(layer, ConvNorm) and isinstance(layer.conv, nn.Conv2d)  # noqa: PT018
            layer.conv.bias = nn.Parameter(torch.zeros(layer.conv.out_channels))
    return detector


def _dense_postprocess(module: RetinaNet | FCOS, **more: Any) -> DensePostprocess:
    return DensePostprocess(
        score_threshold=module.score_thresh,
        candidates=module.topk_candidates,
        nms=GreedyNMS(module.nms_thresh),
        max_detections=module.detections_per_img,
        min_side=ALL_SIDES,
        **more,
    )


# --- two stages


def _rcnn(module: FasterRCNN, pyramid: BackboneWithFPN, backbone: nn.Module) -> TwoStageDetector:
    neck = parts.neck_of(pyramid.fpn)
    specs = neck(backbone.specs).specs  # pyright: ignore[reportArgumentType]
    names = parts.level_names(pyramid)
    heads: Any = module.roi_heads
    rpn: Any = module.rpn
    regions = rpn._post_nms_top_n["testing"]
    mask = None
    if heads.has_mask():
        mask = _mask(heads, parts.extractor_of(heads.mask_roi_pool, names, specs))
    box = _box(heads, parts.extractor_of(heads.box_roi_pool, names, specs), regions)
    return TwoStageDetector(
        backbone,
        neck,
        _rpn(rpn),
        partial(RoIHeads, stages=[box], mask=mask),
        parts.normalise_of(module.transform),  # pyright: ignore[reportArgumentType]
        _proposals(rpn, "training"),
    )


def _rpn(rpn: Any) -> Callable[[Sequence[FeatureSpec]], DenseHead]:
    _expect(rpn.head, RPNHead, "a proposal network's head")
    return partial(
        DenseHead,
        num_classes=1,
        priors=parts.anchors_of(rpn.anchor_generator),
        coder=parts.coder_of(rpn.box_coder),
        criterion=DenseCriterion(
            parts.assigner_of(rpn.proposal_matcher),
            BinaryCrossEntropy(),
            parts.sampler_of(rpn.fg_bg_sampler),
            code_loss=SmoothL1(1 / 9),
            divisor=Samples(),
            class_agnostic=True,
        ),
        postprocess=_proposals(rpn, "testing"),
        channels=rpn.head.cls_logits.in_channels,
        stem_convs=len(rpn.head.conv),
        tower_convs=0,
        predictor_kernel=1,
        class_prior=None,
    )


def _proposals(rpn: Any, when: str) -> DensePostprocess:
    return DensePostprocess(
        score_threshold=rpn.score_thresh if rpn.score_thresh > 0 else None,
        candidates=rpn._pre_nms_top_n[when],
        nms=GreedyNMS(rpn.nms_thresh),
        nms_groups="level",
        max_detections=rpn._post_nms_top_n[when],
        min_side=rpn.min_size,
    )


def _box(heads: Any, extractor: RoIExtractor, regions: int) -> Callable[..., BoxHead]:
    _expect(heads.box_predictor, FastRCNNPredictor, "a box predictor")
    columns: int = heads.box_predictor.cls_score.out_features
    # Softmax scores sum to 1, so at most so many pairs of a region pass the threshold.
    passing = columns - 1 if heads.score_thresh <= 0 else min(columns - 1, int(1 / heads.score_thresh))
    return partial(
        BoxHead,
        num_classes=columns - 1,
        coder=parts.coder_of(heads.box_coder),
        criterion=RoICriterion(
            parts.assigner_of(heads.proposal_matcher),
            parts.sampler_of(heads.fg_bg_sampler),
            CrossEntropy(),
            code_loss=SmoothL1(1 / 9),
        ),
        postprocess=RoIPostprocess(
            score_threshold=heads.score_thresh,
            nms=GreedyNMS(heads.nms_thresh),
            max_detections=heads.detections_per_img,
            candidates=regions * max(passing, 1),
            min_side=1e-2,
        ),
        extractor=extractor,
        trunk=_trunk(heads.box_head),
    )


def _trunk(head: Any) -> Callable[[int, int], nn.Module]:
    if type(head) is TwoMLPHead:
        return partial(TwoFC, width=head.fc6.out_features)
    convs = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    if type(head) is not FastRCNNConvFCHead or (len(convs), len(linear)) != (4, 1):
        raise CheckpointError(
            f"a box head of type {type(head).__name__} with {len(convs)} convolutions and {len(linear)} "
            "linear layers cannot be converted: TwoMLPHead can, and FastRCNNConvFCHead with 4 and 1"
        )
    return partial(
        FourConvOneFC,
        width=linear[0].out_features,
        conv_width=convs[0].out_channels,
        norm=parts.norm_in(head),
    )


def _mask(heads: Any, extractor: RoIExtractor) -> Callable[..., MaskHead]:
    _expect(heads.mask_head, MaskRCNNHeads, "a mask head")
    _expect(heads.mask_predictor, MaskRCNNPredictor, "a mask predictor")
    return partial(
        MaskHead,
        num_classes=heads.mask_predictor.mask_fcn_logits.out_channels - 1,
        extractor=extractor,
        channels=heads.mask_predictor.conv5_mask.out_channels,
        convs=len(heads.mask_head),
        norm=parts.norm_in(heads.mask_head),
        soft_targets=True,
        aligned_targets=False,
    )
