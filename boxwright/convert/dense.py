"""MMDetection's dense heads as ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fiddle import Config, Partial

from ..errors import ConfigError
from ..models.assigners import ApproxMaxIoUAssigner, FCOSAssigner, GridAssigner, RegionAssigner
from ..models.coders import DistanceCoder, ShapeCoder
from ..models.dense_heads import DenseCriterion, DenseHead, DensePostprocess, Guidance, Positives, Samples
from ..models.layers import relu
from ..models.losses import BinaryCrossEntropy, GridCodeLoss, SmoothL1
from ..models.priors import Anchors, SizedAnchors, SSDAnchors, TrainableArea
from ..models.samplers import HardNegativeSampler
from ..recipes import atss as atss_recipe
from ..recipes import fcos, gfl, guided_anchoring, retinanet, rpn, ssd, yolov3
from . import parts
from .settings import Settings


@dataclass(frozen=True)
class Context:
    """What a head is told besides its own settings.

    Args:
        train: its `train_cfg`.
        test: its `test_cfg`.
        divisor: multiple that images are padded to, px.
    """

    train: Settings
    test: Settings
    divisor: int

    def area(self, offset: float = 0.0) -> Config[TrainableArea]:
        """Which priors are trained."""
        border = self.train("allowed_border", -1)
        return Config(
            TrainableArea,
            divisor=self.divisor,
            allowed_border=None if border < 0 else float(border),
            offset=offset,
        )

    def sampler(self) -> Config:
        """The sampler of the training settings."""
        return parts.sampler(self.train.optional("sampler"))

    def postprocess(self, config: Config[DensePostprocess]) -> Config[DensePostprocess]:
        """Set what the test settings say."""
        test = self.test
        test.ignore("mask_thr_binary", "max_num", "nms_post", "nms_across_levels", "nms_thr")
        config.candidates = test("nms_pre", 1000)
        config.min_side = float(max(test("min_bbox_size", 0), 0))
        config.max_detections = test("max_per_img", 100)
        config.nms = parts.suppression(test.part("nms"))
        if "score_thr" in test.values:
            config.score_threshold = test("score_thr")
        return config


def head(settings: Settings, context: Context) -> Partial:
    """The head of a one-stage detector."""
    with settings, context.train, context.test:
        context.train.ignore("pos_weight", "debug")
        settings.ignore("in_channels", "train_cfg", "test_cfg")
        if settings.kind not in HEADS:
            raise settings.unknown("a dense head", HEADS)
        return HEADS[settings.kind](settings, context)


def layers(settings: Settings, config: Partial, norm: str = "norm_cfg") -> Partial:
    """Set classes, widths and norms that most heads have."""
    settings.expect("conv_cfg", None)
    config.num_classes = settings("num_classes")
    config.channels = settings("feat_channels", 256)
    config.tower_convs = settings("stacked_convs", 4)
    config.norm = parts.norm_of(settings.optional(norm))
    return config


def losses(settings: Settings, criterion: Config[DenseCriterion], decoded: bool) -> None:
    """Set the losses of classes and boxes."""
    criterion.class_loss = parts.class_loss(settings.part("loss_cls"))
    criterion.code_loss, criterion.box_loss = None, None
    for slot, loss in parts.box_losses(settings.part("loss_bbox"), decoded).items():
        setattr(criterion, slot, loss)


def retina(settings: Settings, context: Context) -> Partial:
    """`RetinaHead`."""
    config = layers(settings, retinanet.head())
    config.priors = parts.anchors(settings.part("anchor_generator"))
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    losses(settings, config.criterion, settings("reg_decoded_bbox", False))
    config.criterion.assigner = parts.max_iou(context.train.part("assigner"))
    config.criterion.sampler = context.sampler()
    config.criterion.divisor = Config(_divisor(context))
    config.criterion.area = context.area(config.priors.offset)
    context.postprocess(config.postprocess)
    return config


def _divisor(context: Context) -> type:
    """Losses of sampled priors are divided by their number, others by that of the positives."""
    random = context.train("sampler", None) and context.train("sampler")["type"] != "PseudoSampler"
    return Samples if random else Positives


def proposals(settings: Settings, context: Context) -> Partial:
    """`RPNHead`."""
    if settings.kind == "GARPNHead":
        with settings, context.train, context.test:
            context.train.ignore("pos_weight", "debug")
            settings.ignore("in_channels", "num_classes")
            return guided_rpn(settings, context)
    with settings, context.train, context.test:
        context.train.ignore("pos_weight", "debug")
        settings.ignore("in_channels", "num_classes")
        if settings.kind != "RPNHead":
            raise settings.unknown("a proposal head", {"RPNHead": 0, "GARPNHead": 0})
        config = rpn.rpn_head()
        config.channels, config.stem_convs = settings("feat_channels", 256), settings("num_convs", 1)
        config.priors = parts.anchors(settings.part("anchor_generator"))
        config.coder = parts.delta_coder(settings.part("bbox_coder"))
        losses(settings, config.criterion, settings("reg_decoded_bbox", False))
        config.criterion.assigner = parts.max_iou(context.train.part("assigner"))
        config.criterion.sampler = context.sampler()
        config.criterion.area = context.area()
        context.postprocess(config.postprocess)
        return config


def fcos_head(settings: Settings, context: Context) -> Partial:
    """`FCOSHead`."""
    settings.ignore("strides", "conv_bias", "dcn_on_last_conv", "bbox_coder")
    settings.expect("dcn_on_last_conv", False)
    context.train.ignore("assigner", "allowed_border")
    config = layers(settings, fcos.head())
    if "norm_cfg" not in settings.values:
        config.norm = parts.group_norm
    ranges = settings("regress_ranges", ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)))
    radius = settings("center_sample_radius", 1.5)
    in_strides = settings("norm_on_bbox", False)
    config.coder = Config(
        DistanceCoder, activation=F.relu if in_strides else torch.exp, in_strides=in_strides
    )
    config.quality_branch = "box" if settings("centerness_on_reg", False) else "class"
    losses(settings, config.criterion, decoded=True)
    config.criterion.assigner = Config(
        FCOSAssigner,
        limits=(0.0, *(math.inf if last >= 1e8 else float(last) for _, last in ranges)),
        centre_radius=radius if settings("center_sampling", False) else None,
    )
    _centreness(settings, config)
    context.postprocess(config.postprocess)
    return config


def _centreness(settings: Settings, config: Partial) -> None:
    loss = settings.optional("loss_centerness")
    if loss is not None:
        config.criterion.quality.weight = parts.class_loss(loss).weight


def atss_head(settings: Settings, context: Context) -> Partial:
    """`ATSSHead`."""
    config = layers(settings, atss_recipe.head())
    if "norm_cfg" not in settings.values:
        config.norm = parts.group_norm
    config.predictor_kernel = settings("pred_kernel_size", 3)
    settings.expect("reg_decoded_bbox", True)
    config.priors = parts.anchors(settings.part("anchor_generator"))
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    losses(settings, config.criterion, decoded=True)
    config.criterion.assigner = parts.atss(context.train.part("assigner"))
    config.criterion.area = context.area(config.priors.offset)
    _centreness(settings, config)
    context.postprocess(config.postprocess)
    return config


def gfl_head(settings: Settings, context: Context) -> Partial:
    """`GFLHead`."""
    config = layers(settings, gfl.head())
    if "norm_cfg" not in settings.values:
        config.norm = parts.group_norm
    settings.ignore("bbox_coder")
    config.priors = parts.anchors(settings.part("anchor_generator"))
    config.coder.last = settings("reg_max", 16)
    distribution = settings.part("loss_dfl")
    losses(settings, config.criterion, decoded=True)
    config.criterion.code_loss = gfl.head().criterion.code_loss
    with distribution:
        config.criterion.code_loss.weight = distribution("loss_weight", 1.0)
    config.criterion.assigner = parts.atss(context.train.part("assigner"))
    config.criterion.area = context.area(config.priors.offset)
    context.postprocess(config.postprocess)
    return config


def ssd_head(settings: Settings, context: Context) -> Partial:
    """`SSDHead`."""
    settings.expect("use_depthwise", False)
    settings.expect("reg_decoded_bbox", False)
    settings.expect("act_cfg", None, {"type": "ReLU"})
    context.train.ignore("sampler")
    with settings.part("anchor_generator") as generator:
        if generator.kind != "SSDAnchorGenerator":
            raise generator.unknown("an anchor generator here", {"SSDAnchorGenerator": SSDAnchors})
        generator.expect("scale_major", False)
        priors = _ssd_anchors(generator)
    config = ssd.head(priors)
    config.num_classes, config.tower_convs = settings("num_classes"), settings("stacked_convs", 0)
    config.channels = settings("feat_channels", 256)
    config.norm = parts.norm_of(settings.optional("norm_cfg"))
    config.activation = None if settings("act_cfg", None) is None else relu
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    config.criterion.assigner = parts.max_iou(context.train.part("assigner"))
    config.criterion.sampler = Config(
        HardNegativeSampler, negatives_per_positive=float(context.train("neg_pos_ratio"))
    )
    config.criterion.code_loss = Config(SmoothL1, beta=context.train("smoothl1_beta"))
    config.criterion.area = context.area(0.5)
    context.postprocess(config.postprocess)
    return config


def _ssd_anchors(generator: Settings) -> Config[SSDAnchors]:
    """Sizes as `SSDAnchorGenerator` works them out from a range of ratios, or as they are given."""
    ratios = tuple(tuple(float(r) for r in level) for level in generator("ratios"))
    steps = tuple(float(stride) for stride in generator("strides"))
    smallest, largest = generator("min_sizes", None), generator("max_sizes", None)
    if smallest is not None:
        generator.ignore("input_size", "basesize_ratio_range")
        sizes = (*smallest, largest[-1])
    else:
        side, (low, high) = generator("input_size"), generator("basesize_ratio_range")
        first = _first_size(side, low, generator.path)
        lowest, highest = int(low * 100), int(high * 100)
        sizes = ssd.ssd_sizes(side, len(steps), first=first, lowest=lowest, highest=highest)
    return Config(SSDAnchors, sizes=tuple(float(size) for size in sizes), ratios=ratios, steps=steps)


def _first_size(side: int, low: float, path: str) -> int:
    """Size of the first level in percent, which `SSDAnchorGenerator` has for these settings alone."""
    known = {(300, 0.15): 7, (300, 0.2): 10, (512, 0.1): 4, (512, 0.15): 7}
    if (side, low) not in known and side in (300, 512):
        raise ConfigError(f"{path}: there are no default boxes for images of {side} from {low:.0%} on")
    return known.get((side, low), max(int(low * 100) // 2, 1))


def yolo_head(settings: Settings, context: Context) -> Partial:
    """`YOLOV3Head`; levels there go from coarse to fine."""
    settings.ignore("featmap_strides", "one_hot_smoother", "act_cfg", "bbox_coder")
    settings.expect("conv_cfg", None)
    with settings.part("anchor_generator") as generator:
        generator.ignore("strides")
        sizes = tuple(tuple((float(w), float(h)) for w, h in level) for level in generator("base_sizes"))
    config = yolov3.head(sizes[::-1], tuple(reversed(settings("out_channels"))))
    assert isinstance(config.priors, Config)
    config.priors = Config(SizedAnchors, sizes=sizes[::-1])
    config.num_classes = settings("num_classes")
    weights = {}
    for name in ("loss_cls", "loss_conf", "loss_xy", "loss_wh"):
        with settings.part(name) as loss:
            weights[name] = loss("loss_weight", 1.0)
            loss.ignore("use_sigmoid")
            loss.expect("reduction", "sum")
    config.criterion.class_loss = Config(BinaryCrossEntropy, weight=weights["loss_cls"])
    config.criterion.quality.weight = weights["loss_conf"]
    config.criterion.code_loss = Config(
        GridCodeLoss, place_weight=weights["loss_xy"], size_weight=weights["loss_wh"]
    )
    with context.train.part("assigner") as assigner:
        assigner.ignore("min_pos_iou", "iou_calculator")
        config.criterion.assigner = Config(
            GridAssigner,
            ignore_iou=assigner("neg_iou_thr"),
            positive_iou=assigner("pos_iou_thr"),
            shared_cells=True,
        )
    config.postprocess.quality_threshold = context.test("conf_thr", None)
    context.postprocess(config.postprocess)
    return config


def _guided(settings: Settings, context: Context, config: Partial) -> Partial:
    """What `GARetinaHead` and `GARPNHead` have in common."""
    settings.ignore("square_anchor_generator")
    with settings.part("approx_anchor_generator") as approx:
        approx.ignore("strides")
        octave, count = approx("octave_base_scale"), approx("scales_per_octave")
        ratios = tuple(float(r) for r in approx("ratios"))
    config.priors = Config(Anchors, scales=(float(octave),), ratios=(1.0,))
    stds = parts.delta_coder(settings.part("anchor_coder")).stds
    config.shape_coder = Config(ShapeCoder, stds=tuple(stds[2:]))
    config.coder = parts.delta_coder(settings.part("bbox_coder"))
    config.offset_groups = settings("deform_groups", settings("deformable_groups", 4))
    rule = parts.max_iou(context.train.part("ga_assigner"), "ApproxMaxIoUAssigner")
    location = settings.part("loss_loc")
    shape = parts.box_losses(settings.part("loss_shape"), decoded=True)["box_loss"]
    config.guidance = Config(
        Guidance,
        shape_assigner=Config(
            ApproxMaxIoUAssigner,
            rule=rule,
            scales=tuple(2 ** (i / count) for i in range(count)),
            ratios=ratios,
        ),
        sampler=parts.sampler(context.train.part("ga_sampler")),
        shape_loss=shape,
        regions=Config(
            RegionAssigner,
            centre_ratio=context.train("center_ratio", 0.2),
            ignore_ratio=context.train("ignore_ratio", 0.5),
        ),
        location_loss=parts.class_loss(location),
        area=context.area(),
    )
    losses(settings, config.criterion, settings("reg_decoded_bbox", False))
    config.criterion.assigner = parts.max_iou(context.train.part("assigner"))
    config.criterion.sampler = context.sampler()
    config.criterion.divisor = Config(_divisor(context))
    config.criterion.area = None
    config.postprocess.location_threshold = settings("loc_filter_thr", 0.01)
    context.postprocess(config.postprocess)
    return config


def guided_retina(settings: Settings, context: Context) -> Partial:
    """`GARetinaHead`."""
    return _guided(settings, context, layers(settings, guided_anchoring.retina_head()))


def guided_rpn(settings: Settings, context: Context) -> Partial:
    """`GARPNHead`."""
    config = guided_anchoring.rpn_head(1000, 1000)
    config.channels = settings("feat_channels", 256)
    return _guided(settings, context, config)


HEADS: dict[str, Callable[[Settings, Context], Partial[DenseHead]]] = {
    "RetinaHead": retina,
    "FCOSHead": fcos_head,
    "ATSSHead": atss_head,
    "GFLHead": gfl_head,
    "SSDHead": ssd_head,
    "YOLOV3Head": yolo_head,
    "GARetinaHead": guided_retina,
}
