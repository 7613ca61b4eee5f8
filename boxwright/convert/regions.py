"""MMDetection's RoI heads as ours."""

from __future__ import annotations

from typing import Any

from fiddle import Config, Partial

from ..config import NumClasses
from ..errors import ConfigError
from ..models.assigners import DynamicIoUAssigner
from ..models.backbones.resnet import ResNet
from ..models.losses import DynamicSmoothL1
from ..models.roi_heads import (
    HTC,
    FourConvOneFC,
    FusedExtractor,
    MaskHead,
    MeanLogits,
    RoIExtractor,
    RoIHeads,
    SemanticBranch,
    StageTrunk,
    TwoFC,
)
from ..recipes import common, faster_rcnn
from . import parts
from .backbones import resnet_arguments
from .settings import Settings

KINDS = ("StandardRoIHead", "CascadeRoIHead", "HybridTaskCascadeRoIHead", "DynamicRoIHead")


def heads(settings: Settings, train: list[Settings], test: Settings) -> Partial[RoIHeads]:
    """The RoI heads, their training and test settings."""
    with settings:
        if settings.kind not in KINDS:
            raise settings.unknown("a RoI head", dict.fromkeys(KINDS))
        settings.ignore("pretrained", "train_cfg", "test_cfg")
        hybrid = settings.kind == "HybridTaskCascadeRoIHead"
        semantic = settings.optional("semantic_head") if hybrid else None
        levels, boxes = _extractor(
            settings, "bbox_roi_extractor", settings.optional("semantic_roi_extractor")
        )
        trunk = shared_trunk(settings.optional("shared_head"))
        all_stages = settings.parts("bbox_head")
        stages = [
            stage(box, boxes, one, test, trunk, settings.kind)
            for box, one in zip(all_stages, train, strict=True)
        ]
        config: Partial = Partial(HTC if hybrid else RoIHeads, stages=stages)
        if len(stages) > 1:
            settings.expect("num_stages", len(stages))
            config.loss_weights = tuple(float(w) for w in settings("stage_loss_weights"))
            config.average = Config(MeanLogits)
        masks = [] if settings("mask_head", None) is None else settings.parts("mask_head")
        if masks:
            extractor = boxes
            if settings("mask_roi_extractor", None) is not None:
                _, extractor = _extractor(settings, "mask_roi_extractor", None, semantic=levels)
            made = [mask(one, extractor) for one in masks]
            made = made * len(stages) if len(made) == 1 and len(stages) > 1 else made
            config.mask = made if len(stages) > 1 else made[0]
            if trunk is not None:
                config.share_trunk = True
        if hybrid:
            settings.expect("interleaved", True)
            settings.expect("mask_info_flow", True)
            settings.ignore("semantic_fusion")
            config.semantic = None if semantic is None else semantic_branch(semantic)
        return config


def _extractor(
    settings: Settings, name: str, fused: Settings | None, semantic: int | None = None
) -> tuple[int | None, Config[RoIExtractor]]:
    """An extractor, and at which size the semantic branch is pooled, if there is one."""
    with settings.part(name) as extractor:
        if extractor.kind != "SingleRoIExtractor":
            raise extractor.unknown("a RoI extractor", {"SingleRoIExtractor": RoIExtractor})
        strides = extractor("featmap_strides")
        finest = float(extractor("finest_scale", 56))
        extractor.ignore("out_channels")
        with extractor.part("roi_layer") as layer:
            if layer.kind != "RoIAlign":
                raise layer.unknown("a RoI layer", {"RoIAlign": RoIExtractor})
            layer.expect("pool_mode", "avg")
            layer.ignore("use_torchvision")
            arguments: dict[str, Any] = {
                "size": layer("output_size"),
                "levels": len(strides),
                "sampling_ratio": layer("sampling_ratio", 0),
                "finest_scale": finest,
                "aligned": layer("aligned", True),
            }
    if fused is not None:
        with fused:
            fused.ignore("out_channels", "featmap_strides")
            with fused.part("roi_layer") as layer:
                layer.ignore("sampling_ratio")
                semantic = layer("output_size")
    if semantic is None:
        return None, Config(RoIExtractor, **arguments)
    return semantic, Config(FusedExtractor, semantic_size=semantic, **arguments)


def shared_trunk(settings: Settings | None) -> Partial[StageTrunk] | None:
    """`ResLayer`: a backbone's stage on each region."""
    if settings is None:
        return None
    with settings:
        if settings.kind != "ResLayer" or settings("stage", 3) != 3:
            raise settings.unknown("a shared head", {"ResLayer": StageTrunk})
        settings.expect("stride", 2)
        settings.expect("dilation", 1)
        settings.ignore("pretrained")
        arguments = resnet_arguments(settings)
        arguments |= {"out_stages": (3, 4), "frozen_stages": 0}
        for name in ("strides", "dilations"):
            arguments.pop(name, None)
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
        train.ignore("pos_weight", "debug", "mask_size", "mask_thr_binary")
        settings.ignore("in_channels", "roi_feat_size", "with_avg_pool", "roi_feat_area")
        config = faster_rcnn.box_head()
        config.extractor = extractor
        config.num_classes = settings("num_classes")
        config.class_agnostic = settings("reg_class_agnostic", False)
        config.trunk = trunk or _trunk(settings)
        config.coder = parts.delta_coder(settings.part("bbox_coder"))
        criterion = config.criterion
        criterion.class_loss = parts.class_loss(settings.part("loss_cls"))
        losses = parts.box_losses(settings.part("loss_bbox"), settings("reg_decoded_bbox", False))
        criterion.code_loss, criterion.box_loss = losses.get("code_loss"), losses.get("box_loss")
        criterion.assigner = parts.max_iou(train.part("assigner"))
        sampling = train.part("sampler")
        criterion.add_ground_truth = sampling("add_gt_as_proposals", True)
        criterion.sampler = parts.sampler(sampling)
        if kind == "DynamicRoIHead":
            _dynamic(train.part("dynamic_rcnn"), criterion)
        post = config.postprocess
        post.score_threshold, post.max_detections = test("score_thr"), test("max_per_img", 100)
        post.nms = parts.suppression(test.part("nms"))
        test.ignore("mask_thr_binary")
        return config


def _trunk(settings: Settings) -> Partial:
    """`Shared2FCBBoxHead`, `Shared4Conv1FCBBoxHead`."""
    width = settings("fc_out_channels", 1024)
    if settings.kind == "Shared2FCBBoxHead":
        settings.ignore("conv_out_channels")
        return Partial(TwoFC, width=width)
    if settings.kind == "Shared4Conv1FCBBoxHead":
        config = Partial(
            FourConvOneFC,
            width=width,
            conv_width=settings("conv_out_channels", 256),
            norm=parts.norm_of(settings.optional("norm_cfg")),
            conv=parts.conv_of(settings.optional("conv_cfg")),
        )
        return parts.tagged(config)
    raise settings.unknown(
        "a box head", dict.fromkeys(("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "BBoxHead"))
    )


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
        )
        if criterion.code_loss is None or "beta" not in criterion.code_loss.__arguments__:
            raise ConfigError(f"{settings.path}: Dynamic R-CNN changes the beta of a SmoothL1Loss")
        criterion.code_loss = Config(
            DynamicSmoothL1,
            beta=settings("initial_beta", 1.0),
            bottom=settings("beta_topk"),
            interval=interval,
            weight=criterion.code_loss.weight,
        )


def mask(settings: Settings, extractor: Config[RoIExtractor]) -> Partial[MaskHead]:
    """`FCNMaskHead`, and `HTCMaskHead`, whose extra convolution belongs to `HTC` here."""
    with settings:
        if settings.kind not in ("FCNMaskHead", "HTCMaskHead"):
            raise settings.unknown("a mask head", dict.fromkeys(("FCNMaskHead", "HTCMaskHead")))
        settings.ignore("in_channels", "roi_feat_size", "with_conv_res", "num_convs")
        settings.expect("class_agnostic", False)
        settings.expect("conv_kernel_size", 3)
        settings.expect("upsample_cfg", {"type": "deconv", "scale_factor": 2})
        with settings.part("loss_mask") as loss:
            loss.expect("use_mask", True)
            weight = loss("loss_weight", 1.0)
        head = Partial(
            MaskHead,
            num_classes=settings("num_classes"),
            extractor=extractor,
            channels=settings("conv_out_channels", 256),
            convs=settings("num_convs", 4),
            norm=parts.norm_of(settings.optional("norm_cfg")),
            conv=parts.conv_of(settings.optional("conv_cfg")),
            weight=weight,
        )
        return common.with_tag(parts.tagged(head), "num_classes", NumClasses)


def semantic_branch(settings: Settings) -> Partial[SemanticBranch]:
    """`FusedSemanticHead`."""
    with settings:
        if settings.kind != "FusedSemanticHead":
            raise settings.unknown("a semantic head", {"FusedSemanticHead": SemanticBranch})
        settings.ignore("num_ins", "in_channels", "conv_out_channels", "ignore_label", "seg_scale_factor")
        settings.expect("conv_cfg", None)
        weight = settings("loss_weight", 0.2)
        loss = settings.optional("loss_seg")
        if loss is not None:
            with loss:
                loss.ignore("ignore_index")
                weight = loss("loss_weight", 1.0)
        return Partial(
            SemanticBranch,
            num_classes=settings("num_classes", 183),
            level=settings("fusion_level"),
            convs=settings("num_convs", 4),
            norm=parts.norm_of(settings.optional("norm_cfg")),
            weight=weight,
        )
