"""Fine-tuning: a detector that begins as a trained one, which may know other classes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import CheckpointError, some_of
from .checkpoint import load_weights

LEAST = 0.5
"""Share of a model's numbers that has to come from the file; below it the file is of another detector."""


def start_from(model: nn.Module, source: str | Path) -> str:
    """Give a model the weights of a trained detector wherever names and shapes agree, in place.

    What depends on the number of classes has another shape where the classes are others, and stays as it is.

    Args:
        model: newly built.
        source: a run folder, a checkpoint, or a weights file, as of `engine.checkpoint.load_weights`.

    Returns:
        What was taken and what was not, in words, for the log.

    Raises:
        CheckpointError: the weights cannot be read, or most of the model is not among them.
    """
    weights, _ = load_weights(source)
    own = model.state_dict()
    fitting = {n: value for n, value in weights.items() if n in own and own[n].shape == value.shape}
    fresh = [name for name in own if name not in fitting]
    unknown = [name for name in weights if name not in own]
    share = sum(own[name].numel() for name in fitting) / max(1, sum(value.numel() for value in own.values()))
    if share < LEAST:
        raise CheckpointError(
            f"start_from={source}: only {share:.0%} of the model would come from there ({some_of(fresh)} "
            "would not): take the recipe that those weights are of. Files of MMDetection and Detectron2 are "
            "read after `boxwright convert`"
        )
    model.load_state_dict(fitting, strict=False)
    told = f"starting from {source}: {len(fitting)} of {len(own)} tensors, {share:.1%} of all numbers"
    if fresh:
        told += f"; anew begin {some_of(fresh)}"
    if unknown:
        told += f"; not used are {some_of(unknown)}"
    return told
