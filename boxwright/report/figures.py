"""What is worked out once for a run and kept in `plots/`: curves, confusion, best and worst images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import decode_image
from ..data.table import Table
from ..errors import DataError
from ..evaluation import (
    ImageScore,
    best_threshold,
    confusion_matrix,
    evaluate_results,
    image_scores,
    precision_recall,
    read_results,
)
from ..evaluation.files import PREDICTIONS, write_json
from ..evaluation.matching import group_by_image
from ..evaluation.results import Record
from ..visualize import draw_detections, side_by_side

FIGURES = "plots/figures.json"
MEAN_OVERLAPS = (0.5, 0.75, 0.9)
LONGEST_SIDE, TEXT_SCALE = 512, 1.6  # pictures are shown small, two beside each other


def write_figures(run_dir: Path, table: Table, examples: int = 6) -> dict[str, Any]:
    """Work out curves, confusion, best and worst images of a run; write `plots/figures.json` and JPEGs.

    Args:
        run_dir: has `predictions.json`, made on `table`.
        table: the split that was evaluated.
        examples: how many best and how many worst images.

    Returns:
        The content of `plots/figures.json`.

    Raises:
        DataError: `predictions.json` is missing or does not fit the table, or an image cannot be read.
    """
    truth = table.to_coco()
    results = read_results(run_dir / PREDICTIONS, truth)
    evaluation = evaluate_results(truth, results)
    curves = precision_recall(evaluation, 0.5)
    score = best_threshold(curves)
    matrix = confusion_matrix(truth, results, score)
    ranked = image_scores(truth, results, score)
    figures = {
        "split": table.name,
        "images": len(truth["images"]),
        "objects": sum(not a["iscrowd"] for a in truth["annotations"]),
        "score": score,
        "overlap": 0.5,
        "mean_curves": [_mean_curve(precision_recall(evaluation, overlap)) for overlap in MEAN_OVERLAPS],
        "curves": [
            {
                "name": curve.name,
                "precision": [round(float(p), 4) for p in curve.precision],
                "scores": [round(float(s), 4) for s in curve.scores],
                "average_precision": curve.average_precision,
                "best_f1": curve.best_f1,
                "best_score": curve.best_score,
            }
            for curve in curves
        ],
        "confusion": {"names": list(matrix.names), "counts": matrix.counts.tolist()},
        "pictures": write_pictures(run_dir / "plots", table, truth, results, ranked, score, examples),
    }
    write_json(run_dir / FIGURES, figures)
    return figures


def read_figures(run_dir: Path) -> dict[str, Any]:
    """The content of `plots/figures.json`; empty where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = run_dir / FIGURES
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and write the report again") from error


def write_pictures(
    folder: Path,
    table: Table,
    truth: Mapping[str, Any],
    results: Sequence[Record],
    ranked: Sequence[ImageScore],
    score: float,
    examples: int,
) -> list[dict[str, Any]]:
    """JPEGs of the images solved worst and best, ground truth left, prediction right.

    Args:
        folder: where `worst_1.jpg`, `best_1.jpg`, ... go; earlier ones are deleted.
        table: has the image files.
        truth: the table as COCO data set.
        results: COCO result records.
        ranked: from `image_scores`, worst first.
        score: detections below it are not drawn.
        examples: how many of each.

    Returns:
        For each picture: "file", "kind" ("worst", "best"), "image", "f1", "right", "wrong", "missed".
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("worst_*.jpg"), *folder.glob("best_*.jpg")):
        old.unlink()
    faulty = [s for s in ranked if s.f1 < 1]
    solved = sorted((s for s in ranked if s.right), key=lambda s: (-s.f1, -s.right, s.image_id))
    worst = faulty[: min(examples, len(ranked) // 2 or 1)]
    best = [s for s in solved if s not in worst][:examples]
    found_in, annotated_in = group_by_image(results), group_by_image(truth["annotations"])
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    entries = []
    for kind, chosen in (("worst", worst), ("best", best)):
        for number, s in enumerate(chosen, start=1):
            image = decode_image(table.root / names[s.image_id])
            found = [r for r in found_in.get(s.image_id, ()) if r["score"] >= score]
            picture = _pair(image, annotated_in.get(s.image_id, []), found, table)
            file = f"{kind}_{number}.jpg"
            picture.save(folder / file, quality=86)
            counts = {"f1": round(s.f1, 4), "right": s.right, "wrong": s.wrong, "missed": s.missed}
            entries.append({"file": file, "kind": kind, "image": names[s.image_id], **counts})
    return entries


def _pair(image: Image.Image, objects: list[Record], found: list[Record], table: Table) -> Image.Image:
    factor = min(1.0, LONGEST_SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    left, right = (_drawn(image, small, records, table) for records in (objects, found))
    return side_by_side(left, right, captions=None)


def _drawn(image: Image.Image, small: Image.Image, records: list[Record], table: Table) -> Image.Image:
    scale = np.tile([small.width / image.width, small.height / image.height], 2)
    boxes = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = None
    if records and all("segmentation" in r for r in records):
        masks = np.stack([_bitmap(r["segmentation"], image.size, small.size) for r in records])
    return draw_detections(
        small,
        boxes * scale,
        [table.label_map.from_source(r["category_id"]) for r in records],
        scores=[r["score"] for r in records] if records and "score" in records[0] else None,
        masks=masks,
        names=table.label_map.names,
        scale=TEXT_SCALE,
        ignore=[bool(r.get("iscrowd", 0)) for r in records],
    )


def _bitmap(segmentation: Any, size: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
    from faster_coco_eval.core import mask

    width, height = size
    if not segmentation:  # a region that has a box only
        return np.zeros((drawn[1], drawn[0]), bool)
    pixels = np.asarray(mask.decode(mask.segmToRle(segmentation, width, height)))
    return np.asarray(Image.fromarray(pixels * 255).resize(drawn)) > 127


def _mean_curve(curves: Sequence[Any]) -> dict[str, Any]:
    precision = np.mean([curve.precision for curve in curves], axis=0)
    return {"overlap": curves[0].overlap, "precision": [round(float(p), 4) for p in precision]}
