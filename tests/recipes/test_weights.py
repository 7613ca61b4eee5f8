"""The weights that recipes start from: a name or an address, never a file that has to be found by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import pytest
import timm
import torch
from fiddle import daglish
from torchvision.models import get_weight

from boxwright.config import Pretrained, build
from boxwright.errors import CheckpointError
from boxwright.models.backbones import pretrained
from boxwright.models.backbones.darknet import Darknet
from boxwright.models.backbones.resnet import ResNet
from boxwright.recipes import table


class Reached(CheckpointError):
    """Nothing is fetched in a test."""


def starting() -> Iterator[fdl.Buildable]:
    """The parts of all recipes that start from weights."""
    for function in table().values():
        for node, _ in daglish.iterate(function().model):
            if isinstance(node, fdl.Buildable) and Pretrained in node.__argument_tags__.get("weights", ()):
                yield node


def test_weights_have_a_name_or_an_address() -> None:
    for node in starting():
        weights = node.weights
        if weights in (None, "torchvision", "timm"):
            continue
        assert not pretrained.is_file(weights), f"{weights} has to be looked for"
        if weights.startswith("timm:"):
            assert timm.get_pretrained_cfg(weights.removeprefix("timm:")) is not None
        elif not weights.startswith("https://"):
            get_weight(weights)


def test_networks_take_the_weights_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read_weights(weights: Any) -> None:
        asked.append(str(weights))
        raise Reached

    monkeypatch.setattr(pretrained, "read_weights", read_weights)
    kinds = {str(node): node for node in starting() if fdl.get_callable(node) in (ResNet, Darknet)}
    for node in kinds.values():
        if node.weights is not None:
            with torch.device("meta"), pytest.raises(Reached):
                build(fdl.cast(fdl.Config, node))
    assert len(set(asked)) >= 9
    assert "timm:resnext101_32x4d.gluon_in1k" in asked
