"""The one family of errors that Boxwright raises for what a user can mend."""


class BoxwrightError(Exception):
    """Base of all errors of this package; the message says what is wrong, where, and the remedy."""


class ConfigError(BoxwrightError, ValueError):
    """A recipe or an override names something that does not exist or cannot be built."""


class DataError(BoxwrightError, ValueError):
    """A data set, an annotation record or an image file cannot be used."""


class CheckpointError(BoxwrightError, ValueError):
    """A checkpoint or weights file is missing, damaged, unsafe or does not fit the model."""


class TrainingError(BoxwrightError, RuntimeError):
    """Training cannot go on: a loss is not finite, a device is missing, a run folder is in use."""


class RankError(TrainingError):
    """Another process of the run failed, hangs or is gone; the message names it.

    Attributes:
        speaks: whether it falls to this process to tell the user.
    """

    def __init__(self, message: str, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks


class MissingExtraError(BoxwrightError, ImportError):
    """An optional dependency is needed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs `{package}`: install it with `pip install 'boxwright[{extra}]'`")
