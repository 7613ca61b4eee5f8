"""A head that is trained at sampled places alone: the same losses and gradients, and less that is kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from boxwright.models import targets as targets_module
from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import DenseCriterion, DenseHead, DensePostprocess, sampled
from boxwright.models.layers import group_norm
from boxwright.models.losses import BinaryCrossEntropy, SmoothL1
from boxwright.models.priors import Anchors
from boxwright.models.samplers import AllSampler, OHEMSampler, RandomSampler
from boxwright.models.targets import Sample
from boxwright.structures import FeatureSpec, Targets

SPECS = (FeatureSpec(6, 4), FeatureSpec(6, 8))
SIZES = torch.tensor([[64, 96], [60, 80]])
CANVAS = (64, 96)


def make_head(sampler=RandomSampler(number=40), **layers) -> DenseHead:  # noqa: B008  frozen
    torch.manual_seed(0)
    criterion = DenseCriterion(
        MaxIoUAssigner(0.6, 0.3, min_positive_iou=0.3, match_low_quality=True),
        BinaryCrossEntropy(),
        sampler,
        SmoothL1(),
    )
    settings = {"channels": 8, "stem_convs": 1, "tower_convs": 0, "predictor_kernel": 1, "init_std": 0.3}
    return DenseHead(
        SPECS,
        num_classes=1,
        priors=Anchors(scales=(2.0, 4.0)),
        coder=DeltaCoder(),
        criterion=criterion,
        postprocess=DensePostprocess(),
        **(settings | layers),
    )


def make_features(channels_last: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 6, CANVAS[0] // s, CANVAS[1] // s, generator=generator) for s in (4, 8)]
    kind = torch.channels_last if channels_last else torch.contiguous_format
    return [m.contiguous(memory_format=kind).requires_grad_() for m in maps]


def make_targets() -> Targets:
    boxes = torch.tensor([[[4.0, 6, 30, 40], [50, 20, 70, 60]], [[1, 2, 20, 17], [40, 8, 79, 55]]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    return Targets(boxes, torch.zeros(2, 2, dtype=torch.int64), valid, ~valid)


def step(head: DenseHead, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Losses and gradients of a step whose sample is always the same."""
    head.zero_grad()
    torch.manual_seed(5)
    losses = head.loss(head(features), head.place_priors(features, CANVAS), make_targets(), SIZES)
    sum(v for k, v in losses.items() if k.startswith("loss/")).backward()  # pyright: ignore
    found = {name: value.detach() for name, value in losses.items()}
    grads = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    return found | grads | {f"level {i}": f.grad for i, f in enumerate(features) if f.grad is not None}


@pytest.mark.parametrize("sampler", [RandomSampler(number=40), OHEMSampler(number=40, positive_share=0.5)])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("skips_empty", [True, False])
def test_losses_and_gradients_are_those_of_all_places(sampler, channels_last, skips_empty, monkeypatch):
    if not skips_empty:
        monkeypatch.setattr(targets_module, "eager_on_cpu", lambda device: False)
    head = make_head(sampler)
    with torch.enable_grad():
        assert isinstance(head(make_features()), sampled.RepeatablePredictions)
    found = step(head, make_features(channels_last))
    monkeypatch.setattr(sampled, "FEWER", 10**9)
    assert not isinstance(head(make_features()), sampled.RepeatablePredictions)
    expected = step(head, make_features(channels_last))
    assert found.keys() == expected.keys()
    assert len(found) == 4 + 6 + 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert all(found[f"level {i}"].any() for i in (0, 1))


def test_outputs_of_chosen_priors_at_corners_and_borders():
    head, features = make_head(), make_features()
    every = head.everywhere(features)
    count = every.codes.shape[1]
    first = 16 * 24 * 6  # priors of the first level
    index = torch.tensor([0, 5, 23 * 6 + 1, 15 * 24 * 6, first - 1, first, first + 11 * 6 + 3, count - 1])
    index = torch.stack((index, index.flip(0)))
    valid = torch.ones_like(index, dtype=torch.bool)
    valid[0, 2] = valid[1, 7] = False
    found = head.at_sample(features, Sample(index, index, valid, ~valid & False))
    for ours, dense in ((found.class_logits, every.class_logits), (found.codes, every.codes)):
        expected = torch.stack([dense[i, index[i]] for i in (0, 1)]) * valid[..., None]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_under_autocast_every_parameter_learns():
    """The pass without gradient must not leave casts without gradient to the one with it."""
    head = make_head()
    expected = step(head, make_features())
    features = make_features()
    with torch.autocast("cpu", torch.bfloat16):
        found = step(head, features)
    for name, _ in head.named_parameters():
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, name


def test_neither_levels_nor_activations_are_kept(monkeypatch):
    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        features = make_features()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            torch.manual_seed(5)
            head.loss(head(features), head.place_priors(features, CANVAS), make_targets(), SIZES)
        return sum(sizes.values())

    head = make_head(RandomSampler(number=4), channels=64)
    few = kept()
    monkeypatch.setattr(sampled, "FEWER", 10**9)
    of_levels = sum(f.nbytes for f in make_features())
    assert kept() - few > of_levels * (1 + 64 / 6) * 0.8


def test_it_compiles_whole():
    head, features = make_head(), make_features()
    index = torch.tensor([[0, 700, 2303, 2304, 2879], [5, 6, 7, 2304, 2600]])
    valid = torch.ones_like(index, dtype=torch.bool)

    def total(*maps: torch.Tensor) -> torch.Tensor:
        found = sampled.of_sample(head(maps), Sample(index, index, valid, ~valid))
        return (found.class_logits.sigmoid() + found.codes.square()).sum()

    torch._dynamo.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    results = []
    for run in (total, compiled):
        value = run(*features)
        results.append((value.detach(), *torch.autograd.grad(value, [*features, *head.stem.parameters()])))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        partial(make_head, AllSampler()),
        partial(make_head, RandomSampler(number=10_000)),
        partial(make_head, norm=partial(group_norm, groups=4)),
        partial(make_head, tower_convs=1),
        partial(make_head, stem_convs=2),
        partial(make_head, predictor_kernel=3),
        partial(make_head, scale_levels=True),
    ],
)
def test_other_heads_are_trained_at_all_places(head):
    assert not isinstance(head()(make_features()), sampled.RepeatablePredictions)


def test_without_gradient_nothing_is_looked_at_again():
    with torch.no_grad():
        assert not isinstance(make_head()(make_features()), sampled.RepeatablePredictions)
