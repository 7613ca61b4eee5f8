"""Training: a plain loop with hooks, exact checkpoints, optimisers and schedules."""

from .checkpoint import find_last, load_state, load_weights, save_weights
from .ema import ModelEMA
from .folder import run_folder
from .hooks import default_hooks
from .optim import adamw, scale_lr, scale_optimizer, sgd
from .placing import resolve_device
from .precision import Precision, resolve_precision
from .randomness import seed_all
from .schedule import CosineSchedule, PolySchedule, Schedule, StepSchedule
from .state import TIMEPOINTS, Hook, Loader, TrainState
from .trainer import TrainingInterrupted, train
from .validation import Evaluator, Validation, validate

__all__ = [
    "TIMEPOINTS",
    "CosineSchedule",
    "Evaluator",
    "Hook",
    "Loader",
    "ModelEMA",
    "PolySchedule",
    "Precision",
    "Schedule",
    "StepSchedule",
    "TrainState",
    "TrainingInterrupted",
    "Validation",
    "adamw",
    "default_hooks",
    "find_last",
    "load_state",
    "load_weights",
    "resolve_device",
    "resolve_precision",
    "run_folder",
    "save_weights",
    "scale_lr",
    "scale_optimizer",
    "seed_all",
    "sgd",
    "train",
    "validate",
]
