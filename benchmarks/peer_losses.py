"""That ours and a peer have the same losses: both train on every sample, as different ones would be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from boxwright.models.detectors import OneStageDetector, TwoStageDetector
from boxwright.models.samplers import RandomSampler
from boxwright.structures import Batch

EVERY = 1_000_000
"""More samples than there are."""


def compare(
    who: str, theirs: Mapping[str, float], ours: Mapping[str, float], tolerance: float = 1e-3
) -> None:
    """Check that losses agree.

    Raises:
        AssertionError: one differs by more than `tolerance`, as a share of it.
    """
    for key, value in theirs.items():
        gap = abs(value / ours[key] - 1)
        assert gap < tolerance, f"{key}: {who} has {value:.5g}, ours {ours[key]:.5g}"


def our_losses(model: OneStageDetector | TwoStageDetector, batch: Batch) -> dict[str, float]:
    """Ours, with samplers that take all: "class", "box", "rpn_class", ..."""
    model.train()
    heads = [model.rpn, *model.roi.stages] if isinstance(model, TwoStageDetector) else []
    before = [head.criterion for head in heads]
    for head in heads:
        every = RandomSampler(EVERY, positive_share=0.5)
        head.criterion = replace(head.criterion, sampler=every)  # pyright: ignore
    with torch.no_grad():
        losses = words(model.loss(batch))
    for head, criterion in zip(heads, before, strict=True):
        head.criterion = criterion  # pyright: ignore
    return losses


def words(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The losses by what they are of."""
    found = {key.removeprefix("loss/"): float(value) for key, value in losses.items()}
    return {key: value for key, value in found.items() if not key.startswith("stat/")}
