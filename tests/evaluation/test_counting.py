"""COCO's counting on small sets of ties, crowds and borders, held to pycocotools and faster-coco-eval."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.errors import DataError
from boxwright.evaluation import counting
from boxwright.evaluation.columns import Found, Truth
from boxwright.evaluation.counting import count_detections

SIDES = (16, 32, 40, 96, 128)  # 32 x 32 and 96 x 96 are the borders of the ranges of areas


def make_set(seed: int, images: int = 4) -> tuple[dict, list[dict]]:
    """Boxes on a coarse grid, so that overlaps tie; scores of one decimal; class 3 has no object at all."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    ids = random.permutation(50)[:images].tolist()
    for image in ids:
        for _ in range(random.integers(0, 8)):
            x, y = (8 * random.integers(0, 6, 2)).tolist()
            w, h = random.choice(SIDES, 2).tolist()
            category = int(random.integers(1, 3))
            crowd, area = int(random.random() < 0.25), w * h * random.choice([0.5, 1.0])
            same = {"image_id": image, "category_id": category, "bbox": [x, y, w, h]}
            annotations.append({**same, "id": len(annotations) + 1, "area": float(area), "iscrowd": crowd})
        for _ in range(random.integers(0, 16)):
            x, y = (8 * random.integers(0, 6, 2)).tolist()
            w, h = random.choice(SIDES, 2).tolist()
            score = float(random.integers(1, 6)) / 10
            category = int(random.integers(1, 4))
            results.append({"image_id": image, "category_id": category, "bbox": [x, y, w, h], "score": score})
    categories = [{"id": i, "name": f"class {i}"} for i in (2, 1, 3)]
    images_of = [{"id": i, "width": 200, "height": 200} for i in ids]
    return {"images": images_of, "annotations": annotations, "categories": categories}, results


def with_masks(entries: list[dict]) -> list[dict]:
    """The same records with a triangle of each box as its mask."""
    from faster_coco_eval.core import mask

    def triangle(box: list[float]) -> dict:
        x, y, w, h = box
        rings: Any = mask.frPyObjects([[x, y, x + w, y, x + w, y + h]], 200, 200)
        return mask.merge(rings)

    return [{**entry, "segmentation": triangle(entry["bbox"])} for entry in entries]


def reference(
    package: str, truth: dict, results: list[dict], iou_type: str, by_class: bool, limits: list[int]
):
    """Precision, recall and scores of pycocotools or faster-coco-eval."""
    api = pytest.importorskip(f"{package}.coco" if package == "pycocotools" else package)
    coco_eval = api.COCOeval_faster if package == "faster_coco_eval" else None
    if coco_eval is None:
        coco_eval = pytest.importorskip("pycocotools.cocoeval").COCOeval
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    found = [{k: v for k, v in copy.deepcopy(r).items() if k != dropped} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = api.COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = coco_eval(coco, coco.loadRes(found), iou_type)
        evaluation.params.maxDets, evaluation.params.useCats = limits, int(by_class)
        evaluation.evaluate()
        evaluation.accumulate()
    return [np.asarray(evaluation.eval[key]) for key in ("precision", "recall", "scores")]


@pytest.mark.parametrize("package", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize(("iou_type", "by_class"), [("bbox", True), ("bbox", False), ("segm", True)])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), limits=st.sampled_from([[1, 10, 100], [1, 2, 3], [5]]))
def test_every_entry_agrees(package, iou_type, by_class, seed, limits):
    truth, results = make_set(seed)
    if not results or not truth["annotations"]:
        return
    masks = iou_type == "segm"
    if masks:
        truth, results = {**truth, "annotations": with_masks(truth["annotations"])}, with_masks(results)
    expected = reference(package, truth, results, iou_type, by_class, limits)
    counts = count_detections(Truth.of(truth, masks), Found.of(results, masks), limits, by_class)
    for ours, theirs in zip((counts.precision, counts.recall, counts.scores), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_the_parts_in_which_pairs_are_looked_at_change_nothing(monkeypatch):
    truth, results = make_set(5, images=8)
    columns = Truth.of(truth), Found.of(results)
    whole = count_detections(*columns, [1, 10, 100])
    monkeypatch.setattr(counting, "_PAIRS_AT_ONCE", 3)
    parts = count_detections(*columns, [1, 10, 100])
    assert (whole.precision == parts.precision).all()
    assert (whole.recall > 0).any()


def test_of_equal_overlaps_the_later_object_is_taken():
    box = [0, 0, 40, 40]
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1}],
        # The later one is small: a detection takes it first and is right in both ranges.
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": box, "area": 1600},
            {"image_id": 1, "category_id": 1, "bbox": box, "area": 100},
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.5}]
    recall = count_detections(Truth.of(truth), Found.of(found), [100]).recall[0, 0, :, 0]
    assert recall.tolist() == [0.5, 1.0, 1.0, -1.0]


def test_a_perfect_detection_has_precision_one_exactly():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 4}],
        "annotations": [{"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4]}],
    }
    found = [{"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.1}]
    counts = count_detections(Truth.of(truth), Found.of(found), [1])
    assert (counts.precision[..., 0, 0] == 1.0).all()  # the area is that of the box: small
    assert (counts.precision[..., 2:, 0] == -1.0).all()


def test_columns_and_records_are_the_same():
    _, results = make_set(3)
    assert Found.of(results).records() == results
    masked = with_masks(results)
    assert Found.of(masked, masks=True).records() == masked
    half = len(masked) // 2
    joined = Found.join([Found.of(masked[:half], masks=True), Found.of(masked[half:], masks=True)])
    assert joined.records() == masked
    assert len(Found.join([])) == 0


def test_ids_that_are_no_numbers_are_named():
    truth, _ = make_set(1)
    truth["images"][0]["id"] = "a.jpg"
    with pytest.raises(DataError, match=r"'a\.jpg' is no whole number"):
        Truth.of(truth)
    truth, _ = make_set(1)
    for image in truth["images"]:
        del image["width"]
    truth["annotations"] = [{**a, "segmentation": [[0, 0, 9, 0, 9, 9]]} for a in truth["annotations"]]
    with pytest.raises(DataError, match="no 'width' and 'height'"):
        Truth.of(truth, masks=True)
