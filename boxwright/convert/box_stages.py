"""MMDetection's box heads as our RoI stages."""

from __future__ import annotations

from fiddle import Config, Partial

from ..errors import ConfigError
from ..models.assigners import DynamicIoUAssigner
from ..models.backbones.resnet import ResNet
from ..models.losses import CrossEntropy, DynamicSmoothL1, SmoothL1
from ..models.roi_heads import FourConvOneFC, RoIExtractor, StageTrunk, TwoFC
from ..recipes import faster_rcnn
from . import parts
from .backbones import resnet_arguments
from .context import usual_training
from .layers import conv_of, norm_of, tagged
from .losses import box_losses, class_loss
from .settings import Settings

SHARED_LAYERS = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}
"""Convolutions and full layers of box heads, by their names."""


def shared_trunk(settings: Settings | None) -> Partial[StageTrunk] | None:
    """`ResLayer`: a backbone's stage on each region."""
    if settings is None:
        return None
    with settings:
        settings.only("a shared head", "ResLayer")
        settings.expect("stage", 3)
        settings.expect("stride", 2)
        settings.expect("dilation", 1)
        settings.expect("dcn", None)
        settings.ignore("pretrained", "with_cp")
        arguments = resnet_arguments(settings)
        arguments |= {"out_stages": (3, 4), "frozen_stages": 0, "frozen_stem": False}
        return Partial(StageTrunk, network=Partial(ResNet, **arguments))


def stage(
    settings: Settings,
    extractor: Config[RoIExtractor],
    train: Settings,
    test: Settings,
    trunk: Partial[StageTrunk] | None,
    kind: str,
) -> Partial:
    """One box stage with its training settings; the test settings are the same for all."""
    with settings, train:
        usual_training(train)
        train.ignore("mask_size", "mask_thr_binary")
        settings.ignore("in_channels", "roi_feat_size", "roi_feat_area")
        for name in ("cls_predictor_cfg", "reg_predictor_cfg"):
            settings.expect(name, {"type": "Linear"})
        for name in ("with_cls", "with_reg"):
            settings.expect(name, True)
        settings.expect("predict_box_type", "hbox")
        config = faster_rcnn.box_head()
        config.extractor = extractor
        config.num_classes = settings("num_classes")
        config.class_agnostic = settings("reg_class_agnostic", False)
        config.trunk = _trunk(settings, trunk)
        config.coder = parts.delta_coder(settings.part("bbox_coder"))
        criterion = config.criterion
        # A box head classifies by softmax whatever its loss says.
        criterion.class_loss = class_loss(settings.part("loss_cls"), CrossEntropy)
        losses = box_losses(settings.part("loss_bbox"), settings("reg_decoded_bbox", False))
        criterion.code_loss, criterion.box_loss = losses["code_loss"], losses["box_loss"]
        criterion.assigner = parts.max_iou(train.part("assigner"))
        sampling = train.part("sampler")
        adds = sampling("add_gt_as_proposals", True)
        criterion.add_ground_truth = adds and sampling.kind != "PseudoSampler"
        criterion.sampler = parts.sampler(sampling)
        if kind == "DynamicRoIHead":
            _dynamic(train.part("dynamic_rcnn"), criterion)
        _postprocess(config.postprocess, test)
        return config


def _postprocess(config: Config, test: Settings) -> None:
    test.expect("mask_thr_binary", 0.5)
    config.score_threshold, config.max_detections = test("score_thr"), test("max_per_img")
    if config.max_detections <= 0:
        raise ConfigError(f"{test.path}.max_per_img is {config.max_detections}; Boxwright needs a number")
    config.nms = parts.suppression(test.part("nms"))


def _trunk(settings: Settings, shared: Partial[StageTrunk] | None) -> Partial:
    """`ConvFCBBoxHead` and what derives from it; `BBoxHead` behind a shared stage."""
    if shared is not None:
        settings.only("a box head behind a shared_head", "BBoxHead")
        if not settings("with_avg_pool", False):
            raise ConfigError(f"{settings.path}.with_avg_pool must be True behind a shared_head")
        return shared
    settings.expect("with_avg_pool", False)
    settings.only("a box head", *SHARED_LAYERS, "ConvFCBBoxHead")
    layers = SHARED_LAYERS.get(settings.kind) or _shared_layers(settings)
    width = settings("fc_out_channels", 1024)
    if layers == (0, 2):
        settings.ignore("conv_out_channels", "conv_cfg", "norm_cfg")  # there are no convolutions
        return Partial(TwoFC, width=width)
    config = Partial(
        FourConvOneFC,
        width=width,
        conv_width=settings("conv_out_channels", 256),
        norm=norm_of(settings.optional("norm_cfg")),
        conv=conv_of(settings.optional("conv_cfg")),
    )
    return tagged(config)


def _shared_layers(settings: Settings) -> tuple[int, int]:
    """Convolutions and full layers that class and box share, of which alone we have some."""
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        settings.expect(name, 0)
    layers = settings("num_shared_convs", 0), settings("num_shared_fcs", 0)
    if layers not in SHARED_LAYERS.values():
        raise ConfigError(
            f"{settings.path} has num_shared_convs={layers[0]} and num_shared_fcs={layers[1]}; Boxwright has "
            "0 and 2, or 4 and 1"
        )
    return layers


def _dynamic(settings: Settings, criterion: Config) -> None:
    """Dynamic R-CNN's assignment and loss."""
    with settings:
        interval = settings("update_iter_interval", 100)
        initial = settings("initial_iou", 0.4)
        criterion.assigner = Config(
            DynamicIoUAssigner,
            rule=criterion.assigner,
            top=settings("iou_topk"),
            interval=interval,
            lowest=initial,
            count_ground_truth=criterion.add_ground_truth,
        )
        if criterion.code_loss is None or criterion.code_loss.__fn_or_cls__ is not SmoothL1:
            raise ConfigError(f"{settings.path}: Dynamic R-CNN changes the beta of a SmoothL1Loss")
        beta = settings("initial_beta", 1.0)
        if criterion.code_loss.beta != beta:
            raise ConfigError(
                f"{settings.path}.initial_beta is {beta}, the beta of loss_bbox {criterion.code_loss.beta}; "
                "in Boxwright they are one number"
            )
        criterion.code_loss = Config(
            DynamicSmoothL1,
            beta=beta,
            bottom=settings("beta_topk"),
            interval=interval,
            weight=criterion.code_loss.weight,
        )
