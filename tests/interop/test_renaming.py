"""Renaming by rule: what fits is loaded, all that does not is listed, and then nothing is loaded."""

import pytest
import torch
from torch import nn

from boxwright.errors import CheckpointError
from boxwright.interop import LoadReport, Rule, load_renamed

RULES = (
    Rule(r"old\.(\d)\.(weight|bias)", r"\1.\2"),
    Rule(r"turned\.(\d)\.weight", r"\1.weight", lambda tensor: tensor.T),
    Rule(r"extra\..+", None),
)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2, bias=False))


def state() -> dict[str, torch.Tensor]:
    return {
        "old.0.weight": torch.ones(3, 2),
        "old.0.bias": torch.ones(3),
        "stats.running_mean": torch.ones(3),
        "stats.running_var": torch.ones(3),
        "turned.2.weight": torch.arange(6.0).reshape(3, 2),
        "extra.scale": torch.ones(1),
    }


STATS = Rule(r"stats\.(.+)", r"1.\1")


def test_names_layouts_and_dropped_entries() -> None:
    target = model()
    report = load_renamed(target, state(), (*RULES, STATS))
    names = {
        "0.weight": "old.0.weight",
        "0.bias": "old.0.bias",
        "1.running_mean": "stats.running_mean",
        "1.running_var": "stats.running_var",
        "2.weight": "turned.2.weight",
    }
    assert report == LoadReport(names, ("extra.scale",))
    torch.testing.assert_close(target[2].weight.detach(), torch.arange(6.0).reshape(3, 2).T)


def test_a_count_of_batches_may_be_absent_or_in_excess() -> None:
    target = nn.Sequential(nn.Linear(2, 2))
    values = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2), "0.num_batches_tracked": torch.tensor(3)}
    report = load_renamed(target, values, [Rule(r"(.+)", r"\1")])
    assert report.dropped == ("0.num_batches_tracked",)


def test_all_misfits_are_listed_and_nothing_is_loaded() -> None:
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    values = state() | {"unheard.of": torch.ones(1), "old.7.bias": torch.ones(3), "old.0.bias": torch.ones(4)}
    values["turned.0.weight"] = torch.ones(2, 3)
    del values["turned.2.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_renamed(target, values, (*RULES, STATS), "the file x.pth")
    message = str(caught.value)
    for part in (
        "the file x.pth does not fit this Sequential",
        "1 unexpected: no rule knows unheard.of",
        "2 unexpected: the model has no place for old.7.bias (as 7.bias), turned.0.weight (old.0.weight",
        "1 reshaped: the shape differs of old.0.bias ((4,), in the model (3,))",
        "1 missing: the source does not have 2.weight",
    ):
        assert part in message
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_long_lists_are_cut() -> None:
    values = {f"unheard.{i}": torch.ones(1) for i in range(40)}
    with pytest.raises(CheckpointError, match="and 28 more"):
        load_renamed(nn.Identity(), values, RULES)
