"""Peers that are installed agree with ours; those that are not are left out, in words."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

peers = importlib.import_module("benchmarks.peers")
losses = importlib.import_module("benchmarks.peer_losses")
detectors = importlib.import_module("benchmarks.detectors")
CPU = torch.device("cpu")


def test_a_peer_that_is_not_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(peers.make_pairs(["detectron2", "mmdetection"], "retinanet_r50_fpn", 1, 64, 64, CPU)) == []
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("detectron2 is left out: it is not installed (pip install ")
    assert said[1].startswith("mmdetection is left out: it is not installed (pip install ")


def test_a_peer_without_such_a_detector_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(peers.make_pairs(["torchvision"], "yolov3", 1, 64, 64, CPU)) == []
    assert capsys.readouterr().out == "torchvision is left out: it has no yolov3\n"


def test_losses_that_differ_are_named() -> None:
    losses.compare("Peer", {"box": 1.0}, {"box": 1.0005, "stat": 3.0})
    with pytest.raises(AssertionError, match=r"box: Peer has 1, ours 1\.1"):
        losses.compare("Peer", {"box": 1.0}, {"box": 1.1})


def test_our_losses_take_every_sample_and_leave_the_samplers_as_they_are() -> None:
    torch.manual_seed(0)
    pair = detectors.make_pair("faster_rcnn_mnv2_320", 1, 64, 96, CPU)
    before = pair.ours.rpn.criterion, pair.ours.roi.stages[0].criterion
    first, second = (losses.our_losses(pair.ours, pair.batch) for _ in range(2))
    assert first == pytest.approx(second, rel=1e-5)  # nothing is drawn but the order
    assert set(first) == {"rpn_class", "rpn_box", "class", "box"}
    assert (pair.ours.rpn.criterion, pair.ours.roi.stages[0].criterion) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["retinanet_r50_fpn", "fcos_r50_fpn", "faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"]
)
@pytest.mark.parametrize("peer", ["detectron2", "mmdetection"])
def test_installed_peers_agree(peer: str, name: str) -> None:
    pairs = list(peers.make_pairs([peer], name, 2, 128, 160, CPU))  # compares features and losses
    if not pairs:
        pytest.skip(f"{peer} is not installed, or has no {name}")
    [pair] = pairs
    for who in ("ours", pair.who):
        pair.step(who, "fp32")()
        assert pair.predict(who, "fp32")() is not None
