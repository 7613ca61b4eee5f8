"""Detectron2's configuration, key by key: what the weights of a checkpoint do not say."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

REQUIRED = object()

_OF_THE_WEIGHTS = (
    r"MASK_ON|DEVICE|WEIGHTS|LOAD_PROPOSALS|\w+\.NUM_CLASSES|RPN\.CONV_DIMS|RETINANET\.NUM_CONVS",
    r"RESNETS\.(DEPTH|NUM_GROUPS|WIDTH_PER_GROUP|\w+_CHANNELS|OUT_FEATURES|DEFORM_\w+)",
    r"FPN\.(OUT_CHANNELS|NORM)|ROI_(BOX|MASK)_HEAD\.(NUM_\w+|\w+_DIM|NORM|CLS_AGNOSTIC_\w+)",
)
_OF_TRAINING = (
    r"(RPN|ROI_HEADS|RETINANET)\.(IOU_\w+|BATCH_SIZE_PER_IMAGE|POSITIVE_FRACTION|LOSS_WEIGHT|BOUNDARY_THRESH"
    r"|PROPOSAL_APPEND_GT|PRIOR_PROB|FOCAL_LOSS_\w+)",
    r"\w+\.(SMOOTH_L1_\w+|BBOX_REG_LOSS_\w+|TRAIN_ON_PRED_BOXES|USE_FED_LOSS|FED_LOSS_\w+)",
)
_OF_OTHERS = (r"(ROI_KEYPOINT_HEAD|SEM_SEG_HEAD|PANOPTIC_FPN)\..+|ANCHOR_GENERATOR\.ANGLES",)
PASSED_OVER = re.compile(rf"MODEL\.({'|'.join((*_OF_THE_WEIGHTS, *_OF_TRAINING, *_OF_OTHERS))})")
"""Keys that change no prediction, or that the shapes of the weights answer."""


class Keys:
    """Values by their names with dots, such as `MODEL.RPN.NMS_THRESH`: the ones given, else the model zoo's.

    Args:
        given: what the configuration, or the checkpoint itself, says.
        source: where, for messages.
    """

    def __init__(self, given: Mapping[str, Any], source: str = "the checkpoint") -> None:
        self.given, self.source = dict(given), source
        self.unread = {key for key in given if key.startswith("MODEL.") and not PASSED_OVER.fullmatch(key)}

    def __call__(self, key: str, zoo: Any = REQUIRED) -> Any:
        """The value of a key.

        Args:
            key: its name.
            zoo: the value of the zoo's detectors of the kind, where they agree.

        Raises:
            ConfigError: nothing says it, and the zoo has several.
        """
        self.unread.discard(key)
        if key in self.given:
            return self.given[key]
        if zoo is REQUIRED:
            raise ConfigError(
                f"{self.source} does not say {key}, and the model zoo has more than one for such weights: "
                "give the configuration with --config (the config.yaml that Detectron2 wrote when it "
                "trained, or a YAML file with this key)"
            )
        return zoo

    def expect(self, key: str, *allowed: Any) -> None:
        """Read a key that has no counterpart here: it may be absent, or one of the values that we have."""
        if key in self.given and (value := self(key)) not in allowed:
            options = " or ".join(repr(option) for option in allowed)
            raise ConfigError(f"{self.source}: {key} is {value!r}; Boxwright has only {options}")

    def skip(self, *parts: str) -> None:
        """Keys, or all below them, that mean nothing for this detector (`MODEL.RPN` for a RetinaNet)."""
        self.unread = {key for key in self.unread if not any(f"{key}.".startswith(f"{p}.") for p in parts)}

    def finish(self) -> None:
        """Raise a ConfigError for keys of the model that nothing has read."""
        if self.unread:
            left = ", ".join(f"{key}={self.given[key]!r}" for key in sorted(self.unread))
            raise ConfigError(f"{self.source} has keys without a counterpart here: {left}")


def read_keys(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a YAML file of Detectron2, those of its `_BASE_` under it.

    Raises:
        ConfigError: it cannot be read, or holds an expression that would have to be run.
    """
    return {key: _value(value) for key, value in _flat(_merged(Path(path)), "")}


def _merged(path: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is no plain YAML ({' '.join(str(error).split())[:200]}); give the config.yaml that "
            "Detectron2 writes when it trains, where all is worked out, or a file with the keys that matter"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no keys of a configuration")
    base = loaded.pop("_BASE_", None)
    return loaded if base is None else _over(_merged(path.parent / base), loaded)


def _over(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = _over(base[key], value) if both else value
    return base


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _value(value: Any) -> Any:
    """A tuple is written as a string there."""
    if isinstance(value, str) and value[:1] in ("(", "["):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value
