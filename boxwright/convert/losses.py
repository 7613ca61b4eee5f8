"""MMDetection's losses as ours."""

from __future__ import annotations

import fiddle as fdl
from fiddle import Config

from ..errors import ConfigError
from ..models.losses import (
    BalancedL1,
    BinaryCrossEntropy,
    BoundedIoULoss,
    CIoULoss,
    CrossEntropy,
    DIoULoss,
    FocalLoss,
    GIoULoss,
    IoULoss,
    QualityFocalLoss,
    SmoothL1,
)
from .settings import Settings

CLASS_LOSSES = {
    "CrossEntropyLoss": CrossEntropy,
    "FocalLoss": FocalLoss,
    "QualityFocalLoss": QualityFocalLoss,
}


def class_loss(settings: Settings, *allowed: type) -> Config:
    """The loss of the classes.

    Args:
        settings: the loss's.
        allowed: ours that fit the head; by default those that are trained for a yes or no.
    """
    with settings:
        settings.only("a class loss", *CLASS_LOSSES)
        # Where the loss is divided by a number of samples, as in every head, avg_non_ignore has no effect.
        settings.ignore("avg_non_ignore")
        settings.expect("reduction", "mean")
        settings.expect("class_weight", None)
        settings.expect("activated", False)
        settings.expect("use_mask", False)
        weight, sigmoid = settings("loss_weight", 1.0), settings("use_sigmoid", False)
        made = Config(CLASS_LOSSES[settings.kind], weight=weight)
        if settings.kind == "CrossEntropyLoss":
            made = Config(BinaryCrossEntropy, weight=weight) if sigmoid else made
        elif not sigmoid:
            raise ConfigError(f"{settings.path} is a {settings.kind} without use_sigmoid=True")
        elif settings.kind == "FocalLoss":
            made.alpha, made.gamma = settings("alpha", 0.25), settings("gamma", 2.0)
        else:
            made.beta = settings("beta", 2.0)
        allowed = allowed or (BinaryCrossEntropy, CrossEntropy, FocalLoss)
        if fdl.get_callable(made) not in allowed:
            raise ConfigError(
                f"{settings.path} is a {settings.kind} with use_sigmoid={sigmoid}; for this head Boxwright "
                f"has only what it calls {' or '.join(loss.__name__ for loss in allowed)}"
            )
        return made


def binary_weight(settings: Settings | None) -> float:
    """Weight of the loss of a branch that says yes or no, which is a binary cross entropy."""
    return 1.0 if settings is None else class_loss(settings, BinaryCrossEntropy).weight


def box_losses(settings: Settings, decoded: bool) -> dict[str, Config | None]:
    """The loss of the boxes in its slot: `code_loss`, or `box_loss` where it compares decoded boxes.

    Args:
        settings: the loss's.
        decoded: whether the head compares boxes rather than codes (`reg_decoded_bbox`).
    """
    codes = {"L1Loss": SmoothL1, "SmoothL1Loss": SmoothL1, "BalancedL1Loss": BalancedL1}
    boxes = {
        "IoULoss": IoULoss,
        "GIoULoss": GIoULoss,
        "DIoULoss": DIoULoss,
        "CIoULoss": CIoULoss,
        "BoundedIoULoss": BoundedIoULoss,
    }
    with settings:
        settings.expect("reduction", "mean")
        settings.only("a box loss", *codes, *boxes)
        if (settings.kind in boxes) != decoded:
            kind = "boxes" if settings.kind in boxes else "codes"
            raise ConfigError(
                f"{settings.path} is a {settings.kind}, a loss of {kind}, but reg_decoded_bbox is {decoded}"
            )
        made = Config((codes | boxes)[settings.kind], weight=settings("loss_weight", 1.0))
        _shape(settings, made)
        return {"code_loss": None, "box_loss": made} if decoded else {"code_loss": made, "box_loss": None}


def _shape(settings: Settings, made: Config) -> None:
    """Numbers that say how a loss grows, with MMDetection's defaults."""
    match settings.kind:
        case "L1Loss":
            made.beta = 0.0
        case "SmoothL1Loss":
            made.beta = settings("beta", 1.0)
        case "BalancedL1Loss":
            for name, usual in (("alpha", 0.5), ("gamma", 1.5), ("beta", 1.0)):
                setattr(made, name, settings(name, usual))
        case "BoundedIoULoss":
            made.beta, made.eps = settings("beta", 0.2), settings("eps", 1e-3)
        case "IoULoss":
            mode = settings("mode", "log")
            made.mode = "linear" if settings("linear", False) else mode
            made.eps = settings("eps", 1e-6)
        case _:
            made.eps = settings("eps", 1e-6)
