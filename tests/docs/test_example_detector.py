"""The documentation's detector from outside the package: targets by hand, and what any detector is asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import boxwright as bw
from boxwright.structures import Batch, Targets

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "centernet.py"
RECIPE = f"{EXAMPLE}:centernet_mnv2_320"


@pytest.fixture(scope="module")
def centernet() -> ModuleType:
    bw.recipe(RECIPE)  # a recipe's file becomes a module under its name
    return sys.modules["centernet"]


@pytest.fixture(scope="module")
def model(centernet: ModuleType) -> nn.Module:
    experiment = bw.recipe(RECIPE)
    experiment.model.backbone.name, experiment.model.backbone.norm_eval = "mobilenetv3_small_050", False
    experiment.model.neck.out_channels = 32
    torch.manual_seed(0)
    return bw.build(experiment, num_classes=2, pretrained=False)


def batch_of(objects: list[list[tuple[int, list[float]]]], slots: int, side: int = 64) -> Batch:
    """Images with a bright rectangle at each object, of label 0 in red and 1 in blue."""
    boxes = torch.zeros(len(objects), slots, 4)
    labels = torch.zeros(len(objects), slots, dtype=torch.long)
    valid = torch.zeros(len(objects), slots, dtype=torch.bool)
    images = torch.full((len(objects), 3, side, side), 40, dtype=torch.uint8)
    for i, image in enumerate(objects):
        for slot, (label, box) in enumerate(image):
            boxes[i, slot], labels[i, slot], valid[i, slot] = torch.tensor(box), label, True
            x1, y1, x2, y2 = map(int, box)
            images[i, 2 * label, y1:y2, x1:x2] = 220
    sizes = torch.full((len(objects), 2), side)
    return Batch(images, sizes, Targets(boxes, labels, valid, torch.zeros_like(valid)))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for key, value in losses.items() if key.startswith("loss/")]).sum()


TWO = batch_of([[(0, [8.0, 8, 40, 40]), (1, [30.0, 40, 62, 60])], []], 3)


def test_spread_by_its_meaning(centernet: ModuleType) -> None:
    size = torch.tensor([20.0, 10.0])
    shift = 3 * float(centernet.spread(size))
    common = (20 - shift) * (10 - shift)
    assert common / (2 * 200 - common) == pytest.approx(0.7, abs=1e-5)


def test_heatmap_by_hand(centernet: ModuleType) -> None:
    assert TWO.targets is not None
    maps = centernet.heatmap(TWO.targets, 4, (16, 16), 2)
    assert maps.shape == (2, 2, 16, 16)
    assert maps.amax((2, 3)).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert (maps[0, 0] == 1).nonzero().tolist() == [[6, 6]]  # the centre (24, 24) in cells of 4 px
    assert (maps[0, 1] == 1).nonzero().tolist() == [[12, 11]]  # (46, 50)
    deviation = centernet.spread(torch.tensor([8.0, 8.0]))
    assert float(maps[0, 0, 6, 8]) == pytest.approx(float(torch.exp(-4 / (2 * deviation**2))), rel=1e-4)
    alone = Targets(*(value[:1, :2] for value in list(vars(TWO.targets).values())[:4]))
    assert torch.equal(centernet.heatmap(alone, 4, (16, 16), 2), maps[:1])


def test_crowds_and_padding_train_nothing(model: nn.Module) -> None:
    model.eval()
    assert TWO.targets is not None
    crowd = torch.zeros_like(TWO.targets.valid)
    crowd[1, 0] = True
    boxes = TWO.targets.boxes.clone()
    boxes[1, 0] = torch.tensor([0.0, 0, 64, 64])
    crowded = replace(TWO, targets=replace(TWO.targets, boxes=boxes, ignore=crowd))
    with torch.no_grad():
        plain, ignored = model.loss(TWO), model.loss(crowded)
        shorter = model.loss(replace(TWO, sizes=torch.tensor([[64, 64], [32, 64]])))
    assert ignored["loss/heat"] < plain["loss/heat"]  # the whole second image counts neither way
    assert shorter["loss/heat"] < plain["loss/heat"]
    assert torch.equal(ignored["loss/size"], plain["loss/size"])


def test_the_loss_is_one_graph(model: nn.Module) -> None:
    model.eval()
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(TWO), model.loss(TWO))


class Prediction(nn.Module):
    """`predict` as a forward that returns tensors, which is what is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.model.predict(images, sizes)
        return found.boxes, found.scores, found.labels, found.valid


@pytest.mark.slow
def test_the_prediction_exports(model: nn.Module) -> None:
    alone = Prediction(model.eval())
    program = torch.export.export(alone, (TWO.images, TWO.sizes))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(TWO.images, TWO.sizes), alone(TWO.images, TWO.sizes))


def test_two_images_are_learnt(model: nn.Module) -> None:
    model.train()
    empty = model(batch_of([[]], 1))
    assert all(value.isfinite() for value in empty.values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        total(model(TWO)).backward()
        if step == 0:
            assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    with torch.no_grad():  # batch norms keep on learning: predict as they are in training
        found = model.predict(TWO.images, TWO.sizes)
    assert (found.scores[0] > 0.5).sum() == 2
    order = found.labels[0, :2].argsort()
    torch.testing.assert_close(found.boxes[0, :2][order], TWO.targets.boxes[0, :2], rtol=0, atol=3.0)  # pyright: ignore
    assert (found.scores[1] < 0.3).all()
