"""Less memory for the same training step: what is computed again, folded, or left to the compiler.

Activations that the backward pass needs are most of what a step holds. `checkpoint_modules` drops those
inside chosen modules and computes them again when their gradients are due (sub-linear memory: Chen et al.,
arXiv:1604.06174, Sec. 4.1); `set_folding` spares those between a convolution and a norm with fixed
statistics; `CompileBudget` lets the compiler choose. Values and gradients stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..models.layers import ConvNorm, Folding, set_folding
from .state import Hook, TrainState

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BACKBONE = "backbone"


@dataclass(frozen=True)
class Memory:
    """How a training step saves memory.

    Args:
        checkpoint: what is computed again in the backward pass instead of being kept: "none", "auto" (the
            residual blocks that train, and group norms: see `checkpoint_modules`), or names of stages and
            modules, as a tuple or with commas between them. A stage (`layer3`, `backbone.stage4`) is computed
            again in segments, another module as a whole. Gradients stay the same to the last bit.
        fold: norms with fixed statistics are multiplied into the convolutions before them, which spares their
            inputs and a pass over them: "always"; "auto" in bf16 and fp16 alone, since in float32 the other
            rounding is seen in the last decimals; or "never".
        compile_budget: with `compile`, the share of the activations, 0 to 1, that the compiler may keep; what
            is cheapest to compute again goes first. None leaves it to PyTorch.

    Raises:
        ConfigError: no such way of folding, or a budget outside 0..1.
    """

    checkpoint: str | tuple[str, ...] = "none"
    fold: Folding = "always"
    compile_budget: float | None = None

    def __post_init__(self) -> None:
        if self.fold not in ("auto", "always", "never"):
            raise ConfigError(f"memory.fold={self.fold!r}: choose auto, always or never")
        if self.compile_budget is not None and not 0 <= self.compile_budget <= 1:
            raise ConfigError(
                f"memory.compile_budget={self.compile_budget} is a share of the activations: choose 0 to 1"
            )

    @property
    def names(self) -> tuple[str, ...] | Literal["auto"]:
        """The modules to compute again, or "auto"."""
        chosen = self.checkpoint
        if not isinstance(chosen, str):
            return tuple(chosen)
        if chosen in ("none", "auto"):
            return "auto" if chosen == "auto" else ()
        return tuple(name.strip() for name in chosen.split(",") if name.strip())


def save_memory(model: nn.Module, memory: Memory, compiled: bool = False) -> tuple[Hook, ...]:
    """Set a model up as `memory` says, in place.

    Args:
        model: a detector, or any module.
        memory: the settings.
        compiled: whether the model will be compiled.

    Returns:
        The hooks that a run needs for it.

    Raises:
        ConfigError: a name in `memory.checkpoint` is none of the model's, or there is a budget for the
            compiler, but nothing is compiled.
    """
    if memory.compile_budget is not None and not compiled:
        raise ConfigError("memory.compile_budget needs compile=true: without it nobody keeps to the budget")
    set_folding(model, memory.fold)
    checkpoint_modules(model, memory.names)
    return () if memory.compile_budget is None else (CompileBudget(memory.compile_budget),)


class CompileBudget(Hook):
    """While a run lasts, graphs are compiled within a budget of activations.

    The compiler weighs what it costs to compute each activation again against its size and keeps the best
    choice within the budget (`torch._functorch.config.activation_memory_budget`).

    Args:
        budget: share of the activations that may be kept, 0 to 1; PyTorch's own is 1.
    """

    key = "compile_budget"

    def __init__(self, budget: float) -> None:
        self.budget, self.former = float(budget), 1.0

    def before_run(self, state: TrainState) -> None:
        """Set it."""
        self.former = functorch.activation_memory_budget
        functorch.activation_memory_budget = self.budget

    def after_run(self, state: TrainState) -> None:
        """Set back what was there."""
        functorch.activation_memory_budget = self.former


def checkpoint_modules(model: nn.Module, names: Sequence[str] | Literal["auto"] = "auto") -> tuple[str, ...]:
    """Let modules drop their inner activations and compute them again in the backward pass, in place.

    Only their inputs are kept. Random numbers are drawn again as they were, autocast is what it was, and
    norms learn each batch's statistics once. Parameters, names and the state dict stay, and prediction is
    not touched. In a compiled graph the compiler computes the same modules again.

    A row of n blocks in an `nn.Sequential` is computed again in about sqrt(n) segments, one after the other
    (the paper's Sec. 4.2): what is kept between segments and what a segment holds are balanced. "auto" takes
    all blocks of the backbone as one such row, whose segments end with its stages. Blocks in a head
    (`roi_heads.StageTrunk`) are computed again one by one: their gradients come first, when all else is held.
    In rows of convolutions with group norms (the towers of FCOS) "auto" computes norms and activations again,
    not the convolutions: what is kept is halved at the price of a few percent of a row's time.

    Args:
        model: a detector, or any module.
        names: "auto" for all `blocks` and `normed_rows`, else stages and modules by their names, with or
            without "backbone.".

    Returns:
        The names of the modules that are computed again, whole or in segments.

    Raises:
        ConfigError: there is no such module, or nothing in it to compute again; the message lists the stages.
    """
    modules = _modules(model)
    plan = _automatic(model) if names == "auto" else {}
    for name in () if names == "auto" else names:
        plan |= _named(model, name)
    for path, most in plan.items():
        if most:
            _recompute_row(modules[path], most)  # pyright: ignore[reportArgumentType]
        else:
            _recompute(modules[path])
    towers = normed_rows(model) if names == "auto" else {}
    for row in towers.values():
        _recompute_norms(row)
    return (*plan, *towers)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """What "auto" computes again, by name: the smallest repeated units with two or more layers of weights.

    Those are items of an `nn.Sequential` (in the backbone of any container) of which some weights train, and
    which hold no such item themselves: residual blocks, inverted residuals, transformer layers. A backbone
    without blocks names its `chains` of layers instead (VGG).
    """
    found = dict(_blocks(model, "", repeated=False))
    return {name: block for name, block in found.items() if any(p.requires_grad for p in block.parameters())}


def normed_rows(model: nn.Module) -> dict[str, nn.Sequential]:
    """Rows of convolutions with group norms, by name, of which some weights train."""
    rows: dict[str, Any] = {name: row for name, row in model.named_modules() if _is_row(row)}
    trained = {name: row for name, row in rows.items() if any(p.requires_grad for p in row.parameters())}
    return {name: row for name, row in trained.items() if len(row) > 1 and all(map(_is_normed, row))}


def _is_normed(unit: nn.Module) -> bool:
    return isinstance(unit, ConvNorm) and type(unit.norm) is nn.GroupNorm


def stages(model: nn.Module) -> list[str]:
    """Names of the containers of blocks, and of chains, that `checkpoint_modules` takes."""
    modules = _modules(model)
    whole = [_join(name, chain) for name, module in modules.items() for chain in _chains(module)]
    return [name for name, module in modules.items() if name in whole or _items(module, name, nested=False)]


def _recompute(module: nn.Module) -> None:
    if "plain_forward" not in module.__dict__:
        module.__dict__["plain_forward"] = module.forward
        module.forward = MethodType(_recomputed, module)


def _recompute_row(row: nn.Sequential, most: int) -> None:
    """Compute the items of a row again in segments of at most `most`, of nearly equal length."""
    if "segments" in row.__dict__:
        return
    items, count = list(row), math.ceil(len(row) / most)
    bounds = [round(i * len(items) / count) for i in range(count + 1)]
    row.__dict__["segments"] = [nn.Sequential(*items[a:b]) for a, b in pairwise(bounds)]  # not children
    for segment in row.__dict__["segments"]:
        _recompute(segment)
    row.forward = MethodType(_in_segments, row)


def _recompute_norms(row: nn.Sequential) -> None:
    """Keep what a row's convolutions give, and compute again what norms and activations make of it."""
    if "segments" in row.__dict__:
        return
    convs, after = [], []
    for unit in row:
        assert isinstance(unit, ConvNorm)
        convs.append(unit.conv)
        after.append([layer for layer in (unit.norm, unit.activation) if layer is not None])
    between = [nn.Sequential(*layers, conv) for layers, conv in zip(after, convs[1:], strict=False)]
    for segment in between:
        _recompute(segment)  # which ends where the convolution would begin: it keeps nothing but its input
    row.__dict__["segments"] = [convs[0], *between, nn.Sequential(*after[-1])]
    row.forward = MethodType(_in_segments, row)


def _in_segments(row: nn.Sequential, x: Any) -> Any:
    for segment in row.__dict__["segments"]:
        x = segment(x)
    return x


def _is_row(module: nn.Module | None) -> bool:
    """Whether a module does no more than to call its items one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _blocks(module: nn.Module, name: str, repeated: bool) -> Iterator[tuple[str, nn.Module]]:
    """The blocks inside a module, or the module itself if it is `repeated` and has none inside."""
    in_backbone = name == BACKBONE or name.startswith(f"{BACKBONE}.")
    repeats = isinstance(module, CONTAINERS if in_backbone else nn.Sequential)
    found = [(_join(name, chain), layers) for chain, layers in _chains(module).items()]
    if not found:
        for child_name, child in module.named_children():
            found += _blocks(child, _join(name, child_name), repeats)
    if not found and repeated and not isinstance(module, CONTAINERS) and _layers(module) > 1:
        found = [(name, module)]
    yield from found


def _automatic(model: nn.Module) -> dict[str, int]:
    """What "auto" computes again: rows with the most blocks of a segment, other modules with 0."""
    found = list(blocks(model))
    inside = [path for path in found if path.startswith(f"{BACKBONE}.")]
    plan = _by_row(inside, _modules(model), math.isqrt(len(inside)))
    return plan | {path: 0 for path in found if path not in inside}


def _named(model: nn.Module, name: str) -> dict[str, int]:
    """What a name stands for, as in `_automatic`: a row of blocks, or the module itself."""
    modules = _modules(model)
    path = next((path for path in (name, _join(BACKBONE, name)) if path and path in modules), None)
    listed = ", ".join(stages(model)) or "none"
    if path is None:
        raise ConfigError(
            f"memory.checkpoint names {name!r}, which this model does not have; its stages are: {listed}; "
            "any other module may be named by its path"
        )
    module = modules[path]
    plan = _by_row(_items(module, path, nested=True), modules)
    if not plan and isinstance(module, nn.ModuleList | nn.ModuleDict):  # never called as a whole
        plan = {_join(path, n): 0 for n, child in module.named_children() if _layers(child)}
    if not plan and not _layers(module):
        raise ConfigError(
            f"memory.checkpoint names {path!r}, which has no layers with weights: there is nothing to "
            f"compute again; the stages of this model are: {listed}"
        )
    return plan or {path: 0}


def _by_row(paths: Iterable[str], modules: Mapping[str, nn.Module], most: int = 0) -> dict[str, int]:
    """Blocks by the rows that they stand in, with `most` blocks a segment or the root of the row's length."""
    plan = {}
    for path in paths:
        row = modules[parent := path.rpartition(".")[0]]
        if _is_row(row):
            plan[parent] = most or math.isqrt(len(row))  # pyright: ignore[reportArgumentType]
        else:
            plan[path] = 0
    return plan


def _items(module: nn.Module, name: str, nested: bool) -> dict[str, nn.Module]:
    """The items of a container, and of containers in it if `nested`, that have several layers of weights."""
    found: dict[str, nn.Module] = {}
    for child_name, child in module.named_children() if isinstance(module, CONTAINERS) else ():
        if not isinstance(child, CONTAINERS):
            found |= {_join(name, child_name): child} if _layers(child) > 1 else {}
        elif nested:
            found |= _items(child, _join(name, child_name), nested)
    return found


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, chains among them."""
    found = {}
    for name, module in model.named_modules():
        found[name] = module
        found |= {_join(name, chain): layers for chain, layers in _chains(module).items()}
    return found


def _chains(module: nn.Module) -> Mapping[str, nn.Module]:
    """Rows of layers that a backbone without blocks calls one after the other."""
    return getattr(module, "chains", {})


def _layers(module: nn.Module) -> int:
    """How many layers inside have weights; a norm's vectors are none."""
    return sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a module that is computed again."""
    forward: Any = module.plain_forward
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler updates statistics once by itself
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # A list is kept as it is now: DenseNet's grows from layer to layer.
    args = tuple(list(value) if isinstance(value, list) else value for value in args)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, module), **kwargs)


def _contexts(module: nn.Module) -> tuple[nullcontext, _Again]:
    return nullcontext(), _Again(module)


class _Again:
    """What a module's second pass runs in: its norms learn nothing.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> Self:
        for norm in self.module.modules():
            if norm.training and getattr(norm, "running_mean", None) is not None:
                self.buffers.append((norm, dict(norm._buffers)))
                norm._buffers.update({k: None if b is None else b.clone() for k, b in norm._buffers.items()})
        return self

    def __exit__(self, *_: object) -> None:
        for norm, buffers in self.buffers:
            norm._buffers.update(buffers)
        self.buffers.clear()
