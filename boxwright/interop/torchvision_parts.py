"""What torchvision's detectors have in common with ours, part by part: body, pyramid, anchors, pooling."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d as TheirFrozenBatchNorm2d
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from ..errors import CheckpointError
from ..models.assigners import MaxIoUAssigner
from ..models.backbones.folding import fold_norms
from ..models.backbones.resnet import ARCHITECTURES, ResNet
from ..models.coders import DeltaCoder
from ..models.detectors import Normalise
from ..models.layers import FrozenBatchNorm2d, NormLayer, use_fast_depthwise
from ..models.necks.fpn import FPN
from ..models.priors import Anchors
from ..models.roi_heads import RoIExtractor
from ..models.samplers import RandomSampler
from ..structures import FeatureSpec
from .renaming import Rule

PYRAMID = (
    Rule(r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.(.+)", r"neck.laterals.\1.conv.\2"),
    Rule(r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.(.+)", r"neck.laterals.\1.norm.\2"),
    Rule(r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.(.+)", r"neck.outputs.\1.conv.\2"),
    Rule(r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.(.+)", r"neck.outputs.\1.norm.\2"),
    Rule(r"backbone\.fpn\.extra_blocks\.p6\.(.+)", r"neck.extras.0.conv.\1"),
    Rule(r"backbone\.fpn\.extra_blocks\.p7\.(.+)", r"neck.extras.1.conv.\1"),
)


class TorchvisionBody(nn.Module):
    """A torchvision network, cut into stages, as a backbone; its frozen norms become ours, of equal values.

    Args:
        body: gives feature maps by name, from fine to coarse. Its specs are read off a blank image.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(self, body: IntermediateLayerGetter) -> None:
        super().__init__()
        modes = {name: layer.training for name, layer in body.named_modules()}
        first = next(body.parameters())
        with torch.no_grad():
            blank = torch.zeros(1, 3, 256, 256, device=first.device, dtype=first.dtype)
            maps = body.eval()(blank).values()
        for name, layer in body.named_modules():
            layer.training = modes[name]
        self.specs = tuple(FeatureSpec(f.shape[1], 256 // f.shape[2]) for f in maps)
        self.body = body
        _exchange_frozen_norms(body)
        use_fast_depthwise(body)
        fold_norms(body)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one map for each of `specs`."""
        return list(self.body(x).values())


def _exchange_frozen_norms(body: nn.Module) -> None:
    for name, layer in list(body.named_modules()):
        if isinstance(layer, TheirFrozenBatchNorm2d):
            ours = FrozenBatchNorm2d(len(layer.weight), eps=layer.eps)  # pyright: ignore[reportArgumentType]
            ours.load_state_dict(layer.state_dict())
            body.set_submodule(name, ours.train(layer.training))


def pyramid_of(module: nn.Module) -> BackboneWithFPN:
    """The body with its feature pyramid.

    Raises:
        CheckpointError: there is no pyramid.
    """
    backbone = module.get_submodule("backbone")
    if not isinstance(backbone, BackboneWithFPN):
        raise CheckpointError(
            f"a torchvision detector on {type(backbone).__name__} cannot be converted: only those with a "
            "feature pyramid (BackboneWithFPN) can"
        )
    return backbone


def backbone_of(pyramid: BackboneWithFPN) -> tuple[nn.Module, Rule]:
    """Our backbone for a body (random weights in a ResNet of ours) and the rule for its names.

    A ResNet becomes ours, in which nothing is frozen or kept in evaluation mode by itself; any other body is
    copied as it is.
    """
    body = pyramid.body
    form = _resnet_form(body)
    if form is None:
        return TorchvisionBody(copy.deepcopy(body)), Rule(r"backbone\.body\.(.+)", r"backbone.body.\1")
    depth, groups, width = form
    norm = norm_of(body["bn1"])
    assert norm is not None, "a ResNet's stem has a norm"
    resnet = ResNet(
        depth,
        groups=groups,
        width_per_group=width,
        out_stages=[int(name.removeprefix("layer")) for name in body.return_layers],
        frozen_stages=0,
        norm=norm,
        norm_eval=False,
    )
    return resnet, Rule(r"backbone\.body\.(.+)", r"backbone.\1")


def _resnet_form(body: Any) -> tuple[int, int, int] | None:
    """Depth, groups and width per group, where the body is a ResNet without dilation."""
    if not {"conv1", "bn1", "layer1"} <= set(body) or norm_of(body["bn1"]) is None:
        return None
    stages: list[list[Any]] = [list(body[name].children()) for name in body if name.startswith("layer")]
    blocks = [block for stage in stages for block in stage]
    kind: Any = type(blocks[0])
    if kind not in (BasicBlock, Bottleneck) or any(type(block) is not kind for block in blocks):
        return None
    if any(conv.dilation != (1, 1) for conv in body.modules() if isinstance(conv, nn.Conv2d)):
        return None
    expansion = kind.expansion
    middle = blocks[0].conv2
    for depth, (block, numbers) in ARCHITECTURES.items():
        same = block.expansion == expansion and list(numbers[: len(stages)]) == [len(s) for s in stages]
        if same:
            return depth, middle.groups, middle.out_channels // middle.groups
    return None


def norm_of(layer: nn.Module) -> NormLayer | None:
    """A maker of norms like this one; None if it is no norm."""
    if isinstance(layer, TheirFrozenBatchNorm2d):
        return partial(FrozenBatchNorm2d, eps=layer.eps)
    if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
        return partial(type(layer), eps=layer.eps, momentum=layer.momentum)
    if isinstance(layer, nn.GroupNorm):
        return partial(nn.GroupNorm, layer.num_groups, eps=layer.eps)
    return None


def norm_in(layers: nn.Module) -> NormLayer | None:
    """A maker of norms like the first inside these layers; None if there is none."""
    return next((norm for layer in layers.modules() if (norm := norm_of(layer)) is not None), None)


def neck_of(fpn: FeaturePyramidNetwork) -> Callable[[Sequence[FeatureSpec]], FPN]:
    """A maker of our FPN with the same extra levels.

    Raises:
        CheckpointError: the extra levels are of another kind.
    """
    lateral: nn.Conv2d = fpn.inner_blocks[0].get_submodule("0")  # pyright: ignore[reportAssignmentType]
    used, norm, extras = len(fpn.inner_blocks), norm_in(fpn.inner_blocks), fpn.extra_blocks
    maker = partial(FPN, out_channels=lateral.out_channels, norm=norm)
    if extras is None:
        return partial(maker, num_outs=used, extra=None)
    if type(extras) is LastLevelMaxPool:
        return partial(maker, num_outs=used + 1, extra="pool")
    if type(extras) is LastLevelP6P7 and norm is None:
        source = "on_output" if extras.use_P5 else "on_input"
        return partial(maker, num_outs=used + 2, extra=source, relu_before_extra=True)
    raise CheckpointError(
        f"a feature pyramid with {type(extras).__name__}{' and norms' if norm else ''} cannot be converted: "
        "LastLevelMaxPool can, and LastLevelP6P7 without norms"
    )


def level_names(pyramid: BackboneWithFPN) -> list[str]:
    """Names of the pyramid's levels, by which torchvision's RoI pooling chooses."""
    names = [str(name) for name in pyramid.body.return_layers.values()]
    extra = {LastLevelMaxPool: ["pool"], LastLevelP6P7: ["p6", "p7"]}
    return names + extra.get(type(pyramid.fpn.extra_blocks), [])  # pyright: ignore[reportArgumentType]


def normalise_of(transform: GeneralizedRCNNTransform) -> Normalise:
    """Mean and deviation of images in 0..255; torchvision's are of images in 0..1."""
    mean, std = ([255.0 * float(v) for v in values] for values in (transform.image_mean, transform.image_std))
    return Normalise((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def anchors_of(generator: AnchorGenerator) -> Anchors:
    """The same anchors: corners rounded, and placed where torchvision places them.

    Raises:
        CheckpointError: levels differ in their ratios or in the number of anchors.
    """
    ratios = {tuple(float(r) for r in level) for level in generator.aspect_ratios}
    if len(ratios) != 1 or len({len(level) for level in generator.sizes}) != 1:
        raise CheckpointError(
            "an anchor generator with other ratios or another number of sizes on some levels cannot be "
            f"converted: sizes {generator.sizes}, ratios {generator.aspect_ratios}"
        )
    sizes = tuple(tuple(float(s) for s in level) for level in generator.sizes)
    return Anchors(ratios=ratios.pop(), sizes=sizes, whole_pixels=True, step_from_canvas=True)


def coder_of(coder: BoxCoder) -> DeltaCoder:
    """The same codes: torchvision's weights divide where ours multiply, and it holds only the upper side."""
    x, y, width, height = (1.0 / w for w in coder.weights)
    return DeltaCoder((x, y, width, height), max_log_ratio=coder.bbox_xform_clip, min_log_ratio=-math.inf)


def assigner_of(matcher: Matcher) -> MaxIoUAssigner:
    """The same rule.

    One difference stands: a ground truth that overlaps no prior at all makes a positive of every prior in
    torchvision, and of none here.
    """
    return MaxIoUAssigner(
        positive_iou=matcher.high_threshold,
        negative_iou=matcher.low_threshold,
        match_low_quality=matcher.allow_low_quality_matches,
        low_quality_keeps_best=True,
    )


def sampler_of(sampler: BalancedPositiveNegativeSampler) -> RandomSampler:
    """The same number and share; which ones are drawn differs, as it does from seed to seed."""
    return RandomSampler(sampler.batch_size_per_image, sampler.positive_fraction)


def extractor_of(
    pool: MultiScaleRoIAlign, names: Sequence[str], specs: Sequence[FeatureSpec]
) -> RoIExtractor:
    """The same pooling, from the levels that torchvision's rule can choose.

    Raises:
        CheckpointError: it pools from levels that are not the finest ones, or not each twice as coarse.
    """
    named = [i for i, name in enumerate(names) if name in pool.featmap_names]
    if not named or named != list(range(len(named))):
        raise CheckpointError(
            f"RoI pooling from the levels {pool.featmap_names} of {list(names)} cannot be converted: "
            "it has to use the finest ones"
        )
    # Levels are told by the logarithm of their stride; where two are equal, the first is always used.
    finest, coarsest = (round(math.log2(specs[i].stride)) for i in (named[0], named[-1]))
    levels = coarsest - finest + 1
    strides = [spec.stride for spec in specs[:levels]]
    if strides != [2 ** (finest + i) for i in range(levels)] or len(set(pool.output_size)) != 1:
        raise CheckpointError(
            f"RoI pooling to {pool.output_size} from strides {strides} cannot be converted: "
            "strides have to double, and the output has to be a square"
        )
    return RoIExtractor(
        size=int(pool.output_size[0]),
        levels=levels,
        sampling_ratio=max(pool.sampling_ratio, 0),
        finest_scale=pool.canonical_scale / 2.0 ** (pool.canonical_level - finest),
        aligned=False,
    )
