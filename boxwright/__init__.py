"""Boxwright: object detection and instance segmentation for PyTorch.

    import boxwright as bw

    experiment = bw.recipe("faster_rcnn_r50_fpn_1x")
    experiment.data = bw.data.folder("datasets/bccd")
    run = bw.train(experiment, out="runs/bccd")
    print(bw.evaluate(run))
    detector = bw.load("runs/bccd")
    bw.show(detector("photo.jpg"))

Names are imported on first use: `import boxwright` itself loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import config as config
    from . import data as data
    from . import engine as engine
    from . import evaluation as evaluation
    from . import interop as interop
    from . import models as models
    from . import ops as ops
    from .api import Run as Run
    from .api import build as build
    from .api import evaluate as evaluate
    from .api import load as load
    from .api import show as show
    from .api import train as train
    from .errors import BoxwrightError as BoxwrightError
    from .inference import Detector as Detector
    from .inference import ImageDetections as ImageDetections
    from .labels import LabelMap as LabelMap
    from .metrics import Metrics as Metrics
    from .recipes import recipe as recipe
    from .recipes import recipes as recipes
    from .recipes.experiment import Experiment as Experiment
    from .recipes.norms import set_norm as set_norm
    from .recipes.suppression import set_nms as set_nms
    from .study import study as study
    from .variance import gradient_variance as gradient_variance

__version__ = "0.1.0"

_WHERE = {
    "BoxwrightError": "errors",
    "Detector": "inference",
    "Experiment": "recipes.experiment",
    "ImageDetections": "inference",
    "LabelMap": "labels",
    "Metrics": "metrics",
    "Run": "api",
    "build": "api",
    "evaluate": "api",
    "gradient_variance": "variance",
    "load": "api",
    "recipe": "recipes",
    "set_nms": "recipes.suppression",
    "set_norm": "recipes.norms",
    "show": "api",
    "train": "api",
}
_CALLABLE = ("recipes", "study")  # packages that are also verbs: a call lists the recipes, or makes a study
_MODULES = ("config", "data", "engine", "evaluation", "interop", "models", "ops")

__all__ = [
    "BoxwrightError",
    "Detector",
    "Experiment",
    "ImageDetections",
    "LabelMap",
    "Metrics",
    "Run",
    "build",
    "config",
    "data",
    "engine",
    "evaluate",
    "evaluation",
    "gradient_variance",
    "interop",
    "load",
    "models",
    "ops",
    "recipe",
    "recipes",
    "set_nms",
    "set_norm",
    "show",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE or name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
