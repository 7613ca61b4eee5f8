"""A tiny model and data set that behave like a detector and its loader."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """`toy.py` beside this file; subprocesses of the tests run the same file."""
    spec = importlib.util.spec_from_file_location("boxwright_test_toy", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Launcher:
    """Starts runs in children of one process that has imported PyTorch."""

    def __init__(self, log: Path, script: Path = TOY) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        self.read = 0

    def start(self, out, ranks=1, **options) -> list[int]:
        """Begin a run; returns the pids of its ranks."""
        self.read = self.log.stat().st_size
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(out), options, ranks]) + "\n")
        self.process.stdin.flush()
        return self._line()

    def wait(self) -> list[int]:
        """The wait statuses of the ranks, once they have ended."""
        return self._line()

    def said(self) -> str:
        """Standard error since the last start."""
        return self.log.read_bytes()[self.read :].decode()

    def _line(self) -> list[int]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    launcher = Launcher(tmp_path_factory.mktemp("log") / "stderr")
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def elastic(tmp_path_factory):
    """A launcher of the jobs in `elastic.py`."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    launcher = Launcher(tmp_path_factory.mktemp("log") / "elastic", TOY.with_name("elastic.py"))
    yield launcher
    launcher.close()
