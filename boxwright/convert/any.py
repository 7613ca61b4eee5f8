"""One door for all files that can be converted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from fiddle import Config

from ..errors import CheckpointError, ConfigError
from ..recipes.experiment import Experiment
from .checkpoint import Conversion, mmdetection_to_ours, read_checkpoint
from .detectron2 import detectron2_to_ours

DETECTRON2 = ("backbone.bottom_up.", "backbone.stem.", "backbone.res2.", "proposal_generator.")


def convert_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    recipe: Config[Experiment] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Write a checkpoint of MMDetection or Detectron2 as one of ours; which it is, its names say.

    Arguments and errors as of `convert_mmdetection` and `convert_detectron2`; a recipe is for MMDetection
    alone.
    """
    loaded = read_checkpoint(source)
    weights = loaded.get("model", loaded)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{source} holds a {type(weights).__name__}, not a checkpoint")
    if any(str(name).startswith(DETECTRON2) for name in weights):
        if recipe is not None:
            raise ConfigError(
                f"{source} is a checkpoint of Detectron2, whose detector is read off its weights: leave out "
                "the recipe"
            )
        return detectron2_to_ours(loaded, source, out, config, classes)
    return mmdetection_to_ours(loaded, source, out, config, recipe, classes)
