"""MMDetection's whole models as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fiddle as fdl
import torch
from fiddle import Config, Partial

from ..config import ClassAgnostic, build, clone
from ..errors import ConfigError
from ..models.dense_heads import DensePostprocess
from ..models.detectors import Normalise, OneStageDetector, TwoStageDetector
from ..recipes.common import with_tag
from . import dense, regions
from .backbones import backbone
from .context import Context
from .necks import neck
from .settings import Settings

ONE_STAGE = ("RetinaNet", "FCOS", "ATSS", "GFL", "SingleStageDetector", "YOLOV3")
PROPOSALS = ("RPN",)
TWO_STAGE = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "HybridTaskCascade", "TwoStageDetector")


def model_from_mmdetection(model: Mapping[str, Any], images: Mapping[str, Any] | None = None) -> Config[Any]:
    """The description of our detector that an MMDetection configuration of a model amounts to.

    Each part is translated by its type and settings, whatever the method is called; weights are random.

    Args:
        model: the `model` of a resolved configuration (3.x, or 2.x where the two agree).
        images: `img_norm_cfg` of a 2.x configuration, whose model does not say how images are normalised;
            it may have their `pad_size_divisor`, too.

    Raises:
        ConfigError: a part, or a setting that would change what is computed, has no counterpart here; the
            message says where it stands and what there is.
    """
    with Settings(model, "model") as settings:
        settings.ignore("pretrained", "mask_iou_head")
        known = (*ONE_STAGE, *PROPOSALS, *TWO_STAGE)
        if settings.kind not in known:
            raise settings.unknown("a detector", known)
        normalise, divisor = _normalise(settings, images)
        common: dict[str, Any] = {
            "backbone": backbone(settings.part("backbone")),
            "neck": neck(settings.optional("neck"), settings.part("backbone")),
            "normalise": normalise,
        }
        strides = _strides(common["backbone"], common["neck"])
        train = settings.optional("train_cfg") or Settings({}, "model.train_cfg")
        test = settings.part("test_cfg")
        if settings.kind in ONE_STAGE:
            context = Context(train, test, divisor, strides)
            return Config(OneStageDetector, head=dense.head(settings.part("bbox_head"), context), **common)
        with train, test:
            context = Context(train.part("rpn"), test.part("rpn"), divisor, strides)
            rpn = dense.proposals(settings.part("rpn_head"), context)
            if settings.kind in PROPOSALS:
                with_tag(rpn.criterion, "class_agnostic", ClassAgnostic)
                train.ignore("rpn_proposal")
                return Config(OneStageDetector, head=rpn, **common)
            made = Context(Settings({}, ""), train.part("rpn_proposal"), divisor, strides)
            everywhere = clone(rpn.postprocess)  # guided anchors are filtered by their place in testing alone
            fdl.update_callable(everywhere, DensePostprocess, drop_invalid_args=True)
            with made.test:
                train_proposals = made.proposals(everywhere)
            with test.part("rcnn") as reading:
                roi = regions.heads(settings.part("roi_head"), train.parts("rcnn"), reading, strides)
            return Config(TwoStageDetector, rpn=rpn, roi=roi, train_proposals=train_proposals, **common)


def _normalise(settings: Settings, images: Mapping[str, Any] | None) -> tuple[Config[Normalise], int]:
    """Mean and deviation in RGB order, and the multiple that images are padded to."""
    before = settings.optional("data_preprocessor")
    if before is None:
        if images is None:
            raise ConfigError(
                "the model has no data_preprocessor: give the img_norm_cfg of the 2.x configuration"
            )
        before = Settings({"bgr_to_rgb": images.get("to_rgb", True), **images}, "img_norm_cfg")
        before.ignore("to_rgb", "type")
    with before:
        before.only("a preprocessor of images", "DetDataPreprocessor", "")
        # Of masks, and of training: what is trained on follows the recipe's schedule, not this one.
        before.ignore("pad_mask", "pad_seg", "seg_pad_value", "mask_pad_value", "batch_augments")
        before.ignore("boxtype2tensor", "non_blocking")
        before.expect("pad_value", 0, 0.0)
        rgb = before("bgr_to_rgb", False) or before("rgb_to_bgr", False)  # both turn the channels round
        before.ignore("rgb_to_bgr")
        mean, std = before("mean", None) or (0.0, 0.0, 0.0), before("std", None) or (1.0, 1.0, 1.0)
        divisor = before("pad_size_divisor", 1)
        if len(mean) != 3 or len(std) != 3:
            raise ConfigError(f"{before.path} has mean {mean} and std {std}; Boxwright has three channels")
    order = 1 if rgb else -1
    config = Config(
        Normalise,
        mean=tuple(float(v) for v in mean[::order]),
        std=tuple(float(v) for v in std[::order]),
        bgr=not rgb,
    )
    return config, divisor


def _strides(backbone: Config[Any], neck: Partial[Any]) -> tuple[int, ...]:
    """Strides of the pyramid's levels, off both parts, built without memory."""
    with torch.device("meta"):
        return tuple(spec.stride for spec in build(neck)(build(backbone).specs).specs)
