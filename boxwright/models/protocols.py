"""The slots of a detector: what each kind of weightless part is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..structures import Assignment, DensePredictions, Priors, Targets
from .suppression import Kept
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
    """Codes `(..., size)` of boxes relative to priors `(..., 4)`, strides `(...)`.

    What `encode` gives, `(..., 4)`, is what a code loss compares codes with: codes, or what they stand for.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> Tensor: ...  # noqa: D102

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor) -> Tensor: ...  # noqa: D102


class Assigner(Protocol):
    """A rule that gives priors to ground truths; predictions are detached, and None for RoI stages."""

    def __call__(  # noqa: D102
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment: ...


class Sampler(Protocol):
    """A choice among the assigned priors; `losses` gives, if asked, their losses `(B, A)`, detached."""

    def __call__(  # noqa: D102
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample: ...


class ClassLoss(Protocol):
    """Logits `(..., columns)`, labels `(...)` and target scores `(...)` to losses `(...)`."""

    def columns(self, num_classes: int) -> int: ...  # noqa: D102

    def scores(self, logits: Tensor) -> Tensor: ...  # noqa: D102

    def best(self, logits: Tensor) -> Tensor: ...  # noqa: D102

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor: ...  # noqa: D102


class Suppression(Protocol):
    """What becomes of duplicates among candidates; boxes `(B, N, 4)`, the others `(B, N)`."""

    def __call__(  # noqa: D102
        self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int
    ) -> Kept: ...


class Quality(Protocol):
    """Loss and target of a quality branch."""

    negatives: ClassVar[bool]
    """Whether negatives are trained as well, towards 0."""

    def target(self, boxes: Tensor, priors: Tensor) -> Tensor: ...  # noqa: D102

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor: ...  # noqa: D102


BoxWeight = Callable[[Tensor, Tensor | None], Tensor]
"""Class scores `(P, C)` and quality targets `(P,)` of positives, without gradient, to weights `(P,)`."""

ElementLoss = Callable[[Tensor, Tensor], Tensor]
"""Prediction and target to losses: codes `(..., size)` and what `Coder.encode` gives
to `(..., 4)`, boxes `(..., 4)` to `(...)`."""
