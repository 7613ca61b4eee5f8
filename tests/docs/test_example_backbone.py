"""The documentation's backbone from outside the package: what is asked of every backbone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import fiddle as fdl
import pytest
import torch
from torch import nn

import boxwright as bw
from boxwright.config import from_json, to_json
from boxwright.engine.memory import blocks
from boxwright.errors import ConfigError
from boxwright.structures import Batch, Targets

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "poolformer.py"
RECIPE = f"{EXAMPLE}:fcos_poolformer_320"
SMALL = {"blocks": (1, 1, 2, 1), "channels": (8, 16, 24, 32)}


@pytest.fixture(scope="module")
def poolformer() -> ModuleType:
    bw.recipe(RECIPE)  # a recipe's file becomes a module under its name
    return sys.modules["poolformer"]


def test_block_by_hand(poolformer: ModuleType) -> None:
    block = poolformer.PoolBlock(1, norm=lambda channels: nn.Identity())
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    # The mean of the neighbours, without padding, takes the place of each value: x + mean - x.
    torch.testing.assert_close(block(x), torch.full((1, 1, 2, 2), 3.0))


def test_maps_are_what_the_specs_say(poolformer: ModuleType) -> None:
    torch.manual_seed(0)
    backbone = poolformer.PoolFormer(**SMALL).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, alone = backbone(images), backbone(images[:1])
    assert [spec.stride for spec in backbone.specs] == [8, 16, 32]
    for spec, together, single in zip(backbone.specs, maps, alone, strict=True):
        assert together.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)
        torch.testing.assert_close(together[:1], single, rtol=1e-4, atol=1e-5)


def test_default_is_the_papers_smallest(poolformer: ModuleType) -> None:
    with torch.device("meta"):
        backbone = poolformer.PoolFormer(out_stages=(1, 2, 3, 4))
    assert sum(len(stage) - 1 for stage in backbone.stages) == 12
    assert [(spec.channels, spec.stride) for spec in backbone.specs] == [
        (64, 4),
        (128, 8),
        (320, 16),
        (512, 32),
    ]
    assert len(blocks(nn.ModuleDict({"backbone": backbone}))) == 12  # what memory.checkpoint=auto finds


def test_a_run_that_kept_it_can_be_read_by_who_trusts_it(poolformer: ModuleType) -> None:
    kept = to_json(bw.recipe(RECIPE))
    with pytest.raises(ConfigError, match="not among the allowed"):
        from_json(kept)
    read = from_json(kept, ["poolformer"])
    assert fdl.get_callable(read.model.backbone) is sys.modules["poolformer"].PoolFormer


def test_weights_of_a_file(poolformer: ModuleType, tmp_path: Path) -> None:
    first = poolformer.PoolFormer(**SMALL)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    second = poolformer.PoolFormer(**SMALL, weights=tmp_path / "weights.pth")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_recipe_takes_norms_and_trains() -> None:
    experiment = bw.recipe(RECIPE)
    experiment.model.backbone.blocks, experiment.model.backbone.channels = SMALL.values()
    experiment.model.neck.out_channels = experiment.model.head.channels = 32
    bw.set_norm(experiment, partial(nn.GroupNorm, 2), "backbone")
    torch.manual_seed(0)
    model = bw.build(experiment, num_classes=2, pretrained=False)
    groups = {m.num_groups for m in model.backbone.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {2}
    boxes = torch.tensor([[[4.0, 6, 40, 44]], [[0, 0, 0, 0]]])
    valid = torch.tensor([[True], [False]])
    targets = Targets(boxes, torch.zeros(2, 1, dtype=torch.long), valid, torch.zeros_like(valid))
    batch = Batch(
        torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64], [60, 50]]), targets
    )
    losses = torch.compile(model.loss, fullgraph=True, backend="eager")(batch)
    sum(value for key, value in losses.items() if key.startswith("loss/")).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
