"""COCO metrics beside pycocotools: 5,000 images, 36,000 objects, 500,000 detections of 80 classes."""

from __future__ import annotations

import argparse
import contextlib
import io
from typing import Any

import numpy as np
import torch

from boxwright.evaluation import evaluate_results

from . import harness

Records = list[dict[str, Any]]


def synthetic(images: int, objects: int, detections: int, seed: int = 0) -> tuple[dict[str, Any], Records]:
    """Ground truth of random boxes; detections that are shifted objects or nothing at all."""
    random = np.random.default_rng(seed)
    side = np.exp(random.uniform(np.log(8), np.log(300), (objects, 2)))
    start = random.uniform(0, 1, (objects, 2)) * (np.array([640, 480]) - side.clip(max=479))
    image, label = random.integers(0, images, objects), random.integers(0, 80, objects)
    annotations = [
        {
            "id": i + 1,
            "image_id": int(image[i]) + 1,
            "category_id": int(label[i]) + 1,
            "bbox": [*start[i].tolist(), *side[i].tolist()],
            "area": float(side[i].prod()),
            "iscrowd": int(i % 100 == 0),
        }
        for i in range(objects)
    ]
    truth = {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(80)],
    }
    of = random.integers(0, objects, detections)
    box = np.concatenate((start[of], side[of]), 1) * random.normal(1, 0.08, (detections, 4))
    score = random.uniform(0, 1, detections)
    results = [
        {
            "image_id": int(image[i]) + 1,
            "category_id": int(label[i]) + 1,
            "bbox": box[n].clip(min=1).tolist(),
            "score": float(score[n]),
        }
        for n, i in enumerate(of)
    ]
    return truth, results


def theirs(truth: dict[str, Any], results: Records) -> list[float]:
    """The twelve numbers of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(record) for record in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def main() -> None:
    """Measure both, reading of the results into their own structures included."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    truth, results = synthetic(arguments.images, arguments.objects, arguments.detections)
    metrics = evaluate_results(truth, results).metrics
    expected = dict(zip(KEYS, theirs(truth, results), strict=True))
    difference = max(abs(metrics[f"bbox/{key}"] - value) for key, value in expected.items())
    assert difference < 1e-9, f"metrics differ by {difference:.2g}"
    device = torch.device("cpu")
    runs = {"ours": lambda: evaluate_results(truth, results), "pycocotools": lambda: theirs(truth, results)}
    timings = harness.interleave(runs, arguments.repeats, device, warmup=0)
    size = f"{arguments.images} images, {arguments.objects} objects, {arguments.detections} detections"
    harness.record("evaluator", harness.rows_of(timings, "COCO boxes", "fp64", device, size=size), device)
    print(f"largest difference of the twelve metrics: {difference:.2g}")
