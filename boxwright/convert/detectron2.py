"""Detectron2's detectors: read off their weights, with the keys of a configuration or the model zoo's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiddle import Config

from ..assembly import set_num_classes
from ..config import Pretrained, build, set_tagged
from ..data.canvas import Canvas
from ..data.transforms import Resize
from ..errors import CheckpointError, ConfigError
from ..interop.coco_labels import COCO
from ..interop.detectron2 import from_detectron2, weights_of
from ..labels import LabelMap
from ..recipes.experiment import Experiment
from .checkpoint import Conversion, read_checkpoint, write_checkpoint
from .detectron2_detectors import retinanet, two_stage
from .detectron2_keys import Keys, read_keys
from .detectron2_parts import Weights

UNKNOWN = (
    (r"roi_heads\.keypoint_head\..+", "MODEL.KEYPOINT_ON", "keypoints"),
    (r"sem_seg_head\..+", "MODEL.META_ARCHITECTURE", "a semantic branch (PanopticFPN, SemanticSegmentor)"),
    (r"roi_heads\.mask_(?:head\.)?(?:coarse|point)_head\..+", "MODEL.ROI_MASK_HEAD.NAME", "a PointRend head"),
    (r"head\.ctrness\..+", "MODEL.META_ARCHITECTURE", "FCOS's centreness"),
)
"""Names of parts that we do not have, the key that asks for them, and what they are."""


def convert_detectron2(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Write a checkpoint of Detectron2 as one of ours.

    Args:
        source: a `.pkl` of the model zoo or a `.pth` of a training; read without running what it holds.
        out: the `.safetensors` file to write; `boxwright.load` takes it.
        config: the configuration (YAML) that it was trained with. Without one, what the weights do not say
            is as in the zoo; files of other settings need it.
        classes: class names in the order of the labels; by default COCO's for 80 classes, else numbers.

    Raises:
        CheckpointError: the file cannot be read, or is not a detector that we have.
        ConfigError: a part or a key has no counterpart here, or the weights leave it open and the zoo has
            several; the message names the key.
    """
    return detectron2_to_ours(read_checkpoint(source), source, out, config, classes)


def detectron2_to_ours(
    loaded: Mapping[str, Any],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
) -> Conversion:
    """`convert_detectron2` of a file that is read already."""
    weights = weights_of(loaded)
    if not weights:
        raise CheckpointError(f"{source} holds no weights of Detectron2")
    keys = Keys({}, str(source)) if config is None else Keys(read_keys(config), str(config))
    experiment, count = experiment_of_detectron2(weights, keys)
    label_map = COCO if classes is None and count == len(COCO) else LabelMap.numbered(count)
    if classes is not None:
        label_map = LabelMap(tuple(classes))
        if len(label_map) != count:
            raise CheckpointError(f"{source} has {count} classes, {len(label_map)} names are given")
    model = build(experiment.model)
    report = from_detectron2(weights, model)
    path = write_checkpoint(out, model, experiment, label_map)
    return Conversion(path, report, label_map)


def experiment_of_detectron2(weights: Weights, keys: Keys | None = None) -> tuple[Config[Experiment], int]:
    """The recipe for the architecture that these weights are of, and the number of its classes.

    Depth, groups, norms, deformable convolutions, heads and classes are in names and shapes. What is not is
    as `keys` say, and where they are silent as in the model zoo. Settings of training alone are not taken
    over.

    Raises:
        CheckpointError: it is none of RetinaNet, Faster, Mask, Cascade R-CNN.
        ConfigError: a part or a key has no counterpart here, or nothing says it.
    """
    keys = keys or Keys({})
    _refuse(weights)
    keys.expect("MODEL.KEYPOINT_ON", False)
    for name in ("pixel_mean", "pixel_std"):  # early versions kept them
        if name in weights:
            keys.given.setdefault(f"MODEL.{name.upper()}", weights[name].flatten().tolist())
    dense = "head.cls_score.weight" in weights and "head.bbox_pred.weight" in weights
    experiment, count = retinanet(weights, keys) if dense else two_stage(weights, keys)
    short, long = keys("INPUT.MIN_SIZE_TEST", 800), keys("INPUT.MAX_SIZE_TEST", 1333)
    experiment.eval_transforms = [Config(Resize, short=int(short), long=int(long))]
    pyramid = any(name.startswith("backbone.fpn_output") for name in weights)
    experiment.canvas = Config(Canvas, divisor=32 if pyramid else 1)  # one level is not padded there
    keys.finish()
    set_num_classes(experiment.model, count)
    set_tagged(experiment.model, Pretrained, None)
    return experiment, count


def _refuse(weights: Weights) -> None:
    """Raise for weights of parts that we do not have."""
    for pattern, key, what in UNKNOWN:
        found = next((name for name in weights if re.fullmatch(pattern, name)), None)
        if found is not None:
            raise ConfigError(f"{key}: {found} belongs to {what}, which Boxwright does not convert")
    proposals = any(name.startswith("proposal_generator.") for name in weights)
    regions = any(name.startswith("roi_heads.box_predictor.") for name in weights)
    if proposals and not regions:
        raise ConfigError(
            "MODEL.META_ARCHITECTURE: these weights are of a proposal network alone, without roi_heads; "
            "Boxwright converts RetinaNet, Faster, Mask and Cascade R-CNN"
        )
    if regions and not proposals:
        raise ConfigError(
            "MODEL.PROPOSAL_GENERATOR.NAME: these weights are of Fast R-CNN on precomputed proposals; "
            "Boxwright converts detectors with an RPN"
        )
    if not regions and "head.cls_score.weight" not in weights:
        raise CheckpointError(
            "these weights are of none of the detectors that can be converted from Detectron2: RetinaNet on "
            "FPN; Faster and Mask R-CNN on FPN, C4 and DC5; Cascade R-CNN on FPN, with and without masks"
        )
