"""Exact statistics for batch norm, once the weights are fixed ("precise BN")."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...distributed import is_distributed, world_size
from ...errors import ConfigError
from ...structures import Batch
from ..messages import notify
from ..placing import place
from ..randomness import undisturbed
from ..sharding import gathered
from ..state import Hook, TrainState, image_count, without_ids


class PreciseNormHook(Hook):
    """Puts the statistics of the whole population in the place of running averages (PreciseBN).

    A running mean and variance are moving averages over the last steps, each of other weights. Here the fixed
    weights look at `batches` batches of training data on every rank, and the moments of what each norm was
    given are put together over all pixels, batches and ranks (Wu and Johnson, arXiv:2105.07576, Sec. 3.1:
    `mean = E[mean_B]`, `variance = E[mean_B^2 + variance_B] - E[mean_B]^2`, here weighted by the number
    of pixels, so that batches of unequal size count as they should). Batches are normalised by their own
    statistics meanwhile, as in training. Norms that keep their statistics (`norm_eval`, frozen stages) are
    left alone. A moving average of the weights gets statistics of its own.

    It comes before the checkpoint and the validation of its epoch, and disturbs nothing else: random states,
    other buffers and the loader's order are as they were.

    Args:
        batches: how many each rank looks at; all of an epoch where there are fewer.
        every: epochs between two passes; there is always one at the end of the run, and with 0 only there.

    Raises:
        ConfigError: a number is out of range; at the start of the run: no norm of the model learns
            statistics.
    """

    key = "precise_norm"
    priority = 80  # before the checkpoint

    def __init__(self, batches: int = 200, every: int = 0) -> None:
        if batches < 1 or every < 0:
            raise ConfigError(
                f"PreciseNormHook: batches={batches} must be at least 1 and every={every} at least 0 "
                "(only at the end)"
            )
        self.batches, self.every = batches, every

    def before_run(self, state: TrainState) -> None:
        """Look whether there is anything to do."""
        training = state.model.training
        found = learning_norms(state.model.train())
        state.model.train(training)
        if not found:
            raise ConfigError(
                f"precise_norm={self.batches}: no batch norm of the model learns statistics, "
                "so none can be made precise. Set norm_eval=False of the backbone, or leave this out"
            )

    def after_train_epoch(self, state: TrainState) -> None:
        """Gather, where it is time."""
        if state.epoch == state.epochs or (self.every and state.epoch % self.every == 0):
            models = [state.model] if state.ema is None else [state.model, state.ema.model]
            images = layers = 0
            with undisturbed(state.device):
                for model in models:
                    images, layers = self._pass(state, model)
            notify(f"batch norm: statistics of {images} images put into {layers} layers")

    def _pass(self, state: TrainState, model: nn.Module) -> tuple[int, int]:
        """One look at the batches; how many images all ranks saw, and how many norms got statistics."""
        images = 0

        def batches() -> Iterator[Batch]:
            nonlocal images
            for batch in itertools.islice(state.loader, self.batches):
                images += image_count([batch])
                yield place(batch, state.device, state.precision.channels_last)

        position = state.loader.state_dict()
        # An epoch of its own: `enter` and `set_epoch` give the coming one from its beginning.
        state.loader.set_epoch(state.epochs + state.epoch)
        try:
            with gathered(model), state.precision.autocast(state.device):
                layers = precise_statistics(model, batches())
        finally:
            state.loader.load_state_dict(position)
        return images * world_size(), layers


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set the running statistics of a model's batch norms to those of some batches, over all ranks.

    Every rank calls it with as many batches. Only the statistics change.

    Args:
        model: `forward(batch)`, in any mode; its norms' training modes decide which of them learn.
        batches: on the model's device.

    Returns:
        How many norms have seen something and got statistics.
    """
    training = model.training
    model.train()
    norms = learning_norms(model)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments = {name: Moments(norm) for name, norm in norms.items()}
    try:
        with ExitStack() as hooks:
            for name, norm in norms.items():
                hooks.enter_context(_watched(norm, moments[name]))
            for batch in batches:
                # Not `model(batch)`: a compiled model does not call hooks that came after it was compiled.
                model._call_impl(without_ids(batch))
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
        model.train(training)
    gathered = {name: moments[name].over_ranks() for name in norms}
    seen = 0
    for name, norm in norms.items():
        count, mean, variance = gathered[name]
        if count > 0:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            seen += 1
    return seen


def learning_norms(model: nn.Module) -> Mapping[str, _BatchNorm]:
    """The batch norms of a model in training mode that learn their statistics now, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    }


class Moments:
    """Count, mean and sum of squared deviations of each channel, in float64 where the device has it.

    Batches are joined by the formula of Chan, Golub and LeVeque (1983) for two samples, which subtracts no
    large numbers from each other.

    Args:
        norm: whose inputs are looked at.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        device = norm.running_mean.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.count = torch.zeros((), dtype=dtype, device=device)
        self.mean = torch.zeros(norm.num_features, dtype=dtype, device=device)
        self.deviation = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Take in `(B, C, ...)`."""
        if not x.numel():
            return
        values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(values, [0, *range(2, x.ndim)], correction=0)
        count = self.mean.new_full((), x.numel() // x.shape[1])
        self._join(count, mean.to(self.mean.dtype), variance.to(self.mean.dtype) * count)

    def over_ranks(self) -> tuple[float, Tensor, Tensor]:
        """Count, mean and unbiased variance over all ranks, which all call it."""
        if is_distributed():
            import torch.distributed as dist

            mine = torch.cat((self.count[None], self.mean, self.deviation))
            ranks = [torch.empty_like(mine) for _ in range(world_size())]
            dist.all_gather(ranks, mine)
            self.count, self.mean, self.deviation = (
                torch.zeros_like(t) for t in (self.count, self.mean, self.deviation)
            )
            channels = len(self.mean)
            for values in ranks:
                self._join(values[0], *values[1:].split(channels))
        return float(self.count), self.mean, self.deviation / (self.count - 1).clamp(min=1)

    def _join(self, count: Tensor, mean: Tensor, deviation: Tensor) -> None:
        total = (self.count + count).clamp(min=1)
        step = mean - self.mean
        self.deviation = self.deviation + deviation + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = self.count + count


@contextmanager
def _watched(norm: Any, moments: Moments) -> Iterator[None]:
    """Show the norm's inputs to `moments`."""
    handle = norm.register_forward_pre_hook(lambda _, inputs: moments.add(inputs[0]))
    activated = getattr(norm, "activated", None)  # the other way to call a norm that takes over an activation

    def shown(x: Tensor, activation: nn.Module) -> Tensor:
        assert activated is not None
        moments.add(x)
        return activated(x, activation)

    if activated is not None:
        norm.activated = shown
    try:
        yield
    finally:
        handle.remove()
        if activated is not None:
            del norm.activated
