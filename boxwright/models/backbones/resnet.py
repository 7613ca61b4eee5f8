"""ResNet (arXiv:1512.03385) and ResNeXt (arXiv:1611.05431) as feature extractors.

Parameters are named as in torchvision's ResNet (`conv1`, `layer1.0.conv1`, `layer1.0.downsample.0`),
which published checkpoints use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import ConvFactory, NormLayer, conv_norm_act, freeze, init_kaiming, set_batch_norm_eval
from .pretrained import is_file, load_backbone_weights
from .resnet_blocks import BasicBlock, Block, BlockStyle, Bottleneck

Plugin = Callable[[int], nn.Module]
"""Makes a layer that keeps shape, from the number of channels."""

ARCHITECTURES: dict[int, tuple[type[Block], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Block and number of blocks of each stage, by depth (ResNet, Table 1)."""

TORCHVISION_WEIGHTS = {
    (18, 1, 64): "ResNet18_Weights.IMAGENET1K_V1",
    (34, 1, 64): "ResNet34_Weights.IMAGENET1K_V1",
    (50, 1, 64): "ResNet50_Weights.IMAGENET1K_V1",
    (101, 1, 64): "ResNet101_Weights.IMAGENET1K_V1",
    (152, 1, 64): "ResNet152_Weights.IMAGENET1K_V1",
    (50, 32, 4): "ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    (101, 32, 8): "ResNeXt101_32X8D_Weights.IMAGENET1K_V1",
    (101, 64, 4): "ResNeXt101_64X4D_Weights.IMAGENET1K_V1",
    (50, 1, 128): "Wide_ResNet50_2_Weights.IMAGENET1K_V1",
    (101, 1, 128): "Wide_ResNet101_2_Weights.IMAGENET1K_V1",
}
"""What `weights="torchvision"` means, by depth, groups and width per group."""


ADDED = (".plugin.", ".conv_offset.")
"""What later papers put into the blocks: it starts by itself, and weights of the plain network lack it."""


class ResNet(nn.Module):
    """ResNet or ResNeXt that gives the outputs of chosen stages, from fine to coarse.

    Stages are counted from 1 (C2, stride 4) to 4 (C5, stride 32); stages behind the last one asked for
    are not built. Start a detector from pretrained `weights`, or set `norm_eval=False, frozen_stages=0`:
    random weights under fixed statistics do not train well.

    Args:
        depth: 18, 34, 50, 101 or 152.
        groups: groups of the 3x3 convolutions; ResNeXt has 32 or 64 (bottleneck depths only).
        width_per_group: channels of a group in the first stage; ResNeXt 32x4d has 4.
        style: where a bottleneck with stride has it: "pytorch" on the 3x3 convolution, "caffe" on the
            first 1x1 (as in the paper).
        out_stages: stages whose outputs are given, ascending.
        frozen_stages: 0 freezes nothing; k freezes the stem and the first k stages, parameters and
            batch norm statistics.
        frozen_stem: freezes the stem even if no stage is frozen.
        norm: makes the norm layer from a number of channels.
        norm_eval: batch norms keep their running statistics, in training too (`layers/norm.py`).
        strides: stride of each stage.
        dilations: dilation of each stage's 3x3 convolutions, in all of its blocks.
        deep_stem: three 3x3 convolutions in place of the 7x7 (ResNet-C, arXiv:1812.01187, Sec. 4.2).
        avg_down: shortcuts average before their 1x1 convolution (ResNet-D, same section).
        conv: makes every convolution, called as `nn.Conv2d`.
        conv3x3: makes each stage's 3x3 convolutions instead of `conv`, for deformable ones; None keeps it.
        plugins: makes a layer behind the last norm of each block's branch, per stage (GCNet's context block).
        weights: None (random), "torchvision" (its weights of this architecture), another name or a file;
            see `pretrained.read_weights`. In Caffe's style, biases of convolutions are left out, as by
            MMDetection: published files hold some before the norms.

    Raises:
        ConfigError: an argument does not fit the others.
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        depth: int = 50,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        style: Literal["pytorch", "caffe"] = "pytorch",
        out_stages: Sequence[int] = (1, 2, 3, 4),
        frozen_stages: int = 1,
        frozen_stem: bool = False,
        norm: NormLayer = nn.BatchNorm2d,
        norm_eval: bool = True,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        deep_stem: bool = False,
        avg_down: bool = False,
        conv: ConvFactory = nn.Conv2d,
        conv3x3: Sequence[ConvFactory | None] = (None, None, None, None),
        plugins: Sequence[Plugin | None] = (None, None, None, None),
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.depth, self.groups, self.width_per_group, self.style = depth, groups, width_per_group, style
        self.out_stages, self.frozen_stages, self.norm_eval = tuple(out_stages), frozen_stages, norm_eval
        self.frozen_stem = frozen_stem or frozen_stages > 0
        self.deep_stem, self.avg_down = deep_stem, avg_down
        self._check({"strides": strides, "dilations": dilations, "conv3x3": conv3x3, "plugins": plugins})
        self._build_stem(norm, conv)

        block, depths = ARCHITECTURES[depth]
        channels, stride, specs = 64, 4, {}
        for stage in range(1, self.out_stages[-1] + 1):
            i = stage - 1
            form = BlockStyle(
                groups=groups,
                width_per_group=width_per_group,
                stride_on_first=style == "caffe",
                avg_down=avg_down,
                dilation=dilations[i],
                norm=norm,
                conv=conv,
                conv3x3=conv3x3[i] or conv,
                plugin=plugins[i],
            )
            planes = 64 * 2**i
            blocks = [block(channels, planes, strides[i], form)]
            channels, stride = planes * block.expansion, stride * strides[i]
            blocks += [block(channels, planes, 1, form) for _ in range(depths[i] - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            specs[stage] = FeatureSpec(channels, stride)
        self.specs = tuple(specs[stage] for stage in self.out_stages)

        init_kaiming(self)
        if weights is not None:
            self._load(weights)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one `(B, C, H / stride, W / stride)` for each of `specs`."""
        layers = [*self.stem] if self.deep_stem else [self.conv1, self.bn1, self.relu]
        for conv, norm, relu in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
            x = conv_norm_act(conv, norm, relu, x)
        x = self.maxpool(x)
        features = []
        for stage in range(1, self.out_stages[-1] + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage in self.out_stages:
                features.append(x)
        return features

    def last_stage(self) -> nn.Module:
        """The layers between the last two levels, for heads that run them on regions."""
        return self.get_submodule(f"layer{self.out_stages[-1]}")

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except of frozen stages and (`norm_eval`) batch norms: they stay in evaluation."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        stem = ["stem"] if self.deep_stem else ["conv1", "bn1"]
        stages = [f"layer{stage}" for stage in range(1, self.frozen_stages + 1)]
        for name in [*(stem if self.frozen_stem else ()), *stages]:
            freeze(self.get_submodule(name))
        return self

    def _build_stem(self, norm: NormLayer, conv: ConvFactory) -> None:
        if self.deep_stem:
            layers: list[nn.Module] = []
            for i, o, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
                layers += [
                    conv(i, o, 3, stride=stride, padding=1, bias=False),
                    norm(o),
                    nn.ReLU(inplace=True),
                ]
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = conv(3, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm(64)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def _load(self, weights: str | Path) -> None:
        variant = self.style == "caffe" or self.deep_stem or self.avg_down
        if variant and not is_file(weights) and (weights == "torchvision" or "_Weights." in str(weights)):
            raise ConfigError(
                'torchvision\'s weights are for style="pytorch" without deep_stem and avg_down; '
                "give weights of this variant as a file, or weights=None"
            )
        if weights == "torchvision":
            name = TORCHVISION_WEIGHTS.get((self.depth, self.groups, self.width_per_group))
            if name is None:
                raise ConfigError(
                    f"torchvision has no weights for depth {self.depth}, groups {self.groups}, "
                    f"width_per_group {self.width_per_group}; give a file, or a name of timm such as "
                    '"timm:resnext101_32x4d.gluon_in1k"'
                )
            weights = name
        unbuilt = [f"layer{stage}." for stage in range(self.out_stages[-1] + 1, 5)]
        # MMDetection calls a group norm gn, at the numbers where a batch norm is bn.
        rename = {re.sub(r"\bbn(?=\d\.)", "gn", name): name for name in self.state_dict()}
        modules = self.named_modules() if self.style == "caffe" else ()
        biases = [f"{name}.bias" for name, module in modules if isinstance(module, nn.Conv2d)]
        load_backbone_weights(self, weights, ("fc.", *unbuilt, *biases), rename, ADDED)

    def _check(self, per_stage: dict[str, Sequence]) -> None:
        if self.depth not in ARCHITECTURES:
            raise ConfigError(f"depth is {self.depth}; ResNet has {', '.join(map(str, ARCHITECTURES))}")
        if self.style not in ("pytorch", "caffe"):
            raise ConfigError(f'style is {self.style!r}; it is "pytorch" or "caffe"')
        stages = self.out_stages
        if not stages or list(stages) != sorted(set(stages)) or not {1, 2, 3, 4}.issuperset(stages):
            raise ConfigError(f"out_stages is {stages}; it takes some of 1, 2, 3, 4 in ascending order")
        if not 0 <= self.frozen_stages <= stages[-1]:
            raise ConfigError(f"frozen_stages is {self.frozen_stages}; {stages[-1]} stages are built")
        for name, values in per_stage.items():
            if len(values) < stages[-1]:
                raise ConfigError(f"{name} has {len(values)} entries; {stages[-1]} stages are built")
        if self.depth < 50 and (self.groups, self.width_per_group, self.style) != (1, 64, "pytorch"):
            raise ConfigError(
                f"groups, width_per_group and style change bottlenecks; depth {self.depth} does not have them"
            )
