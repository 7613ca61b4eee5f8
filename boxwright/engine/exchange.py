"""What a training step itself does so that the gradients of all ranks become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import rank, world_size
from ..errors import ConfigError, some_of

if TYPE_CHECKING:
    from .powersgd import PowerSGD

SHOWN = 20
"""Most names that an error lists."""


@dataclass(frozen=True)
class Exchange:
    """What DistributedDataParallel and FSDP leave to the step; nothing in a single process.

    Args:
        required: names and parameters that must have a gradient after the backward passes.
        unsharded: parameters whose gradients nobody else averages.
        powersgd: what compresses the gradients, or None.
    """

    required: tuple[tuple[str, nn.Parameter], ...] = ()
    unsharded: tuple[nn.Parameter, ...] = ()
    powersgd: PowerSGD | None = None

    def complete(self) -> None:
        """Finish the gradients after a step's last backward pass.

        Raises:
            ConfigError: some parameters had no part in the loss; they are named.
        """
        unused = [name for name, p in self.required if p.grad is None and p.requires_grad]
        if unused:
            raise ConfigError(
                f"on rank {rank()} {len(unused)} parameters had no part in the loss, so that other ranks "
                f"would wait for their gradients: {some_of(unused, SHOWN)}. Freeze them "
                "(requires_grad_(False)) or give them a part in the loss; where steps differ in what they "
                "use, set communication.find_unused=true"
            )
        average_over_ranks([p.grad for p in self.unsharded if p.grad is not None])


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the ranks, in one exchange; of none, none."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def average_bucket(buffer: Tensor, dtype: torch.dtype) -> torch.futures.Future[Tensor]:
    """A bucket's mean over the ranks, sent and summed as `dtype`, in its own memory, as a future.

    The division comes first and in the bucket's own type: a sum of float16 numbers then stays in range where
    their mean does.
    """
    small = (buffer / world_size()).to(dtype)
    work = dist.all_reduce(small, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))
