"""The slots of a detector: what each kind of weightless part is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..structures import Assignment, DensePredictions, Priors, Targets
from .targets import Sample


class PriorGenerator(Protocol):
    """Anchors or points for feature maps of given shapes."""

    def num_per_place(self, level: int = 0) -> int: ...  # noqa: D102

    def __call__(  # noqa: D102
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        canvas: tuple[int, int],
        device: torch.device | None = None,
    ) -> Priors: ...


class Coder(Protocol):
    """Codes of boxes relative to priors; all of `(..., 4)`, strides `(...)`."""

    size: ClassVar[int]

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> Tensor: ...  # noqa: D102

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor) -> Tensor: ...  # noqa: D102


class Assigner(Protocol):
    """A rule that gives priors to ground truths; predictions are detached, and None for RoI stages."""

    def __call__(  # noqa: D102
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment: ...


class Sampler(Protocol):
    """A choice among the assigned priors; `losses` gives, if asked, their class losses `(B, A)`, detached."""

    def __call__(  # noqa: D102
        self, assignment: Assignment, losses: Callable[[], Tensor] | None = None
    ) -> Sample: ...


class ClassLoss(Protocol):
    """Logits `(..., columns)`, labels `(...)` and target scores `(...)` to losses `(...)`."""

    def columns(self, num_classes: int) -> int: ...  # noqa: D102

    def scores(self, logits: Tensor) -> Tensor: ...  # noqa: D102

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor: ...  # noqa: D102


class Quality(Protocol):
    """Loss and target of a quality branch."""

    negatives: ClassVar[bool]
    """Whether negatives are trained as well, towards 0."""

    def target(self, boxes: Tensor, priors: Tensor) -> Tensor: ...  # noqa: D102

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor: ...  # noqa: D102


BoxWeight = Callable[[Tensor, Tensor | None], Tensor]
"""Class scores `(P, C)` and quality targets `(P,)` of positives, without gradient, to weights `(P,)`."""

ElementLoss = Callable[[Tensor, Tensor], Tensor]
"""Prediction and target to losses: codes `(..., 4)` to `(..., 4)`, boxes `(..., 4)` to `(...)`."""
