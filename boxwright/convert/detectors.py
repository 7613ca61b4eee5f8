"""MMDetection's whole models as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiddle import Config

from ..config import ClassAgnostic, clone
from ..errors import ConfigError
from ..models.detectors import Normalise, OneStageDetector, TwoStageDetector
from ..recipes.common import with_tag
from . import dense, regions
from .backbones import backbone, neck
from .settings import Settings

ONE_STAGE = ("RetinaNet", "FCOS", "ATSS", "GFL", "SingleStageDetector", "YOLOV3")
PROPOSALS = ("RPN",)
TWO_STAGE = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "HybridTaskCascade", "TwoStageDetector")


def model_from_mmdetection(model: Mapping[str, Any], images: Mapping[str, Any] | None = None) -> Config[Any]:
    """The description of our detector that an MMDetection configuration of a model amounts to.

    Each part is translated by its type and settings, whatever the method is called; weights are random.

    Args:
        model: the `model` of a resolved configuration (3.x, or 2.x where the two agree).
        images: `img_norm_cfg` of a 2.x configuration, whose model does not say how images are normalised.

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
            "neck": neck(settings.optional("neck")),
            "normalise": normalise,
        }
        train = settings.optional("train_cfg") or Settings({}, "model.train_cfg")
        test = settings.part("test_cfg")
        if settings.kind in ONE_STAGE:
            context = dense.Context(train, test, divisor)
            return Config(OneStageDetector, head=dense.head(settings.part("bbox_head"), context), **common)
        with train, test:
            rpn = dense.proposals(
                settings.part("rpn_head"), dense.Context(train.part("rpn"), test.part("rpn"), divisor)
            )
            if settings.kind in PROPOSALS:
                with_tag(rpn.criterion, "class_agnostic", ClassAgnostic)
                train.ignore("rpn_proposal")
                return Config(OneStageDetector, head=rpn, **common)
            made = dense.Context(Settings({}, ""), train.part("rpn_proposal"), divisor)
            with made.test:
                train_proposals = made.postprocess(clone(rpn.postprocess))
            with test.part("rcnn") as reading:
                roi = regions.heads(settings.part("roi_head"), train.parts("rcnn"), reading)
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
        before.ignore("to_rgb")
    with before:
        before.ignore(
            "pad_mask", "pad_seg", "seg_pad_value", "mask_pad_value", "batch_augments", "boxtype2tensor"
        )
        before.ignore("rgb_to_bgr", "pad_value", "non_blocking")
        rgb = before("bgr_to_rgb", False)
        mean, std = before("mean", None) or (0.0, 0.0, 0.0), before("std", None) or (1.0, 1.0, 1.0)
        divisor = before("pad_size_divisor", 32)
    order = 1 if rgb else -1
    config = Config(
        Normalise,
        mean=tuple(float(v) for v in mean[::order]),
        std=tuple(float(v) for v in std[::order]),
        bgr=not rgb,
    )
    return config, divisor
