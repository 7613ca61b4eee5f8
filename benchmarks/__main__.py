"""`python -m benchmarks [--rows FOLDER] NAME [options]`: rows are appended to files in that folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = {
    "training": "a training step: RetinaNet, FCOS, Faster and Mask R-CNN beside torchvision's",
    "inference": "prediction with post-processing: latency at batch 1 and throughput",
    "operators": "NMS, RoIAlign, focal loss, assignment, mask paste, deformable convolution",
    "memory": "peak memory of a training step beside torchvision's",
    "savings": "what each way to save memory saves, and costs in time; makes docs/memory.md",
    "loader": "images a second from JPEG files to batches, and the memory of its workers",
    "evaluator": "COCO metrics of 500,000 detections beside pycocotools",
    "startup": "import, building a recipe, the first step, with and without a compile cache",
    "scaling": "1, 2, ... processes, and on paper 8 to 512 devices; makes docs/scaling.md",
    "quality": "AP on real images after a given wall time",
    "gpu": "training, inference and operators on a CUDA device, within ten minutes",
    "table": "make docs/benchmarks.md and docs/memory.md from the recorded rows",
}


def main() -> None:
    """Run the named script with the remaining arguments."""
    if sys.argv[1:2] == ["--rows"]:
        if len(sys.argv) < 3:
            sys.exit("--rows: name the folder for the rows")
        from . import harness  # imports PyTorch

        harness.ROWS = Path(sys.argv[2]).absolute()
        del sys.argv[1:3]
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        width = max(map(len, NAMES))
        print(__doc__, *(f"  {name:{width}}  {what}" for name, what in NAMES.items()), sep="\n")
        print("\n`python -m benchmarks NAME --help` says what a script can be told.")
        sys.exit(0 if sys.argv[1:] in ([], ["--help"], ["-h"]) else f"no benchmark {sys.argv[1]!r}")
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m benchmarks {name}"
    importlib.import_module(f"benchmarks.{name}").main()


main()
