"""MMDetection's heads of SSD and YOLOv3 as ours."""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial
from torch import nn

from ..errors import ConfigError
from ..models.assigners import GridAssigner
from ..models.layers import relu
from ..models.losses import BinaryCrossEntropy, GridCodeLoss, SmoothL1
from ..models.priors import SizedAnchors, SSDAnchors
from ..models.samplers import HardNegativeSampler
from ..recipes import ssd, yolov3
from . import parts
from .context import Context
from .layers import LEAKY_RELU, RELU, norm_of
from .settings import Settings

FIRST_SIZES = {(300, 0.15): 7, (300, 0.2): 10, (512, 0.1): 4, (512, 0.15): 7}
"""Size of the first level in percent of the side, by the side and the share that the second level has."""


def ssd_head(settings: Settings, context: Context) -> Partial:
    """`SSDHead`."""
    settings.expect("use_depthwise", False)
    settings.expect("reg_decoded_bbox", False)
    settings.expect("conv_cfg", None)
    settings.expect("act_cfg", None, *RELU)
    context.every_prior()
    with settings.part("anchor_generator") as generator:
        generator.only("an anchor generator here", "SSDAnchorGenerator")
        generator.ignore("use_box_type")
        if generator("scale_major", True):
            raise ConfigError(f"{generator.path}.scale_major is True; SSD's anchors have False")
        priors = _ssd_anchors(generator)
    config = ssd.head(priors)
    config.num_classes, config.tower_convs = settings("num_classes"), settings("stacked_convs", 0)
    config.channels = settings("feat_channels", 256)
    config.norm = norm_of(settings.optional("norm_cfg"))
    config.activation = None if settings("act_cfg", None) is None else relu
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    criterion, train = config.criterion, context.train
    criterion.assigner = parts.max_iou(train.part("assigner"))
    criterion.sampler = Config(HardNegativeSampler, negatives_per_positive=float(train("neg_pos_ratio")))
    criterion.code_loss = Config(SmoothL1, beta=train("smoothl1_beta"))
    criterion.area = context.area(0.5)
    context.postprocess(config.postprocess)
    return config


def _ssd_anchors(generator: Settings) -> Config[SSDAnchors]:
    """Sizes as `SSDAnchorGenerator` works them out from a range of ratios, or as they are given."""
    ratios = tuple(tuple(float(r) for r in level) for level in generator("ratios"))
    strides = generator("strides")
    if not all(isinstance(stride, int | float) for stride in strides):
        raise ConfigError(f"{generator.path}.strides is {strides}; Boxwright has one number a level")
    smallest, largest = generator("min_sizes", None), generator("max_sizes", None)
    side, (low, high) = generator("input_size", 300), generator("basesize_ratio_range", (0.15, 0.9))
    if smallest is not None and largest is not None:
        if list(smallest[1:]) != list(largest[:-1]):
            raise ConfigError(
                f"{generator.path}.max_sizes is {largest}; Boxwright's are the next level's min_sizes"
            )
        sizes = (*smallest, largest[-1])
    elif (side, low) in FIRST_SIZES:
        first, lowest, highest = FIRST_SIZES[side, low], int(low * 100), int(high * 100)
        sizes = ssd.ssd_sizes(side, len(strides), first=first, lowest=lowest, highest=highest)
    else:
        raise ConfigError(
            f"{generator.path}: there are no default boxes for images of {side} from {low:.0%} on; give "
            "min_sizes and max_sizes"
        )
    return Config(
        SSDAnchors,
        sizes=tuple(float(size) for size in sizes),
        ratios=ratios,
        steps=tuple(float(stride) for stride in strides),
    )


def yolo_head(settings: Settings, context: Context) -> Partial:
    """`YOLOV3Head`; levels there go from coarse to fine."""
    settings.expect("conv_cfg", None)
    settings.expect("act_cfg", *LEAKY_RELU)
    settings.expect("one_hot_smoother", 0, 0.0)
    context.every_prior()
    with settings.part("anchor_generator") as generator:
        generator.only("an anchor generator here", "YOLOAnchorGenerator")
        generator.ignore("use_box_type")
        finest_first = list(reversed(generator("strides")))
        parts.check_strides(f"{generator.path}.strides, from the last on,", finest_first, context.strides)
        sizes = tuple(tuple((float(w), float(h)) for w, h in level) for level in generator("base_sizes"))
    finest_first = list(reversed(settings("featmap_strides", (32, 16, 8))))
    parts.check_strides(f"{settings.path}.featmap_strides, from the last on,", finest_first, context.strides)
    widths = tuple(reversed(settings("out_channels", (1024, 512, 256))))
    config = yolov3.head(sizes[::-1], widths)
    config.priors = Config(SizedAnchors, sizes=sizes[::-1])
    coder = settings.optional("bbox_coder")
    if coder is not None:
        with coder:
            coder.only("a box coder here", "YOLOBBoxCoder")
            coder.ignore("use_box_type")
            config.coder.eps = coder("eps", 1e-6)
    config.num_classes = settings("num_classes")
    if "norm_cfg" in settings.values:
        config.norm = norm_of(settings.optional("norm_cfg")) or nn.BatchNorm2d
    _yolo_losses(settings, config.criterion)
    with context.train.part("assigner") as assigner:
        assigner.only("an assigner here", "GridAssigner")
        assigner.expect("min_pos_iou", 0, 0.0)
        assigner.expect("gt_max_assign_all", True)
        parts.plain_overlap(assigner)
        negative = assigner("neg_iou_thr")
        if not isinstance(negative, int | float):
            raise ConfigError(f"{assigner.path}.neg_iou_thr has a lower bound, which Boxwright does not have")
        config.criterion.assigner = Config(
            GridAssigner, ignore_iou=negative, positive_iou=assigner("pos_iou_thr"), shared_cells=True
        )
    confidence = context.test("conf_thr", -1)
    config.postprocess.quality_threshold = confidence if confidence > 0 else None
    context.postprocess(config.postprocess)
    return config


def _yolo_losses(settings: Settings, criterion: Any) -> None:
    """Set the weights of four losses, which are summed."""
    weights = {}
    for name in ("loss_cls", "loss_conf", "loss_xy", "loss_wh"):
        with settings.part(name) as loss:
            loss.only("a loss here", "MSELoss" if name == "loss_wh" else "CrossEntropyLoss")
            if name != "loss_wh" and not loss("use_sigmoid", False):
                raise ConfigError(f"{loss.path}.use_sigmoid is not True; Boxwright has only True here")
            if loss("reduction", "mean") != "sum":
                raise ConfigError(f"{loss.path}.reduction is not 'sum'; YOLOv3's losses are summed here")
            loss.ignore("avg_non_ignore")
            weights[name] = loss("loss_weight", 1.0)
    criterion.class_loss = Config(BinaryCrossEntropy, weight=weights["loss_cls"])
    criterion.quality.weight = weights["loss_conf"]
    criterion.code_loss = Config(
        GridCodeLoss, place_weight=weights["loss_xy"], size_weight=weights["loss_wh"]
    )
