"""What becomes of duplicates among the detections, changed in one line for any detector."""

from __future__ import annotations

from typing import Any

from fiddle import Buildable, Config

from ..config import check_values
from ..config.calls import parse_call
from ..errors import ConfigError
from ..models.suppression import GreedyNMS, SoftNMS, WeightedNMS
from .experiment import Experiment

PARTS = {part.__name__: part for part in (GreedyNMS, SoftNMS, WeightedNMS)}


def set_nms(experiment: Config[Experiment], nms: Any) -> None:
    """Set the suppression of a recipe's last post-process, in place; proposals keep theirs.

        bw.set_nms(experiment, SoftNMS("gaussian"))
        bw.set_nms(experiment, "WeightedNMS(iou=0.5)")

    Args:
        experiment: what a recipe returns; its `model` is changed.
        nms: a part of `models.suppression` or one of your own, the `fiddle.Config` of one, or its text as
            for `parse_nms`.

    Raises:
        ConfigError: it is none of them, or the model is neither of one stage nor of two.
    """
    part = parse_nms(nms) if isinstance(nms, str) else nms
    if not isinstance(part, Buildable) and (isinstance(part, type) or not callable(part)):
        raise ConfigError(f"nms={nms!r} is no suppression: give a part of boxwright.models.suppression")
    model = experiment.model
    stages = getattr(getattr(model, "roi", None), "stages", None)
    holder = stages[-1] if stages else getattr(model, "head", None)
    postprocess = getattr(holder, "postprocess", None)
    if postprocess is None or not hasattr(postprocess, "nms"):
        raise ConfigError(
            "nms is set in model.head.postprocess or in that of the last of model.roi.stages, but this "
            "recipe's model has neither; set its own argument"
        )
    postprocess.nms = part


def parse_nms(text: str) -> Config[Any]:
    """A suppression as it is written on the command line, such as `SoftNMS(method=gaussian, sigma=0.5)`.

    Raises:
        ConfigError: it is no part of `models.suppression` with arguments that it takes.
    """
    try:
        name, arguments = parse_call(text)
        part = PARTS[name]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"nms={text}: write {', '.join(PARTS)}, with named arguments or without, such as "
            "'SoftNMS(method=gaussian, sigma=0.5)' (in quotes)"
        ) from error
    try:
        config = Config(part, **arguments)
    except TypeError as error:
        raise ConfigError(f"nms={text}: {error}") from error
    try:
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"nms={text}: {error}") from error
    return config
