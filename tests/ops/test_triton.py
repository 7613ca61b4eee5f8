"""The GPU kernels, run by Triton's interpreter on a CPU, compiled for a GPU, and run on one that is there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def compiled(kernel: Any, types: str, constants: dict[str, Any], **options: Any) -> str:
    """PTX of a kernel for an H100 or H200, which need not be there; assembled, too."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    given = iter(types.split())
    signature = {name: "constexpr" if name in constants else next(given) for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    built = compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32), options=options)
    assert built.asm["cubin"]
    return built.asm["ptx"]


SETTINGS = {"SIZE": 7, "SHIFT": 0.5, "ALIGNED": True}


@pytest.fixture
def fresh_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("fresh_kernels")
def test_suppression_compiles_and_rounds_as_on_a_cpu() -> None:
    """No products joined with sums, no approximate quotients: a box at the threshold has the same fate."""
    from boxwright.ops import _nms_triton

    pairs = compiled(_nms_triton._pairs, "*fp32 *i64 *i32 fp32 i32 i32", {}, **_nms_triton.EXACTLY)
    assert "div.rn.f32" in pairs
    assert not re.search(r"fma\.rn\.f32|div\.full|div\.approx", pairs)
    assert compiled(_nms_triton._scan, "*i32 *i8 *i8 i32 i32", {"BLOCK": 256}, **_nms_triton.EXACTLY)


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize(("ratio", "backward"), [(0, False), (2, True)])
def test_pooling_compiles_and_counts_samples_as_on_a_cpu(ratio: int, backward: bool) -> None:
    """A region of 14 cells has two samples a bin of seven, not three: the quotient is rounded to nearest."""
    from boxwright.ops import _roi_align_triton

    constants = SETTINGS | {"RATIO": ratio, "BACKWARD": backward, "BLOCK": 256}
    cells = "*fp32" if backward else "*bf16"
    ptx = compiled(
        _roi_align_triton._pool,
        f"{cells} *bf16 *fp32 *i64 i32 i32 i32 i32 i32 fp32",
        constants,
        **_roi_align_triton.FUSED,
    )
    assert ptx.count("div.rn.f32") == 2
    assert ("red.global" in ptx or "atom.global" in ptx) == backward


@pytest.mark.usefixtures("fresh_kernels")
def test_mask_targets_compile_and_count_samples_as_on_a_cpu() -> None:
    from boxwright.ops import _mask_targets_triton

    types = "*u8 *i64 *i64 *fp32 *i64 *i8 *fp32 i32 i32 i32 i32"
    ptx = compiled(
        _mask_targets_triton._sample, types, SETTINGS | {"SIZE": 28, "BLOCK": 32}, enable_fp_fusion=True
    )
    assert ptx.count("div.rn.f32") == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_agree_with_their_references_on_the_device() -> None:
    run("cuda", {})
