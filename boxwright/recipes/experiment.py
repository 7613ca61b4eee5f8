"""What a recipe describes: a detector, its data and how it is trained, as one flat dataclass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.optim import Optimizer

from ..data.canvas import Canvas
from ..engine.communication import Communication
from ..engine.memory import Memory
from ..engine.schedule import Schedule
from ..engine.state import Hook

if TYPE_CHECKING:  # not known when values are looked at: a folder's name is as good as a data set
    from ..data import Data


@dataclass
class Experiment:
    """A training run, fully described. Recipes return a `fiddle.Config` of it.

    Args:
        model: detector with `loss(batch)` and `predict(images, sizes)`; its class counts carry the tag
            `NumClasses` and are set from the data set's label map.
        data: data set with its splits, usually `Config(boxwright.data.folder, root=...)`.
        train_transforms: applied to each training image in turn, `(sample, generator) -> sample`.
        eval_transforms: the same for evaluation and prediction; nothing random among them.
        canvas: shapes that images are padded to.
        batch_size: images of one optimiser step over all processes and accumulated batches.
        workers: loader processes of each training process.
        reduced_decoding: whether JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where the first
            transform makes them at least as small, in training, evaluation and prediction: large photographs
            load several times as fast, and pixels differ a little (docs/own_data.md).
        optimizer: makes the optimiser of a model, usually `Partial(engine.optim.sgd, lr=...)`.
        base_batch_size: batch size that the learning rate is meant for; it is multiplied by
            `batch_size / base_batch_size` (linear scaling, Goyal et al., arXiv:1706.02677). None to leave it.
        schedule: factor of the learning rate at each step.
        epochs: passes over the training split.
        precision: arithmetic of a step; "auto" takes bf16 where the hardware is made for it, else fp32.
        clip_norm: largest norm of the gradient; None for no clipping.
        accumulate: batches whose gradients make one optimiser step.
        ema_decay: share of the past in the moving average of the weights; None for none. Where there is one,
            it is what is evaluated and loaded.
        precise_norm: batches that each process looks at after training, with the final weights, for the
            statistics of the batch norms (`engine.hooks.PreciseNormHook`); 0 keeps the running averages.
        start_from: run folder, checkpoint or weights file of a trained detector of the same recipe, whose
            weights the model begins with; what depends on the classes begins anew where they are others.
            Backbones then fetch no weights of their own. A resumed run goes on from its own checkpoint.
        seed: of weights, order and augmentation.
        compile: whether `torch.compile` makes one graph of the loss.
        evaluate_every: epochs between evaluations on the validation split; 0 for one at the end alone.
        metrics: what is measured: "bbox", and "segm" for detectors with masks.
        hooks: further hooks of the training loop.
        memory: what a step computes again, folds or leaves to the compiler to need less memory.
        communication: how several processes exchange gradients.
    """

    model: nn.Module
    data: Data
    train_transforms: Sequence[Callable[..., Any]]
    eval_transforms: Sequence[Callable[..., Any]]
    canvas: Canvas
    optimizer: Callable[[nn.Module], Optimizer]
    schedule: Schedule
    batch_size: int = 16
    workers: int = 2
    reduced_decoding: bool = False
    base_batch_size: int | None = 16
    epochs: int = 12
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    precise_norm: int = 0
    start_from: str | None = None
    seed: int = 0
    compile: bool = False
    evaluate_every: int = 1
    metrics: tuple[str, ...] = ("bbox",)
    hooks: Sequence[Hook] = ()
    memory: Memory = Memory()  # noqa: RUF009  frozen
    communication: Communication = Communication()  # noqa: RUF009  frozen
