"""What wants a CUDA device, in order of importance, within ten minutes: rows are kept as they are made."""

from __future__ import annotations

import sys
import time

import torch

from boxwright.errors import BoxwrightError

from . import inference, operators, training

MINUTES = 9.0
PLAN = (
    (training, "--models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 16 --precisions bf16 --repeats 5"),
    (training, "--models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 2 32 --precisions bf16 --repeats 5"),
    (operators, ""),
    (training, "--models faster_rcnn_r50_fpn fcos_r50_fpn --batch 16 --precisions bf16 --repeats 5"),
    (inference, "--models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 1 16 --precisions bf16"),
    (training, "--models mask_rcnn_r50_fpn --batch 8 --precisions fp32 --repeats 5"),
)


def main() -> None:
    """Run the plan until the time is up.

    Raises:
        BoxwrightError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise BoxwrightError(
            "this benchmark needs a CUDA device; on a CPU run `python -m benchmarks training`"
        )
    start = time.perf_counter()
    for script, options in PLAN:
        if time.perf_counter() - start > MINUTES * 60:
            print(f"time is up; left out: {script.__name__} {options}")
            continue
        sys.argv[1:] = options.split()
        script.main()
