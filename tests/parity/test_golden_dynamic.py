"""Dynamic R-CNN's statistics and their effect, against MMDetection 3.3.0; see `golden_figures.py`."""

from __future__ import annotations

import math

import pytest
import torch
from golden_figures import Golden, load

from boxwright.models.adaptive import AdaptiveValue
from boxwright.models.detectors import TwoStageDetector

ABSENT = torch.tensor(0.0), torch.tensor(False)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("dynamic-rcnn_r50_fpn_1x_coco", "dynamic_rcnn_r50_fpn_1x")


def adaptive(golden: Golden) -> tuple[AdaptiveValue, AdaptiveValue]:
    """Threshold and beta, as freshly built."""
    assert isinstance(golden.model, TwoStageDetector)
    state = golden.model.roi.stages[0].state
    values = state["assigner"].threshold, state["code_loss"].beta  # pyright: ignore
    for value, initial in zip(values, (0.5, 1.0), strict=True):
        value.value.fill_(initial)
        value.history.fill_(math.nan)
        value.steps.zero_()
    return values


def update(value: AdaptiveValue) -> float:
    """What the last step before an update, one without a statistic, makes of the value."""
    value.steps.fill_(value.history.shape[0] - 1)
    value.record(*ABSENT)
    return value.value.item()


@torch.no_grad()
def test_statistics_of_the_first_iteration(golden: Golden) -> None:
    expected = golden.record["dynamic"]["first_iteration"]
    threshold, beta = adaptive(golden)
    golden.model.train().loss(golden.batch)
    assert threshold.history[0].item() == pytest.approx(expected["iou_history"][0], rel=1e-4)
    assert beta.history[0].item() == pytest.approx(expected["beta_history"][0], rel=1e-4)
    assert threshold.history[1:].isnan().all()
    assert update(threshold) == pytest.approx(expected["iou_threshold"])
    assert update(beta) == pytest.approx(expected["beta"])


@torch.no_grad()
def test_an_update_and_the_losses_after_it(golden: Golden) -> None:
    example = golden.record["dynamic"]["example"]
    threshold, beta = adaptive(golden)
    for value, name in ((threshold, "iou_history"), (beta, "beta_history")):
        value.history[: len(example[name])] = torch.tensor(example[name])
    assert update(threshold) == pytest.approx(example["iou_threshold"], rel=1e-6)
    assert update(beta) == pytest.approx(example["beta"], rel=1e-6)
    losses = golden.model.train().loss(golden.batch)
    expected = example["losses_after_update"]
    found = {
        name: losses[f"loss/{ours}"].item() for name, ours in (("loss_cls", "class"), ("loss_bbox", "box"))
    }
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)
    assert losses["stat/iou_threshold"].item() == pytest.approx(example["iou_threshold"], rel=1e-6)
    assert losses["stat/beta"].item() == pytest.approx(example["beta"], rel=1e-6)
