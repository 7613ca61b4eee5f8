"""What the rest asks about ranks. Every function is right with one process and no process group."""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError, TrainingError

_GROUPS: dict[int | Literal["node"], dist.ProcessGroup] = {}  # by size; a process group is made once


def is_distributed() -> bool:
    """Whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's number, 0 in a single process."""
    return dist.get_rank() if is_distributed() else 0


def local_rank() -> int:
    """This process's number on its machine, as `torchrun` says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; the tensor itself with one process. No gradient flows."""
    if not is_distributed():
        return value
    from torch.distributed._functional_collectives import all_reduce  # traceable by torch.compile

    return all_reduce(value.detach(), "sum", dist.group.WORLD) / world_size()  # pyright: ignore[reportArgumentType]


def gather_over_ranks(value: Tensor) -> Tensor:
    """The tensors of all ranks, of one shape, joined in order of rank along the first dimension.

    No gradient flows.
    """
    if not is_distributed():
        return value
    from torch.distributed._functional_collectives import all_gather_tensor  # traceable by torch.compile

    return all_gather_tensor(value.detach(), 0, dist.group.WORLD)  # pyright: ignore[reportArgumentType]


def sum_over(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of a tensor over the ranks of a group. No gradient flows."""
    from torch.distributed._functional_collectives import all_reduce  # traceable by torch.compile

    return all_reduce(value.detach(), "sum", group) * 1.0  # pyright: ignore[reportArgumentType]


def share_group(ranks: int | Literal["node"] | None) -> dist.ProcessGroup | None:
    """The group of neighbouring ranks that this one belongs to; every rank has to ask for the same.

    Args:
        ranks: how many make a group, "node" for those of one machine (by the number that `torchrun` gives it,
            else by the name of the host), None for all.

    Returns:
        The group, which is made once; None with one process.

    Raises:
        ConfigError: the number of processes is no multiple of `ranks`.
    """
    world = world_size()
    if ranks is not None and ranks != "node" and (ranks < 1 or world % ranks):
        raise ConfigError(
            f"groups of {ranks} ranks cannot be made of {world} processes: choose a divisor of {world}"
        )
    if not is_distributed():
        return None
    if ranks is None or ranks == world:
        return dist.group.WORLD
    if ranks not in _GROUPS:
        if ranks == "node":
            nodes = gather_objects(os.environ.get("GROUP_RANK", socket.gethostname()))
            members = [[r for r in range(world) if nodes[r] == node] for node in dict.fromkeys(nodes)]
        else:
            members = [list(range(first, first + ranks)) for first in range(0, world, ranks)]
        group = dist.new_subgroups_by_enumeration(members)[0]
        assert isinstance(group, dist.ProcessGroup)
        _GROUPS[ranks] = group
    return _GROUPS[ranks]


def gather_objects(value: object) -> list:
    """The objects of all ranks, in order of rank, on every rank."""
    if not is_distributed():
        return [value]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def restarted() -> bool:
    """Whether `torchrun` has started any of the processes anew; every rank has to ask."""
    return any(gather_objects(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0))


def start(device: torch.device, seconds: float = 1800.0) -> None:
    """Join the process group that `torchrun` describes in the environment, if it does.

    Args:
        device: of this process; chooses NCCL or gloo.
        seconds: how long to wait for the other processes.

    Raises:
        TrainingError: some did not come; the main process names them.
    """
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        store, number, world = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(_meet(store, number, world, seconds), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=world)


def _meet(store: dist.Store, number: int, world: int, seconds: float) -> str:
    """A name in the store that only those processes know that are there now.

    `torchrun` keeps one store over restarts, in which the addresses of processes that are gone would mislead
    the new ones (https://github.com/pytorch/pytorch/issues/135712). So each asks under a name of its own, and
    the main one answers until all have taken its answer: what dead ones asked does no harm.
    """
    name = uuid.uuid4().hex
    if number:
        store.set(f"ask/{number}", name)
        try:
            store.wait([f"answer/{name}"], timedelta(seconds=seconds))
        except RuntimeError as error:
            raise TrainingError(f"rank {number}: the main process did not answer: {error}") from error
        common = store.get(f"answer/{name}").decode()
        store.set(f"{common}/{number}", "")
        return common
    absent, answered, deadline = set(range(1, world)), set(), time.monotonic() + seconds
    while absent:
        if time.monotonic() > deadline:
            raise TrainingError(f"ranks {sorted(absent)} of {world} did not come within {seconds:g} s")
        for other in sorted(absent):
            if store.check([f"{name}/{other}"]):
                absent.discard(other)
            elif store.check([f"ask/{other}"]) and (asking := store.get(f"ask/{other}")) not in answered:
                store.set(f"answer/{asking.decode()}", name)
                answered.add(asking)
        time.sleep(0.01)
    return name


def limit_waiting(seconds: float) -> None:
    """Let no collective of all ranks wait longer; what PyTorch's own timeout is set to."""
    if is_distributed():
        older = "_set_pg_timeout"  # its name before it was public
        set_timeout = getattr(dist, "set_timeout", None) or getattr(dist.distributed_c10d, older)
        set_timeout(timedelta(seconds=seconds))


def stop() -> None:
    """Leave the process group."""
    _GROUPS.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
