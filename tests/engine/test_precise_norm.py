"""Precise batch norm: the statistics of the whole population, and nothing else changed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from boxwright.engine import TrainingInterrupted
from boxwright.engine.hooks import PreciseNormHook
from boxwright.engine.hooks.precise_norm import precise_statistics
from boxwright.errors import ConfigError
from boxwright.models.layers import ConvNorm, InPlaceBatchNorm2d

RANKS = Path(__file__).with_name("precise_norm_ranks.py")


def population(toy, model, batches):
    """Mean and variance of what the norm of the toy model is given, over all pixels of some batches."""
    with torch.no_grad():
        maps = [model.backbone[0](b.images.float() / 255) for b in batches]
    pixels = torch.cat([m.transpose(0, 1).flatten(1) for m in maps], 1)
    return pixels.mean(1), pixels.var(1)


def assert_precise(toy, model, batches):
    mean, variance = population(toy, model, batches)
    torch.testing.assert_close(model.backbone[1].running_mean, mean)
    torch.testing.assert_close(model.backbone[1].running_var, variance)


def test_statistics_are_those_of_the_joined_data(toy):
    torch.manual_seed(0)
    model = toy.Net()
    model.backbone.append(nn.BatchNorm2d(4))
    model.backbone[3].eval()  # `train()` wakes it; a norm that keeps its statistics stays as it is
    model.backbone[3].train = lambda mode=True: model.backbone[3]
    batches = [toy.make_batch(0, 2), toy.make_batch(1, 5), toy.make_batch(2, 1)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    assert precise_statistics(model, batches) == 1
    assert not model.training
    assert_precise(toy, model, batches)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"backbone.1.running_mean", "backbone.1.running_var"}


def test_a_norm_that_takes_over_the_activation_is_seen_too(toy):
    model = toy.Net(norm=False)
    model.backbone[0] = ConvNorm(3, 4, 3, norm=InPlaceBatchNorm2d)
    batches = [toy.make_batch(0, 2), toy.make_batch(1, 3)]
    assert precise_statistics(model, batches) == 1
    with torch.no_grad():
        pixels = model.backbone[0].conv(torch.cat([b.images for b in batches]).float() / 255)
    norm = model.backbone[0].norm
    torch.testing.assert_close(norm.running_mean, pixels.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, pixels.transpose(0, 1).flatten(1).var(1))
    assert "activated" not in vars(norm)


def test_norms_that_see_nothing_keep_their_statistics(toy):
    model = toy.Net()
    assert precise_statistics(model, []) == 0
    assert (model.backbone[1].running_var == 1).all()


def test_a_run_ends_with_statistics_of_its_weights_and_of_their_average(toy, tmp_path):
    options = {"epochs": 2, "batches": 5, "ema_decay": 0.5}
    plain = toy.run(tmp_path / "plain", **options)
    precise = toy.run(tmp_path / "precise", **options, extra=[PreciseNormHook(batches=100)])
    batches = precise.loader.batches
    assert_precise(toy, precise.model, batches)
    assert_precise(toy, precise.ema.model, batches)
    assert not precise.ema.model.training
    first, second = toy.weights(plain), toy.weights(precise)
    differing = {k for k in first if not torch.equal(first[k], second[k])}
    assert {k.rpartition(".")[2] for k in differing} == {"running_mean", "running_var"}


def test_a_resumed_run_is_as_precise(toy, tmp_path):
    def run(name, *extra, **options):
        hook = PreciseNormHook(3, every=1)
        return toy.run(tmp_path / name, epochs=3, batches=5, ema_decay=0.5, extra=[hook, *extra], **options)

    whole = run("whole")
    with pytest.raises(TrainingInterrupted):
        run("cut", toy.Misfortune(7, None))
    toy.assert_equal(toy.weights(whole), toy.weights(run("cut", resume=True)))


def test_two_ranks_gather_what_both_saw(tmp_path, launcher):
    launcher.start(tmp_path, ranks=2, call=str(RANKS))
    assert launcher.wait() == [0, 0], launcher.said()
    assert {path.name for path in tmp_path.glob("agree*")} == {"agree0", "agree1"}


def test_a_model_without_such_norms_is_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="precise_norm=200: no batch norm of the model learns"):
        toy.run(tmp_path / "run", norm=False, extra=[PreciseNormHook()])
    with pytest.raises(ConfigError, match="batches=0"):
        PreciseNormHook(0)
