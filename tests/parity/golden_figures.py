"""Records of MMDetection 3.3.0's published configurations, and our recipes with their weights and inputs.

The records in `golden/` hold what MMDetection computed in float32 on a CPU, for weights, images and targets
that `golden_inputs.py` makes again. What a record changed for determinism is changed here, too: sampling
takes everything.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import golden_inputs
import pytest
import torch
from fiddle import daglish
from torch import Tensor

from boxwright.config import Pretrained, build, set_tagged
from boxwright.interop import from_mmdetection
from boxwright.models.detectors import Normalise, OneStageDetector, TwoStageDetector
from boxwright.models.samplers import RandomSampler
from boxwright.ops.masks import pack
from boxwright.recipes import recipe
from boxwright.structures import Batch, Detections, Targets

FOLDER = Path(__file__).parent / "golden"
SLOTS = 8


@dataclass
class Golden:
    """A record, our model with its weights, and its inputs."""

    record: dict[str, Any]
    model: OneStageDetector | TwoStageDetector
    names: dict[str, str]
    batch: Batch

    @property
    def canvas(self) -> tuple[int, int]:
        return self.record["input"]["height"], self.record["input"]["width"]


def load(record_name: str, recipe_name: str) -> Golden:
    """A record with the recipe's detector filled by the importer."""
    record = json.loads(gzip.decompress((FOLDER / f"{record_name}.json.gz").read_bytes()))
    model = build_model(recipe_name)
    fill, size = record["fill"], (record["input"]["height"], record["input"]["width"])
    weights = golden_inputs.fill_state_dict(record["keys"], fill["seed"], fill["adjust"], fill["aliases"])
    for name, figures in fill["check"].items():
        agree(weights[name], figures, 1e-6)
    report = from_mmdetection({"state_dict": weights}, model)
    return Golden(record, model, dict(report.names), make_batch(record, size))


def build_model(name: str) -> OneStageDetector | TwoStageDetector:
    """The recipe's model; images are normalised already, and sampling takes everything."""
    config = recipe(name).model
    set_tagged(config, Pretrained, None)
    config.normalise = fdl.Config(Normalise, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for node, _ in daglish.iterate(config):
        if isinstance(node, fdl.Buildable) and fdl.get_callable(node) is RandomSampler:
            node.number = 1_000_000
    return build(config)


def make_batch(record: dict[str, Any], size: tuple[int, int]) -> Batch:
    images = golden_inputs.image_batch(2, *size)
    agree(images, record["input"]["image"], 1e-6)
    truth = golden_inputs.targets(2, *size)
    boxes, labels = torch.zeros(2, SLOTS, 4), torch.zeros(2, SLOTS, dtype=torch.int64)
    valid = torch.zeros(2, SLOTS, dtype=torch.bool)
    for i, target in enumerate(truth):
        count = len(target["boxes"])
        boxes[i, :count], labels[i, :count], valid[i, :count] = target["boxes"], target["labels"], True
    masks = pack([target["masks"] for target in truth], SLOTS)
    # A label for every 8 x 8 pixels; each pixel has it here.
    semantic = golden_inputs.semantic_targets(2, *size).repeat_interleave(8, 1).repeat_interleave(8, 2)
    targets = Targets(boxes, labels, valid, torch.zeros_like(valid), masks, semantic.to(torch.uint8))
    sizes = torch.tensor([meta["img_shape"] for meta in record["input"]["metas"]])
    return Batch(images, sizes, targets)


def agree(tensor: Tensor, figures: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Shape, mean, deviation and some values, to a tolerance in standard deviations."""
    assert list(tensor.shape) == figures["shape"]
    bound = tolerance * figures["std"]
    tensor = tensor.double()
    assert abs(tensor.mean().item() - figures["mean"]) <= bound
    assert abs(tensor.std(correction=0).item() - figures["std"]) <= bound
    values = tensor.flatten()[figures["index"]]
    assert (values - torch.tensor(figures["values"], dtype=torch.float64)).abs().max() <= bound


def as_maps(values: Tensor, shapes: list[tuple[int, int]], per_place: list[int]) -> list[Tensor]:
    """`(B, A, C)` of all levels to one `(B, priors at a place * C, H, W)` a level."""
    parts = values.split([h * w * k for (h, w), k in zip(shapes, per_place, strict=True)], dim=1)
    return [p.reshape(len(p), h, w, -1).permute(0, 3, 1, 2) for p, (h, w) in zip(parts, shapes, strict=True)]


def check_trained(golden: Golden) -> None:
    """The parameters that train are those that trained in the record."""
    trained = {golden.names[name] for name, p in golden.model.named_parameters() if p.requires_grad}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = {key for key in golden.record["keys"] if not key.endswith(buffers)}
    assert trained == parameters - set(golden.record["frozen"])


def check_gradients(golden: Golden, losses: dict[str, Tensor]) -> None:
    """The total of the losses and the norms of its gradients."""
    model, record = golden.model, golden.record
    model.zero_grad()
    total = torch.stack([value for name, value in losses.items() if name.startswith("loss/")]).sum()
    assert total.item() == pytest.approx(record["total"], rel=1e-4)
    total.backward()
    gradients = {golden.names[n]: p.grad for n, p in model.named_parameters() if p.grad is not None}
    size = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert size == pytest.approx(record["gradients"]["global_norm"], rel=1e-3)
    norms = {name: gradients[name].norm().item() for name in record["gradients"]["norms"]}
    assert norms == pytest.approx(record["gradients"]["norms"], rel=1e-3)


def matched(found: Detections, image: int, expected: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Which detection of an image is nearest to each that was recorded, and whether it is the same.

    The same has the label, a box within 0.01 pixels and a score within 1e-4. No more than two may differ.
    """
    valid = found.valid[image]
    assert int(valid.sum()) == expected["count"]
    boxes, scores, labels = (torch.tensor(expected[key]) for key in ("boxes", "scores", "labels"))
    distance = (found.boxes[image, valid] - boxes[:, None]).abs().amax(-1)
    distance[found.labels[image, valid] != labels[:, None]] = torch.inf
    distance[(found.scores[image, valid] - scores[:, None]).abs() > 1e-4] = torch.inf
    nearest, slot = distance.min(1)
    same = nearest < 0.01
    # An IoU at the threshold may fall on the other side in NMS.
    assert int((~same).sum()) <= 2
    assert len(slot[same].unique()) == int(same.sum())
    return slot, same
