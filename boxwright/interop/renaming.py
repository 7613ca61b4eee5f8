"""Weights under other names: rename by rule, then load strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, some_of
from ..models.adaptive import AdaptiveValue

LISTED = 12
"""How many names an error lists of each kind."""


@dataclass(frozen=True)
class Rule:
    r"""One line of a table of names.

    Args:
        pattern: regular expression that a whole name of the source has to match.
        name: our name, with references such as `\1` to the pattern's groups; None drops the entry.
        convert: makes our tensor of theirs, where the layout differs.
    """

    pattern: str
    name: str | None
    convert: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class LoadReport:
    """What became of each entry of a source.

    Args:
        names: our name to the source's, for every entry that was loaded.
        dropped: names of the source that have no meaning here.
    """

    names: Mapping[str, str]
    dropped: tuple[str, ...] = ()


@dataclass
class _Misfit:
    unknown: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def raise_for(self, source: str, model: nn.Module) -> None:
        """Raise if there is anything to say."""
        parts = (
            (self.unknown, "unexpected: no rule knows"),
            (self.unwanted, "unexpected: the model has no place for"),
            (self.reshaped, "reshaped: the shape differs of"),
            (self.missing, "missing: the source does not have"),
        )
        lines = [f"{len(names)} {why} {some_of(names, LISTED)}" for names, why in parts if names]
        if lines:
            raise CheckpointError(
                f"{source} does not fit this {type(model).__name__}: {'; '.join(lines)}. Build the model "
                "with the settings (depth, norm, number of classes) that the weights were trained with"
            )


def load_renamed(
    model: nn.Module, state: Mapping[str, Tensor], rules: Iterable[Rule], source: str = "the state dict"
) -> LoadReport:
    """Fill a model with renamed weights; nothing is loaded unless all fits.

    Entries named `num_batches_tracked` may be absent or in excess: frozen norms do not count batches. What
    the model keeps of its own training (`models.adaptive`) is left as it is.

    Args:
        model: what is filled.
        state: tensors by the source's names.
        rules: the first whose pattern matches a name decides.
        source: what messages call it.

    Raises:
        CheckpointError: names that no rule knows or the model lacks, entries of the model that the source
            does not fill, or shapes that differ; all of them are listed.
    """
    table = [(re.compile(rule.pattern), rule) for rule in rules]
    wanted, filled = model.state_dict(), {}
    names: dict[str, str] = {}
    dropped: list[str] = []
    misfit = _Misfit()
    for key, value in state.items():
        match = next(((m, rule) for pattern, rule in table if (m := pattern.fullmatch(key))), None)
        if match is None:
            misfit.unknown.append(key)
            continue
        found, rule = match
        name = None if rule.name is None else found.expand(rule.name)
        if name is None or (name not in wanted and name.endswith("num_batches_tracked")):
            dropped.append(key)
        elif name not in wanted:
            misfit.unwanted.append(f"{key} (as {name})")
        elif name in names:
            misfit.unwanted.append(f"{key} ({names[name]} is {name} already)")
        else:
            tensor = value if rule.convert is None else rule.convert(value)
            names[name], filled[name] = key, tensor
            if tensor.shape != wanted[name].shape:
                shapes = f"{tuple(tensor.shape)}, in the model {tuple(wanted[name].shape)}"
                misfit.reshaped.append(f"{key} ({shapes})")
    kept = state_of_training(model)
    missing = [name for name in wanted if name not in filled and name not in kept]
    misfit.missing += [name for name in missing if not name.endswith("num_batches_tracked")]
    misfit.raise_for(source, model)
    with torch.no_grad():
        model.load_state_dict(filled, strict=False)
    return LoadReport(names, tuple(dropped))


def state_of_training(model: nn.Module) -> set[str]:
    """Names in the state dict that are no weights but follow the training; other libraries have none."""
    return {
        f"{name}.{entry}"
        for name, module in model.named_modules()
        if isinstance(module, AdaptiveValue)
        for entry in module.state_dict()
    }
