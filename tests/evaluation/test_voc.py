"""VOC average precision by hand and against a recorded case."""

import json

import pytest
import torch

from boxwright.errors import ConfigError
from boxwright.evaluation import VocEvaluator, voc_average_precision
from boxwright.labels import LabelMap
from boxwright.structures import Batch, Detections


def read_text_case(folder) -> tuple[dict, list[dict]]:
    """Ground truth and results from text files, one an image: class, (score,) x, y, width, height."""
    images, annotations, results = [], [], []
    for number, path in enumerate(sorted((folder / "gts").glob("*.txt")), start=1):
        images.append({"id": number, "file_name": path.stem})
        for line in path.read_text().split("\n"):
            if line.strip():
                box = [float(v) for v in line.split()[1:]]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box}
                )
        for line in (folder / "dets" / path.name).read_text().split("\n"):
            if line.strip():
                score, *box = (float(v) for v in line.split()[1:])
                results.append({"image_id": number, "category_id": 1, "bbox": box, "score": score})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    return truth, results


@pytest.mark.parametrize(
    ("method", "key"), [("area", "expected_ap_every_point"), ("11-point", "expected_ap_11_point")]
)
def test_recorded_case(shared_data, method, key):
    expected = json.loads((shared_data / "coco_eval/expected.json").read_text())["padilla_voc"]
    truth, results = read_text_case(shared_data / "coco_eval/padilla/test_case_1")
    for overlap, value in expected[key].items():
        measured = voc_average_precision(truth, results, float(overlap), method, inclusive=True)
        assert measured["object"] == pytest.approx(value, abs=1e-9), overlap


def found(image_id: int, box: list[float], score: float, category_id: int = 3) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def test_worked_by_hand(truth):
    # Three cats. Hit, false alarm, hit, second hit of a cat: precision 1, 1/2, 2/3, 1/2; recall 1/3, 2/3.
    results = [
        found(1, [10, 10, 20, 20], 0.9),
        found(3, [0, 0, 9, 9], 0.8),
        found(2, [5, 5, 30, 10], 0.7),
        found(2, [5, 5, 30, 9], 0.6),
    ]
    area = voc_average_precision(truth, results)
    assert area["cat"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert area["dog"] == 0.0
    points = voc_average_precision(truth, results, method="11-point")
    assert points["cat"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recall 0 .. 0.3, then 0.4 .. 0.6


def test_difficult_objects_count_neither_way(truth, perfect):
    truth["annotations"][2]["difficult"] = 1
    assert voc_average_precision(truth, perfect) == {"cat": 1.0, "dog": 1.0}
    without = [r for r in perfect if r["bbox"] != [5, 5, 30, 10]]
    assert voc_average_precision(truth, without) == {"cat": 1.0, "dog": 1.0}


def test_empty_results_and_absent_classes(truth):
    assert voc_average_precision(truth, []) == {"cat": 0.0, "dog": 0.0}
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] == 3]
    assert voc_average_precision(truth, []) == {"cat": 0.0}


def test_inclusive_boxes_are_one_wider(truth):
    # [10, 10, 20, 20] and [10, 10, 10, 20]: IoU 0.5; with inclusive corners 11 * 21 / (21 * 21) = 0.524
    results = [found(1, [10, 10, 10, 20], 0.9)]
    assert voc_average_precision(truth, results, 0.51)["cat"] == 0.0
    assert voc_average_precision(truth, results, 0.51, inclusive=True)["cat"] == pytest.approx(1 / 3)
    assert voc_average_precision(truth, results, 0.5)["cat"] == pytest.approx(1 / 3)


def test_unknown_method(truth):
    with pytest.raises(ConfigError, match="area, 11-point"):
        voc_average_precision(truth, [], method="12-point")


def test_evaluator(truth):
    evaluator = VocEvaluator(truth, LabelMap(("cat", "dog"), (3, 7)), overlap_thresholds=(0.5, 0.75))
    batch = Batch(
        torch.zeros(1, 3, 100, 100), torch.tensor([[100, 100]]), None, (1,), torch.tensor([[100, 100]])
    )
    boxes = torch.tensor([[[10.0, 10, 30, 30], [40, 10, 80, 40]]])  # the dog with overlap 0.6
    detections = Detections(boxes, torch.ones(1, 2), torch.tensor([[0, 1]]), torch.ones(1, 2).bool())
    evaluator.update(batch, detections)
    metrics = evaluator.compute()
    assert metrics == pytest.approx({"voc/AP50": (1 / 3 + 1) / 2, "voc/AP75": 1 / 6})
    assert evaluator.per_class["dog"] == {"voc/AP50": 1.0, "voc/AP75": 0.0}
