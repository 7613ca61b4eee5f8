"""Any network of timm as a feature extractor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...structures import FeatureSpec
from ..layers import NormLayer, set_batch_norm_eval, use_fast_depthwise
from .exchange import exchange_norms
from .folding import fold_norms
from .pretrained import StateDict, download_error, load_exactly, read_weights, timm_remedy

TORCHVISION_TWINS = {
    "mobilenetv2_100": ("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1"),
    "efficientnet_b0": ("efficientnet_b0", "EfficientNet_B0_Weights.IMAGENET1K_V1"),
    "efficientnet_b1": ("efficientnet_b1", "EfficientNet_B1_Weights.IMAGENET1K_V1"),
    "efficientnet_b2": ("efficientnet_b2", "EfficientNet_B2_Weights.IMAGENET1K_V1"),
    "efficientnet_b3": ("efficientnet_b3", "EfficientNet_B3_Weights.IMAGENET1K_V1"),
    "efficientnet_b4": ("efficientnet_b4", "EfficientNet_B4_Weights.IMAGENET1K_V1"),
    "resnet18": ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet34": ("resnet34", "ResNet34_Weights.IMAGENET1K_V1"),
    "resnet50": ("resnet50", "ResNet50_Weights.IMAGENET1K_V1"),
    "resnet101": ("resnet101", "ResNet101_Weights.IMAGENET1K_V1"),
    "resnext50_32x4d": ("resnext50_32x4d", "ResNeXt50_32X4D_Weights.IMAGENET1K_V1"),
    "densenet121": ("densenet121", "DenseNet121_Weights.IMAGENET1K_V1"),
}
"""Networks of timm that torchvision has too: its name there, and its weights.

The two compute the same with the same tensors, which come in the same order under the same or other
names. A test holds each line to that.
"""


class TimmBackbone(nn.Module):
    """A network of timm that gives its feature maps, from fine to coarse.

    Weights of a file are matched to the network in one of two ways. If their names are timm's, by name.
    If their names are those of the network's twin in torchvision (`TORCHVISION_TWINS`), by position: the
    twins have the same tensors in the same order. Either way every tensor of the extractor has to be
    there with its shape; what only the whole network has (classifier, last convolution) is dropped, and
    anything else is an error. A checkpoint of a detector with this backbone is matched by name, too.

    Args:
        name: the network, with a tag for its weights if wanted: "mobilenetv2_100.ra_in1k".
        out_indices: which of timm's levels are given; None for all of at least `min_stride`.
        min_stride: finest stride that is given, where `out_indices` is None.
        weights: None (random), "timm" (by the name's tag), "torchvision" (of its twin), another name or
            a file; see `pretrained.read_weights`.
        frozen_stages: 0 freezes nothing; k freezes all layers up to the k-th level of stride 4 or more,
            parameters and batch norm statistics.
        norm: makes the norm in the place of each batch norm, from a number of channels; None keeps timm's.
        norm_eval: batch norms keep their running statistics, in training too (`layers/norm.py`).
        plugin: makes a layer that keeps shape, from the number of channels, behind each level (GCNet's
            context block); None for none.
        **timm_kwargs: passed on to `timm.create_model` (`drop_path_rate`, `output_stride`, ...).

    Raises:
        ConfigError: timm has no such network, or cannot build it as a feature extractor with these arguments.
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] | None = None,
        min_stride: int = 4,
        weights: str | Path | None = None,
        frozen_stages: int = 0,
        norm: NormLayer | None = None,
        norm_eval: bool = True,
        plugin: Callable[[int], nn.Module] | None = None,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        self.name, self.frozen_stages, self.norm_eval = name, frozen_stages, norm_eval
        if out_indices is None:
            out_indices = _indices(name, min_stride, timm_kwargs)
        self.net = _create(name, weights == "timm", {**timm_kwargs, "out_indices": tuple(out_indices)})
        info: Any = self.net.feature_info
        self.specs = tuple(map(FeatureSpec, info.channels(), info.reduction()))
        self.plugins = None if plugin is None else nn.ModuleList(plugin(s.channels) for s in self.specs)
        self.channels_last_output = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        if weights is not None and weights != "timm":
            self._load(weights)
        if norm is not None:
            exchange_norms(self.net, norm, keep=weights is not None)
        use_fast_depthwise(self.net)
        fold_norms(self.net)
        self._frozen = _frozen_part(self.net, name, frozen_stages)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one `(B, C, H / stride, W / stride)` for each of `specs`."""
        features = self.net(x)
        features = [f.permute(0, 3, 1, 2) for f in features] if self.channels_last_output else list(features)
        if self.plugins is None:
            return features
        return [plugin(f) for plugin, f in zip(self.plugins, features, strict=True)]

    def last_stage(self) -> nn.Module:
        """The layers between the last two levels, for heads that run them on regions.

        Raises:
            ConfigError: there is one level only, or the layers do not follow each other in a sequence.
        """
        names: list[str] = self.net.feature_info.module_name()[-2:]  # pyright: ignore
        container = names[0].rpartition(".")[0]
        layers: dict[str, nn.Module] = {}
        for name, child in self.net.named_children():
            inside = child.named_children() if name == container else ()
            layers |= {f"{name}.{number}": layer for number, layer in inside} or {name: child}
        order = list(layers)
        ends = [n if n in layers else n.replace(".", "_") for n in names]  # some networks are flattened
        if len(ends) < 2 or self.channels_last_output or not set(ends) <= set(order):
            raise ConfigError(
                f"the last stage of {self.name} cannot be cut off: it needs two levels of channels-first "
                f"maps, one behind the other; layers are {', '.join(order)}, levels {', '.join(names)}"
            )
        first, last = (order.index(name) for name in ends)
        return nn.Sequential(*(layers[name] for name in order[first + 1 : last + 1]))

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except of frozen layers and (`norm_eval`) batch norms: they stay in evaluation."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        for name in self._frozen:
            layer = self.net.get_submodule(name)
            layer.training = False
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
        return self

    def _load(self, weights: str | Path) -> None:
        architecture, _, _ = self.name.partition(".")
        twin, twin_weights = TORCHVISION_TWINS.get(architecture, (None, None))
        if weights == "torchvision":
            if twin_weights is None:
                raise ConfigError(
                    f"torchvision has no network that is known to equal timm's {architecture}; use "
                    f'weights="timm" or a file (known: {", ".join(TORCHVISION_TWINS)})'
                )
            weights = twin_weights
        state = read_weights(weights)
        if any(name.startswith("net.") for name in state):  # of a detector of ours
            return load_exactly(self, state, weights, lambda name: False)
        whole = _whole_state_dict(architecture)
        if twin is not None and set(state) - set(whole):
            state = _by_position(state, whole, twin)
        state, own = dict(state), self.net.state_dict()
        for key in list(state):
            new = next((k for k in (key, f"model.{key}", key.replace(".", "_", 1)) if k in own), key)
            state[new] = state.pop(key)
        load_exactly(self.net, state, weights, whole.__contains__)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except Exception as error:  # timm's constructors and its downloads raise what they like
        if not pretrained:
            raise ConfigError(
                f"timm cannot build {name!r} as a feature extractor with {kwargs}: {error}. "
                f"`timm.list_models()` lists names; near ones: {', '.join(_near(name)) or 'none'}"
            ) from error
        _create(name, False, kwargs)
        raise download_error(f"timm {name}", timm_remedy(name), error) from error


def _near(name: str) -> list[str]:
    import difflib

    import timm

    return difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)


def _indices(name: str, min_stride: int, kwargs: dict[str, Any]) -> tuple[int, ...]:
    with torch.device("meta"):
        info: Any = _create(name, False, kwargs).feature_info
    chosen = zip(info.out_indices, info.reduction(), strict=True)
    indices = tuple(index for index, stride in chosen if stride >= min_stride)
    if not indices:
        raise ConfigError(f"min_stride is {min_stride}; {name} has strides {info.reduction()}")
    return indices


def _whole_state_dict(architecture: str) -> StateDict:
    import timm

    with torch.device("meta"):
        return timm.create_model(architecture).state_dict()


def _by_position(state: StateDict, whole: StateDict, twin: str) -> StateDict:
    """The same tensors under timm's names, where their names are those of torchvision's network `twin`."""
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.get_model(twin, weights=None).state_dict()
    if set(state) - set(theirs):
        return state
    if [v.shape for v in theirs.values()] != [v.shape for v in whole.values()]:
        raise CheckpointError(
            f"torchvision's {twin} and timm's twin no longer have the same tensors in the same order in the "
            "installed versions; give a file with timm's names"
        )
    names = dict(zip(theirs, whole, strict=True))
    return {names[key]: value for key, value in state.items()}


def _frozen_part(net: nn.Module, name: str, stages: int) -> list[str]:
    """Names of all layers registered up to the end of the given stage."""
    if stages == 0:
        return []
    info: Any = net.feature_info  # pyright: ignore[reportAssignmentType]
    levels = [level["module"] for level in info.info if level["reduction"] >= 4]
    if not 0 <= stages <= len(levels):
        raise ConfigError(f"frozen_stages is {stages}; {name} has {len(levels)} levels of stride 4 or more")
    last = levels[stages - 1]
    last = next((k for k in (last, last.replace(".", "_", 1)) if k in dict(net.named_modules())), None)
    if last is None:
        raise ConfigError(f"{name} does not say which layers its stages are made of; use frozen_stages=0")
    ancestors = {last.rsplit(".", i)[0] for i in range(1, last.count(".") + 1)} | {""}
    names = [n for n, _ in net.named_modules() if n not in ancestors]
    end = max(i for i, n in enumerate(names) if f"{n}.".startswith(f"{last}."))
    return names[: end + 1]
