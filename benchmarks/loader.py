"""Images a second and core from a JPEG folder to a batch ready for the backbone, beside torchvision's way.

Both decode with Pillow, resize to the same size, flip, normalise and pad, in one thread. torchvision's way
is that of its detection references: `CocoDetection`, `transforms.v2`, and the detector's own transform. Ours
is measured with files decoded in full, and with `reduced_decoding` where that changes something.
`--memory` measures what worker processes add for a data set of a million objects.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from boxwright.data import Loader, Table, folder
from boxwright.data.canvas import Canvas
from boxwright.data.transforms import HorizontalFlip, Resize
from boxwright.engine.placing import place
from boxwright.engine.precision import resolve_precision
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


@dataclass(frozen=True)
class Case:
    """What is loaded.

    Args:
        file: height and width of the JPEG files.
        short: length of the short side that they are resized to.
        long: of the long side at most.
        flip: probability of mirroring.
    """

    file: tuple[int, int]
    short: int
    long: int
    flip: float = 0.5

    def __str__(self) -> str:
        return f"{self.file[0]}x{self.file[1]} to {self.short}x{self.long}"


CASES = (
    Case((480, 640), 320, 320),
    Case((480, 640), 512, 640),
    Case((480, 640), 800, 1333),
    Case((1200, 1600), 320, 320),
    Case((1200, 1600), 800, 1333),
)
Passes = Callable[[], Iterator[torch.Tensor]]


def ours(root: Path, case: Case, batch: int, reduced: bool = False) -> Passes:
    """Batches of our loader with the detector's normalisation."""
    transforms = [Resize(short=case.short, long=case.long), HorizontalFlip(case.flip)]
    loader = Loader(
        folder(root).train,
        transforms,
        Canvas(),  # padded as torchvision pads: no further than to multiples of 32
        batch_size=batch,
        shuffle=case.flip > 0,
        with_masks=False,
        reduced_decoding=reduced,
    )
    normalise, cpu = Normalise(), torch.device("cpu")
    placed = partial(place, device=cpu, channels_last=resolve_precision("fp32", cpu).channels_last)
    return lambda: (normalise(b.images, b.sizes) for b in map(placed, loader))


def theirs(root: Path, case: Case, batch: int) -> Passes:
    """Batches of torchvision's data set, transforms and `GeneralizedRCNNTransform`."""
    flip = v2.RandomHorizontalFlip(case.flip)
    steps = v2.Compose([v2.ToImage(), flip, v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()])
    data = CocoDetection(
        str(root / "images"), str(root / "annotations" / "instances_train.json"), transforms=steps
    )
    data = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    loader = torch.utils.data.DataLoader(
        data, batch, shuffle=case.flip > 0, collate_fn=lambda items: tuple(zip(*items, strict=True))
    )
    prepare = GeneralizedRCNNTransform(case.short, case.long, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return lambda: (prepare(list(images), list(targets))[0].tensors for images, targets in loader)


def check_equal_work(root: Path, case: Case, reduced: bool) -> float:
    """Mean difference of the first batches, in deviations of the pixels; they must have one shape.

    torchvision resizes without antialiasing, so that pixels differ where images shrink.
    """
    still = replace(case, flip=0.0)
    one, two = (next(p()) for p in (ours(root, still, 8, reduced), theirs(root, still, 8)))
    assert one.shape == two.shape, f"{case}: shapes {tuple(one.shape)} and {tuple(two.shape)} differ"
    difference = float((one - two).abs().mean())
    assert difference < 0.2, f"{case}: pixels differ by {difference:.2g} on average"
    return difference


def compare(root: Path, case: Case, images: int, repeats: int, device: torch.device) -> None:
    """Time one case and record it."""
    target = Resize(case.short, case.long).largest_size(case.file)
    reduces = all(side >= 2 * wanted for side, wanted in zip(case.file, target, strict=True))
    kinds = {"JPEG to batch": False} | ({"the same, reduced decoding": True} if reduces else {})
    passes = {kind: ours(root, case, 8, reduced) for kind, reduced in kinds.items()}
    passes["torchvision"] = theirs(root, case, 8)
    runs = {name: partial(consume, each) for name, each in passes.items()}
    differences = {kind: check_equal_work(root, case, reduced) for kind, reduced in kinds.items()}
    timings = harness.interleave(runs, repeats, device, warmup=1)
    for kind, difference in differences.items():
        pair = {"ours": timings[kind], "torchvision": timings["torchvision"]}
        rows = harness.rows_of(pair, kind, "fp32", device, batch=images, size=str(case))
        note = "mean difference of normalised pixels"
        harness.record("loader", [replace(row, value=difference, note=note) for row in rows], device)


def consume(passes: Passes) -> int:
    """One whole pass."""
    return sum(len(images) for images in passes())


def memory(table: Table, workers: int) -> tuple[float, float]:
    """MiB that each worker holds for itself while loading, and that all processes hold together."""
    loader = Loader(
        table, [Resize(short=64, long=64)], Canvas(), batch_size=1, workers=workers, with_masks=False
    )
    batches = iter(loader)
    for _ in itertools.islice(batches, workers * 20):
        pass
    own = os.getpid()
    children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    private = [set_size(pid, "Private_Clean") + set_size(pid, "Private_Dirty") for pid in children]
    return sum(private) / workers, sum(set_size(pid, "Pss") for pid in (own, *children))


def set_size(pid: int, kind: str) -> float:
    """MiB of a process; of kind "Pss", pages that it shares are counted in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def record_memory(root: Path, images: int, device: torch.device) -> None:
    """Measure workers on a small and on a large data set of 10 objects an image."""
    for count in (images // 100, images):
        table = folder(many_objects(root / str(count), count, 10)).train
        for workers in (2, 8):
            private, together = memory(table, workers)
            size = f"{count} images, {10 * count} objects"
            for what, value in (("each worker for itself", private), ("all processes together", together)):
                case = f"{workers} workers: {what}"
                row = harness.Row(case, "ours", "", 0, size, 0.0, 0.0, 1.0, value=value, note="MiB")
                harness.record("loader_memory", [row], device)


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
    parser.add_argument("--images", type=int, default=64, help="JPEG files of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure the memory of 2 and of 8 workers")
    parser.add_argument("--annotated", type=int, default=100_000, help="images of the memory's data set")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder_name:
        root = Path(folder_name)
        if arguments.memory:
            record_memory(root, arguments.annotated, device)
            return
        for case in CASES:
            data = root / "x".join(map(str, case.file))
            if not data.is_dir():
                make_folder(data, arguments.images, case.file)
            compare(data, case, arguments.images, arguments.repeats, device)
