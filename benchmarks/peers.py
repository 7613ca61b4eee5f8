"""Other toolboxes beside ours: torchvision always, Detectron2 and MMDetection where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator

import torch

from .detectors import Pair

# Module of `benchmarks` that makes pairs, package that it needs, and how that is installed.
PEERS = {
    "torchvision": ("detectors", "torchvision", "pip install torchvision"),
    "detectron2": (
        "peer_detectron2",
        "detectron2",
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2",
    ),
    "mmdetection": (
        "peer_mmdetection",
        "mmdet",
        "pip install mmengine mmdet, and mmcv with its operators: "
        "MMCV_WITH_OPS=1 pip install --no-binary mmcv --no-build-isolation mmcv",
    ),
}


def make_pairs(
    peers: Iterable[str], name: str, batch: int, height: int, width: int, device: torch.device
) -> Iterator[Pair]:
    """Ours beside each peer that is installed and has such a detector; says which are left out, and why."""
    for peer in peers:
        module, package, install = PEERS[peer]
        if importlib.util.find_spec(package) is None:
            print(f"{peer} is left out: it is not installed ({install})", flush=True)
            continue
        maker = importlib.import_module(f"benchmarks.{module}")
        if name not in maker.BUILDERS:
            print(f"{peer} is left out: it has no {name}", flush=True)
            continue
        yield maker.make_pair(name, batch, height, width, device)
