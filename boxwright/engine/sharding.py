"""Parameters, gradients and optimiser states in shards over the ranks, by PyTorch's FSDP2 (`fully_shard`).

Tensors in shards are `DTensor`s. They are known here by what they can do, so that runs without shards need
not import them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import is_main, world_size
from ..errors import ConfigError

Value = TypeVar("Value")


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was applied to a module."""
    return hasattr(module, "set_requires_gradient_sync")


def shard(
    model: nn.Module,
    stages: Sequence[Sequence[nn.Module]],
    device: torch.device,
    reduce: torch.dtype | None = None,
) -> tuple[nn.Parameter, ...]:
    """Spread a model's parameters over all ranks, in place; buffers stay whole.

    All ranks start from the first one's values. Before each training pass the buffers (running statistics)
    become the first rank's, as DistributedDataParallel does it.

    Args:
        model: on its device, with contiguous parameters.
        stages: modules of it whose parameters are gathered, used and freed together; those of all others
            are gathered for the whole step.
        device: of this rank.
        reduce: type in which gradients are summed; None for their own.

    Returns:
        Parameters that cannot be spread because they are single numbers: they stay whole on every rank, and
        who trains averages their gradients.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    for tensor in model.parameters():
        dist.broadcast(tensor.detach(), 0)
    numbers = {p for p in model.parameters() if p.ndim == 0}
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world_size(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False),
        "ignored_params": numbers,
    }
    for stage in stages:
        fully_shard(stage[0] if len(stage) == 1 else list(stage), reshard_after_forward=True, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    if device.type == "cpu":
        for part in sharded_parts(model):
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
    if hasattr(model, "predict"):
        register_fsdp_forward_method(model, "predict")
    model.register_forward_pre_hook(_follow_buffers)
    return tuple(p for p in model.parameters() if p.ndim == 0)


def rebind(optimizer: torch.optim.Optimizer, before: Mapping[nn.Parameter, str], model: nn.Module) -> None:
    """Let an optimiser that was made for whole parameters hold those in shards.

    Args:
        optimizer: has not stepped yet.
        before: names of the whole parameters.
        model: in shards.

    Raises:
        ConfigError: the optimiser holds parameters that are not the model's.
    """
    after = dict(model.named_parameters())
    mixed = len({is_split(p) for p in after.values()}) > 1
    for group in (*optimizer.param_groups, optimizer.defaults):
        if any(p not in before for p in group.get("params", ())):
            raise ConfigError("shard='fsdp': the optimiser holds parameters that are not the model's")
        if "params" in group:
            group["params"] = [after[before[p]] for p in group["params"]]
        if "fused" in group:
            group["fused"] = None  # there are no fused kernels for all optimisers
        if "foreach" in group:
            group["foreach"] = not mixed  # one operation cannot take tensors in shards and whole ones


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep all parameters whole inside, so that ranks may predict different numbers of batches.

    Every rank must enter and leave.
    """
    parts = sharded_parts(model)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def sharded_parts(model: nn.Module) -> list[Any]:
    """The modules that hold a group of parameters in shards; none in a model that is whole."""
    return [module for module in model.modules() if is_sharded(module)]


def is_split(tensor: Any) -> bool:
    """Whether a tensor lies in shards."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, sharing memory; a whole tensor itself."""
    return tensor.to_local() if is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(value: Value) -> Value:
    """The same dicts and lists with whole tensors, on the CPU, in place of those in shards.

    Every rank must call it with the same. One tensor is gathered at a time, and only the main rank keeps
    what it gathers; the others get None instead.
    """
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}  # pyright: ignore[reportReturnType]
    if isinstance(value, list):
        return [whole(item) for item in value]  # pyright: ignore[reportReturnType]
    if not is_split(value):
        return value
    full = value.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    return full.detach().cpu() if is_main() else None  # pyright: ignore[reportReturnType]


def spread_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor that every rank holds, in shards as `target` is; where `target` is whole, itself."""
    if not is_split(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of a whole state dict, whether the model is in shards or not."""
    own = model.state_dict()
    model.load_state_dict({
        name: spread_like(value, own[name]) if name in own else value for name, value in weights.items()
    })  # fmt: skip


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down so that the L2 norm of all of them is at most `limit`; shards count together.

    Every rank must call it.

    Returns:
        The norm before.
    """
    if not any(is_split(p) for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    shards = [local(g) for g in gradients if is_split(g)]
    others = [g for g in gradients if not is_split(g)]  # whole and equal on every rank: counted once
    square = torch.nn.utils.get_total_norm(shards).square()
    dist.all_reduce(square)
    norm = (square + torch.nn.utils.get_total_norm(others).to(square).square()).sqrt()
    torch._foreach_mul_([*shards, *others], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _follow_buffers(model: nn.Module, inputs: Any) -> None:
    if not (model.training and torch.is_grad_enabled()):
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for dtype, buffers in by_type.items():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        flat = flat.view(torch.uint8) if dtype == torch.bool else flat
        dist.broadcast(flat, 0)
        parts = flat.view(dtype).split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view(buffer.shape))
