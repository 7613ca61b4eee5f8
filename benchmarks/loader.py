"""Images a second and core from a JPEG folder to a batch ready for the backbone, beside torchvision's way.

Both decode with Pillow, resize to the same size, flip, normalise and pad, in one thread. torchvision's way
is that of its detection references: `CocoDetection`, `transforms.v2`, and the detector's own transform.
`--memory` measures what worker processes add for a data set of a million objects.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from boxwright.data import Loader, folder
from boxwright.data.canvas import Canvas
from boxwright.data.transforms import HorizontalFlip, Resize
from boxwright.models.detectors import Normalise

from . import harness


def make_folder(root: Path, images: int, size: tuple[int, int], per_image: int = 7) -> Path:
    """A COCO folder of smooth random JPEG photographs."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    height, width = size
    records, annotations = [], []
    for i in range(images):
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = random.normal(0, 6, (height, width, 3))
        Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)).save(
            root / "images" / f"{i}.jpg", quality=90
        )
        records.append({"id": i + 1, "file_name": f"{i}.jpg", "width": width, "height": height})
        for x, y in random.integers(0, min(size) // 2, (per_image, 2)).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "bbox": [x, y, 90, 70],
                    "area": 6300,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 90, y, x + 90, y + 70, x, y + 70]],
                }
            )
    content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def ours(root: Path, short: int, long: int, batch: int) -> Callable[[], int]:
    """One pass of our loader with the detector's normalisation."""
    canvas = Canvas(shapes=((short, long), (long, short), (long, long)))
    transforms = [Resize(short=short, long=long), HorizontalFlip()]
    loader = Loader(folder(root).train, transforms, canvas, batch, workers=0, with_masks=False)
    normalise = Normalise()

    def run() -> int:
        return sum(len(normalise(b.images, b.sizes)) for b in loader)

    return run


def theirs(root: Path, short: int, long: int, batch: int) -> Callable[[], int]:
    """One pass of torchvision's data set, transforms and `GeneralizedRCNNTransform`."""
    steps = v2.Compose(
        [v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
    )
    data = CocoDetection(
        str(root / "images"), str(root / "annotations" / "instances_train.json"), transforms=steps
    )
    data = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    loader = torch.utils.data.DataLoader(
        data, batch, shuffle=True, collate_fn=lambda items: tuple(zip(*items, strict=True))
    )
    prepare = GeneralizedRCNNTransform(short, long, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def run() -> int:
        return sum(len(prepare(list(images), list(targets))[0].tensors) for images, targets in loader)

    return run


def workers_memory(root: Path, workers: int) -> int:
    """Bytes that the worker processes hold for themselves (proportional set size) while loading."""
    loader = Loader(folder(root).train, [Resize(short=64, long=64)], Canvas(), 1, workers, with_masks=False)
    batches = iter(loader)
    for _ in range(workers * 20):
        next(batches)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return sum(proportional_set_size(int(child)) for child in children)


def proportional_set_size(pid: int) -> int:
    """Memory of a process in bytes, pages that it shares counted in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def many_objects(root: Path, images: int, per_image: int) -> Path:
    """A folder whose annotations name `images * per_image` objects on few image files."""
    make_folder(root, 50, (64, 64), per_image=1)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for i in range(50, images):
        os.link(root / "images" / f"{i % 50}.jpg", root / "images" / f"{i}.jpg")
    content["images"] = [
        {"id": i + 1, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in range(images)
    ]
    box = {"category_id": 1, "bbox": [4, 5, 20, 30], "area": 600, "iscrowd": 0}
    content["annotations"] = [
        box | {"id": n + 1, "image_id": n // per_image + 1} for n in range(images * per_image)
    ]
    path.write_text(json.dumps(content))
    return root


def main() -> None:
    """Measure speed, or the memory of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure the memory of 0, 2 and 8 workers")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder_name:
        root = Path(folder_name)
        if arguments.memory:
            data = many_objects(root / "many", 100_000, 10)
            for workers in (2, 8):
                used = workers_memory(data, workers) / workers / 2**20
                note = "MiB a worker, a million objects"
                row = harness.Row(
                    f"{workers} workers", "ours", "", 0, "100000 images", 0.0, 0.0, 1.0, value=used, note=note
                )
                harness.record("loader_memory", [row], device)
            return
        data = make_folder(root / "photos", arguments.images, (480, 640))
        for short, long in ((240, 320), (512, 640), (800, 1344)):
            runs = {"ours": ours(data, short, long, 8), "torchvision": theirs(data, short, long, 8)}
            timings = harness.interleave(runs, arguments.repeats, device, warmup=1)
            size = f"480x640 to {short}x{long}"
            rows = harness.rows_of(
                timings, "JPEG to batch", "fp32", device, batch=arguments.images, size=size
            )
            harness.record("loader", rows, device)
