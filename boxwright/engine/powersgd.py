"""PowerSGD (Vogels et al., arXiv:1905.13727): ranks exchange gradients as products of two thin matrices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import is_main, rank, world_size
from .exchange import average_bucket, average_over_ranks


class PowerSGD:
    """Compresses what DistributedDataParallel exchanges; `reduce` is its communication hook.

    For the gradient of each matrix, `M (n, m)`, ranks exchange `P = M Q (n, r)` and `Q = M^T P (m, r)`
    (algorithm 1 of the paper), which takes `r (n + m)` numbers instead of `n m`. What the product leaves out
    is kept on each rank and added to its next gradient (error feedback, algorithm 2, lines 7 to 9), so that
    nothing is lost but only late. Weights of convolutions are matrices of their output channels. Vectors,
    and matrices that would not become smaller, are averaged as they are.

    Departures from the paper: the optimiser applies its momentum to the averaged gradient as to any other
    (the paper adds the gradient once more, algorithm 2, line 13); P is made orthonormal by QR instead of
    Gram-Schmidt; the first `start` steps exchange whole gradients.

    State is held by the parameters' names, not by the buckets, whose layout changes after the first step of
    a process: so a resumed run goes on exactly. Collectives inside a bucket follow one another, so that all
    ranks have them in one order whatever the backend does in threads.

    Args:
        names: of the parameters that are exchanged.
        approximation_rank: r; clipped to n and m.
        start: steps that exchange whole gradients before.

    Attributes:
        step: exchanged steps of the run so far.
        errors: by name `(n, m)`, this rank's share that was never sent.
        bases: by name `(m, r)`, the Q of the last step, equal on all ranks (warm start, Sec. 4.2).
    """

    def __init__(self, names: Mapping[nn.Parameter, str], approximation_rank: int, start: int) -> None:
        self.names: dict[Tensor, str] = dict(names.items())
        self.approximation_rank, self.start = approximation_rank, start
        self.step = 0
        self.errors: dict[str, Tensor] = {}
        self.bases: dict[str, Tensor] = {}

    def reduce(self, bucket):  # no annotations: DDP compares them as objects, and here they are strings
        """The bucket's mean over the ranks, in its own memory, as a future."""
        buffer = bucket.buffer()
        if self.step < self.start:
            future = average_bucket(buffer, buffer.dtype)
        else:
            self._reduce_compressed(bucket.parameters(), bucket.gradients())
            future = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
            future.set_result(buffer)
        if bucket.is_last():
            self.step += 1
        return future

    def state_dict(self) -> dict[str, Any] | None:
        """What the next step rests on; every rank must call it. The main rank alone gets a dict."""
        errors = {name: error.cpu() for name, error in self.errors.items()}
        gathered: list[Any] | None = [None] * world_size() if is_main() else None
        dist.gather_object(errors, gathered)
        if gathered is None:
            return None
        return {"bases": {name: basis.cpu() for name, basis in self.bases.items()}, "errors": gathered}

    def load_state_dict(self, state: Mapping[str, Any] | None, step: int, device: torch.device) -> None:
        """Go on from a checkpoint after `step` steps.

        With another number of ranks each takes the mean of the errors, so that what is still to be sent is
        the same in sum.

        Args:
            state: of the main rank's `state_dict`; None where the run did not compress so far.
            step: optimiser steps done.
            device: of this rank.
        """
        self.step = step
        if state is None:
            return
        self.bases = {name: basis.to(device) for name, basis in state["bases"].items()}
        ranks: Sequence[Mapping[str, Tensor]] = state["errors"]
        if len(ranks) == world_size():
            self.errors = {name: error.to(device) for name, error in ranks[rank()].items()}
        else:
            self.errors = {
                name: torch.stack([errors[name] for errors in ranks]).mean(0).to(device) for name in ranks[0]
            }

    def _reduce_compressed(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over the ranks, up to what is left for later."""
        whole: list[Tensor] = []
        names: list[str] = []
        targets: list[Tensor] = []
        matrices: list[Tensor] = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self._rank(gradient):
                whole.append(gradient)
                continue
            name, matrix = self.names[parameter], gradient.flatten(1)
            names.append(name)
            targets.append(gradient)
            matrices.append(matrix + self.errors[name] if name in self.errors else matrix.clone())
        lefts = [m @ self._basis(name, m) for name, m in zip(names, matrices, strict=True)]
        average_over_ranks([*whole, *lefts])
        lefts = [torch.linalg.qr(left).Q for left in lefts]
        rights = [m.T @ left for m, left in zip(matrices, lefts, strict=True)]
        for name, m, left, right in zip(names, matrices, lefts, rights, strict=True):
            self.errors[name] = m - left @ right.T
        average_over_ranks(rights)
        for name, target, left, right in zip(names, targets, lefts, rights, strict=True):
            target.copy_((left @ right.T).view(target.shape))
            self.bases[name] = right

    def _rank(self, gradient: Tensor) -> int:
        """The rank that this gradient is compressed to; 0 where compressing would not save anything."""
        if gradient.ndim < 2:
            return 0
        n, m = gradient.shape[0], gradient[0].numel()
        r = min(n, m, self.approximation_rank)
        return r if r * (n + m) < n * m else 0

    def _basis(self, name: str, matrix: Tensor) -> Tensor:
        """The last Q of a parameter; at first normal random numbers, the same on all ranks."""
        if name not in self.bases:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            shape = (matrix.shape[1], min(*matrix.shape, self.approximation_rank))
            self.bases[name] = torch.randn(shape, generator=generator).to(matrix)
        return self.bases[name]
