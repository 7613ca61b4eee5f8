"""Run a detector over a data set and measure what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from ..distributed import is_main
from ..structures import Batch, Detections, to_device


class Evaluator(Protocol):
    """What is measured: forget, take a batch, compute. `compute` is called by every rank."""

    def reset(self) -> None:
        """Forget all predictions."""
        ...

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take the predictions for one batch."""
        ...

    def compute(self) -> dict[str, float]:
        """Flat metrics by key."""
        ...


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    evaluators: Sequence[Evaluator],
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    progress: bool = True,
    before_iter: Callable[[Batch], None] | None = None,
    after_iter: Callable[[Batch, Detections], None] | None = None,
    channels_last: bool = False,
) -> dict[str, float]:
    """Metrics of a detector over all batches of a loader.

    Args:
        model: a detector with `predict(images, sizes) -> Detections`; put into eval mode and afterwards back.
        loader: batches of this rank, with `image_ids` and `original_sizes`.
        evaluators: reset at the beginning; their metrics are merged.
        device: where the model is.
        autocast: type to compute in (torch.bfloat16, torch.float16); None for the weights' own.
        progress: show a progress bar (on the main process, in a terminal).
        before_iter: called with each batch before it is predicted.
        after_iter: called with each batch and its predictions after the evaluators have taken them.
        channels_last: whether the model's convolutions have the channels innermost in memory.

    Raises:
        ValueError: two evaluators give the same key.
    """
    device = torch.device(device)
    was_training = model.training
    model.eval()
    for evaluator in evaluators:
        evaluator.reset()
    try:
        with torch.inference_mode(), _progress(progress) as advance:
            for batch in loader:
                if before_iter is not None:
                    before_iter(batch)
                detections = predict_batch(model, batch, device, autocast, channels_last)
                for evaluator in evaluators:
                    evaluator.update(batch, detections)
                if after_iter is not None:
                    after_iter(batch, detections)
                advance(loader)
    finally:
        model.train(was_training)
    return merge_metrics(evaluators)


def predict_batch(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
) -> Detections:
    """The model's predictions for a batch, which is brought to the model's device and layout first."""
    moved = to_device(Batch(batch.images, batch.sizes), device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = moved.images.contiguous(memory_format=layout)
    with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        return model.predict(images, moved.sizes)  # pyright: ignore[reportCallIssue]


def merge_metrics(evaluators: Sequence[Evaluator]) -> dict[str, float]:
    """The metrics of all evaluators in one mapping.

    Raises:
        ValueError: two evaluators give the same key.
    """
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        computed = evaluator.compute()
        if twice := sorted(metrics.keys() & computed.keys()):
            raise ValueError(f"two evaluators measure {twice[0]!r}; pass evaluators with different metrics")
        metrics.update(computed)
    return metrics


class _progress:
    """A progress bar that learns its length from the loader at the first step."""

    def __init__(self, shown: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.shown = shown and is_main()
        columns = (TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, transient=True, disable=not self.shown)
        self.task = self.bar.add_task("evaluate", total=None)

    def __enter__(self) -> Callable[[Iterable], None]:
        self.bar.start()
        return self.advance

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, loader: Iterable) -> None:
        """One batch is done."""
        total = len(loader) if hasattr(loader, "__len__") else None  # pyright: ignore[reportArgumentType]
        self.bar.update(self.task, advance=1, total=total)
