"""The GPU kernels, run by Triton's interpreter on a CPU and, where there is one, on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("triton_kernels.py")


def run(device: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, device], env=os.environ | environment, capture_output=True, text=True
    )
    if done.stderr.strip() == "no loops":
        pytest.skip("this Triton's interpreter cannot run loops with this NumPy: update one of them")
    assert done.stdout.strip() == "agree", done.stderr[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_agree_with_their_references_in_the_interpreter() -> None:
    run("cpu", {"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_agree_with_their_references_on_the_device() -> None:
    run("cuda", {})
