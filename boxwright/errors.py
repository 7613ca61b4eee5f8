"""The one family of errors that Boxwright raises for what a user can mend, and what messages are made of."""

from collections.abc import Iterable


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
        self._made_of = (package, extra, purpose)
        super().__init__(f"{purpose} needs `{package}`: install it with `pip install 'boxwright[{extra}]'`")

    def __reduce__(self) -> tuple:  # ranks send each other their errors
        return MissingExtraError, self._made_of


def some_of(names: Iterable[object], most: int = 8) -> str:
    """Names as a message lists them: the first `most`, and how many more there are."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def first_line(error: BaseException) -> str:
    """What an error says, without what libraries write below it; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_of_dead_worker(error: BaseException) -> bool:
    """Whether PyTorch says that a process of a DataLoader is gone; it says so wherever the program stands."""
    return type(error) is RuntimeError and "DataLoader worker" in str(error)


def told_of_dead_worker(error: BaseException) -> str:
    """What to say when a process of a loader is gone, which `error` shows."""
    return (
        f"a worker process of the loader died ({first_line(error)}); most often memory or shared memory "
        "(/dev/shm) ran out: lower `workers`, `prefetch` or `batch_size`, or set `workers=0` to see what "
        "happens"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left.

    PyTorch has a class of its own for that on GPUs; on a CPU it raises a RuntimeError that its text tells.
    """
    text = str(error)
    plain = type(error) is RuntimeError and ("DefaultCPUAllocator" in text or "out of memory" in text.lower())
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or plain
