"""COCO measures, held to pycocotools and to recorded cases."""

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pytest
import torch

from boxwright.errors import ConfigError, DataError, TrainingError
from boxwright.evaluation import CocoEvaluator, evaluate_results, proposal_recall
from boxwright.evaluation.collect import encode
from boxwright.labels import LabelMap
from boxwright.structures import Batch, Detections

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
# What pycocotools 2.0.11 gives for `random_set(0)`, in the order of NAMES; -1 where there is no such object.
FIGURES = {
    "bbox": (
        0.144862,
        0.46057,
        0.061881,
        0.15066,
        0.166194,
        0.2,
        0.099394,
        0.269798,
        0.269798,
        0.228889,
        0.309524,
        0.2,
    ),
    "segm": (
        0.088313,
        0.396894,
        0.02269,
        0.088146,
        0.11242,
        -1.0,
        0.068636,
        0.199343,
        0.199343,
        0.153333,
        0.227381,
        -1.0,
    ),
}
LABELS = LabelMap(("cat", "dog"), (3, 7))


def reference(truth: dict, results: list[dict], iou_type: str, **params: object):
    """pycocotools' own COCOeval, after `accumulate` and `summarize`."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    truth, results = copy.deepcopy(truth), [{k: v for k, v in r.items() if k != dropped} for r in results]
    for number, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluator = cocoeval.COCOeval(gt, gt.loadRes(copy.deepcopy(results)), iou_type)
        for key, value in params.items():
            setattr(evaluator.params, key, value)
        evaluator.evaluate()
        evaluator.accumulate()
        if not params:
            evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pycocotools(random_set, iou_type, seed):
    truth, results = random_set(seed, masks=iou_type == "segm")
    expected = reference(truth, results, iou_type)
    measured = evaluate_results(truth, results, iou_type)
    for name, value in zip(NAMES, expected.stats, strict=True):
        found = measured.metrics.get(f"{iou_type}/{name}", -1.0)
        assert found == pytest.approx(value, abs=1e-9), name
    np.testing.assert_allclose(measured.precision, expected.eval["precision"][:, :, :, 0, -1], atol=1e-9)
    np.testing.assert_allclose(measured.scores, expected.eval["scores"][:, :, :, 0, -1], atol=1e-9)
    for k, overlap in ((2, 60), (4, 70), (6, 80), (8, 90)):
        precision = expected.eval["precision"][k, :, :, 0, -1]
        assert measured.metrics[f"{iou_type}/AP{overlap}"] == pytest.approx(
            precision[precision > -1].mean(), abs=1e-9
        )


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_figures_of_pycocotools(random_set, iou_type):
    metrics = evaluate_results(*random_set(0, masks=iou_type == "segm"), iou_type).metrics
    found = [metrics.get(f"{iou_type}/{name}", -1.0) for name in NAMES]
    assert found == pytest.approx(FIGURES[iou_type], abs=1e-6)


def test_each_class_is_measured_as_if_alone(random_set):
    truth, results = random_set(4)
    measured = evaluate_results(truth, results)
    for category in truth["categories"][:3]:
        alone = {
            **truth,
            "categories": [category],
            "annotations": [a for a in truth["annotations"] if a["category_id"] == category["id"]],
        }
        found = [r for r in results if r["category_id"] == category["id"]]
        assert measured.per_class[category["name"]] == pytest.approx(
            evaluate_results(alone, found).metrics, abs=1e-9
        )
    assert "class 4" not in measured.per_class  # it has no ground truth


@pytest.mark.parametrize("case", ["cocoapi_fakebbox100", "cocoapi_fakesegm100", "padilla_coco"])
def test_recorded_cases(shared_data, case):
    folder = shared_data / "coco_eval"
    expected = json.loads((folder / "expected.json").read_text())[case]
    truth = json.loads((folder / expected["gt"]).read_text())
    results = json.loads((folder / expected["results"]).read_text())
    if isinstance(results, dict):
        results = results["annotations"]
    measured = evaluate_results(truth, results, expected["iou_type"]).metrics
    long = {
        "APs": "APsmall",
        "APm": "APmedium",
        "APl": "APlarge",
        "ARs": "ARsmall",
        "ARm": "ARmedium",
        "ARl": "ARlarge",
    }
    for name in NAMES:
        value = expected["expected"][long.get(name, name)]
        assert measured[f"{expected['iou_type']}/{name}"] == pytest.approx(value, abs=1e-6), name


def test_two_objects_one_found_worked_by_hand(truth):
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == 2]
    # IoU with [5, 5, 30, 10] is 27 / 30 = 0.9; the false alarm stands behind it. Recall 1/2 at precision 1:
    # 51 of the 101 recall points.
    results = [
        {"image_id": 2, "category_id": 3, "bbox": [5, 5, 27, 10], "score": 0.9},
        {"image_id": 2, "category_id": 3, "bbox": [60, 0, 20, 20], "score": 0.8},
    ]
    metrics = evaluate_results(truth, results).metrics
    assert metrics["bbox/AP50"] == pytest.approx(51 / 101)
    assert metrics["bbox/AP"] == pytest.approx(51 / 101 * 0.9)  # nothing at 0.95
    assert metrics["bbox/AR1"] == pytest.approx(0.5 * 0.9)
    assert metrics["bbox/APs"] == pytest.approx(0.9)  # the object found is the only small one
    assert metrics["bbox/APm"] == 0.0
    assert "bbox/APl" not in metrics  # no large object: left out


def test_ground_truth_against_itself_is_one(truth, perfect):
    metrics = evaluate_results(truth, perfect).metrics
    assert metrics.pop("bbox/AR1") == pytest.approx(5 / 6)  # of two cats in one image, one is counted
    assert set(metrics.values()) == {1.0}
    before = copy.deepcopy((truth, perfect))
    evaluate_results(truth, perfect)
    assert (truth, perfect) == before  # nothing is written into what was given


def test_no_results_measure_zero(truth):
    metrics = evaluate_results(truth, []).metrics
    assert metrics
    assert set(metrics.values()) == {0.0}


def test_detection_in_a_crowd_region_counts_neither_way(truth, perfect):
    inside = {"image_id": 1, "category_id": 3, "bbox": [20, 65, 10, 10], "score": 0.99}
    assert evaluate_results(truth, [inside, *perfect]).metrics["bbox/AP"] == 1.0
    outside = {**inside, "bbox": [80, 0, 15, 15]}
    assert evaluate_results(truth, [outside, *perfect]).metrics["bbox/AP"] < 1.0


def test_area_may_be_missing(truth, perfect):
    expected = evaluate_results(truth, perfect).metrics
    for annotation in truth["annotations"]:
        del annotation["area"]
    assert evaluate_results(truth, perfect).metrics == expected


def test_counting_is_silent(truth, perfect, capfd):
    evaluate_results(truth, perfect)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_ground_truth_without_objects_is_refused(truth):
    truth["annotations"] = truth["annotations"][-1:]  # the crowd region
    with pytest.raises(DataError, match=r"no object to be found.*split"):
        evaluate_results(truth, [])


def test_unknown_metric_is_refused(truth):
    with pytest.raises(ConfigError, match="bbox, segm"):
        evaluate_results(truth, [], "boundary")
    with pytest.raises(ConfigError, match="bbox, segm"):
        CocoEvaluator(truth, LABELS, ("box",))


def test_proposal_recall_agrees_with_pycocotools(random_set):
    truth, results = random_set(7)
    proposals = [{k: v for k, v in r.items() if k != "category_id"} for r in results]
    measured = proposal_recall(truth, proposals, (2, 5, 100))
    one_class = [{**r, "category_id": 1} for r in results]
    expected = reference(truth, one_class, "bbox", useCats=0, maxDets=[2, 5, 100]).eval["recall"]
    for m, limit in enumerate((2, 5, 100)):
        for a, area in enumerate(("", "s", "m", "l")):
            values = expected[:, :, a, m]
            assert measured[f"proposals/AR{limit}{area}"] == pytest.approx(
                values[values > -1].mean(), abs=1e-9
            )
    assert measured["proposals/AR2"] < measured["proposals/AR100"]


def make_batch(truth: dict, scale: tuple[float, float], masks: bool = False) -> tuple[Batch, Detections]:
    """The ground truth as a detector would give it, on a canvas where images are scaled by (y, x)."""
    images = [*truth["images"], truth["images"][0]]
    ids = (*(image["id"] for image in truth["images"]), -1)  # the last is a padding repeat
    objects = [[a for a in truth["annotations"] if a["image_id"] == i and not a["iscrowd"]] for i in ids]
    boxes, labels = torch.zeros(4, 5, 4), torch.zeros(4, 5, dtype=torch.int64)
    scores, valid = torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool)
    for i, annotations in enumerate(objects):
        for k, a in enumerate(annotations):
            x, y, w, h = a["bbox"]
            boxes[i, k] = torch.tensor([x, y, x + w, y + h]) * torch.tensor([scale[1], scale[0]]).repeat(2)
            labels[i, k], scores[i, k], valid[i, k] = (
                LABELS.from_source(a["category_id"]),
                0.9 - 0.1 * k,
                True,
            )
    valid[3, 0] = True  # on the padding repeat: must not count
    original = torch.tensor([[image["height"], image["width"]] for image in images])
    sizes = (original * torch.tensor(scale)).round().long()
    batch = Batch(torch.zeros(4, 3, 256, 256, dtype=torch.uint8), sizes, None, ids, original)
    return batch, Detections(boxes, scores, labels, valid, torch.ones(4, 5, 28, 28) if masks else None)


def with_masks(truth: dict) -> dict:
    """The same data set with each box as a mask (boxes lie on whole pixels)."""
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        pixels = np.zeros((1, 100, 100), np.uint8)
        pixels[0, y : y + h, x : x + w] = 1
        annotation["segmentation"] = encode(pixels)[0]
    return truth


def test_an_object_without_a_mask_counts_neither_way_for_masks(truth):
    truth = with_masks(truth)
    lacking = truth["annotations"][1]  # the only dog, and as a table writes it
    lacking["segmentation"] = encode(np.zeros((1, 100, 100), np.uint8))[0]
    truth["annotations"].append({**lacking, "id": 20, "image_id": 2, "bbox": [60, 5, 20, 20]})
    truth["annotations"][-1]["segmentation"] = truth["annotations"][3]["segmentation"]  # a dog with a mask
    found = {"image_id": 2, "category_id": 7, "bbox": [50, 50, 40, 40], "score": 0.5}
    results = [
        {**found, "segmentation": truth["annotations"][3]["segmentation"]},
        # Inside the object whose mask is unknown, of a higher score: no false alarm.
        {**found, "image_id": 1, "bbox": [45, 15, 20, 20], "score": 0.9},
    ]
    pixels = np.zeros((1, 100, 100), np.uint8)
    pixels[0, 15:35, 45:65] = 1
    results[1]["segmentation"] = encode(pixels)[0]
    dogs = evaluate_results(truth, results, "segm").per_class["dog"]
    assert dogs["segm/AP"] == 1.0
    assert evaluate_results(truth, results, "bbox").per_class["dog"]["bbox/AP"] < 0.5


def test_oracle_through_update(truth):
    evaluator = CocoEvaluator(with_masks(truth), LABELS, ("bbox", "segm"))
    evaluator.update(*make_batch(truth, scale=(1.5, 2.25), masks=True))
    metrics = evaluator.compute()
    assert metrics["bbox/AP"] == metrics["segm/AP"] == 1.0
    assert evaluator.per_class["dog"]["segm/AP50"] == evaluator.per_class["cat"]["bbox/AP"] == 1.0
    assert [r["image_id"] for r in evaluator.results] == [1, 1, 2, 2]
    assert {r["category_id"] for r in evaluator.results} == {3, 7}
    assert evaluator.results[0]["segmentation"]["size"] == [100, 100]
    assert (
        evaluate_results(truth, json.loads(json.dumps(evaluator.results)), "segm").metrics["segm/AP"] == 1.0
    )


def test_boxes_are_mapped_by_the_exact_factor_of_each_axis(truth):
    evaluator = CocoEvaluator(truth, LABELS)
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor([[50, 64]]), None, (3,), torch.tensor([[100, 96]]))
    boxes = torch.tensor([[[8.0, 10.0, 32.0, 50.5]]])  # the last row beyond the image is clipped
    evaluator.update(
        batch, Detections(boxes, torch.ones(1, 1), torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
    )
    assert evaluator.results == [
        {"image_id": 3, "category_id": 3, "bbox": [12.0, 20.0, 36.0, 80.0], "score": 1.0}
    ]


def test_reset_and_repeated_images(truth):
    evaluator = CocoEvaluator(truth, LABELS)
    batch, detections = make_batch(truth, (1.0, 1.0))
    evaluator.update(batch, detections)
    evaluator.update(batch, detections)
    assert len(evaluator.results) == 4  # an image that comes again is kept once
    evaluator.reset()
    assert evaluator.results == []
    assert evaluator.compute()["bbox/AP"] == 0.0


def test_ranks_are_gathered_each_image_once(truth, monkeypatch):
    first, second = CocoEvaluator(truth, LABELS), CocoEvaluator(truth, LABELS)
    batch, detections = make_batch(truth, (1.0, 1.0))
    first.update(batch, detections)
    second.update(batch, detections)  # the repeats that fill up the last round
    collect = sys.modules["boxwright.evaluation.collect"]
    monkeypatch.setattr(collect, "gather_objects", lambda mine: [first._by_image, second._by_image])
    assert first.compute()["bbox/AP"] == 1.0
    assert len(first.results) == 4


def test_update_refuses_what_it_cannot_measure(truth):
    evaluator = CocoEvaluator(truth, LABELS)
    batch, detections = make_batch(truth, (1.0, 1.0))
    with pytest.raises(DataError, match="original_sizes"):
        evaluator.update(Batch(batch.images, batch.sizes), detections)
    with pytest.raises(DataError, match="image 77"):
        evaluator.update(
            Batch(batch.images, batch.sizes, None, (1, 2, 77, -1), batch.original_sizes), detections
        )
    detections.boxes[1, 0, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"image 2.*not finite"):
        evaluator.update(batch, detections)
    with pytest.raises(ConfigError, match="predicts none"):
        CocoEvaluator(with_masks(truth), LABELS, ("segm",)).update(batch, detections)


def test_classes_of_detector_and_ground_truth_must_agree(truth):
    with pytest.raises(DataError, match=r"'bird' has id 9.*\[3, 7\]"):
        CocoEvaluator(truth, LabelMap(("cat", "bird"), (3, 9)))
    with pytest.raises(DataError, match="'bird' to the detector but 'dog'"):
        CocoEvaluator(truth, LabelMap(("cat", "bird"), (3, 7)))


def test_masks_are_needed_for_segm(truth):
    with pytest.raises(DataError, match=r"annotation 0 has no mask.*bbox"):
        CocoEvaluator(truth, LABELS, ("segm",))
