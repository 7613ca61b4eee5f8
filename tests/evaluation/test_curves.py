"""Curves, confusion and the score of each image, by hand."""

import numpy as np
import pytest

from boxwright.errors import ConfigError
from boxwright.evaluation import (
    best_threshold,
    confusion_matrix,
    evaluate_results,
    image_scores,
    precision_recall,
)


def wrong(image_id: int, category_id: int, box: list[float], score: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def test_curve_area_is_average_precision(random_set):
    truth, results = random_set(1)
    evaluation = evaluate_results(truth, results)
    for overlap, key in ((0.5, "bbox/AP50"), (0.75, "bbox/AP75")):
        curves = precision_recall(evaluation, overlap)
        assert [curve.name for curve in curves] == ["class 1", "class 2", "class 3"]
        mean = np.mean([curve.average_precision for curve in curves])
        assert mean == pytest.approx(evaluation.metrics[key], abs=1e-9)
        assert all(np.diff(curve.precision).max() <= 0 for curve in curves)
    with pytest.raises(ConfigError, match=r"0\.53"):
        precision_recall(evaluation, 0.53)


def test_best_threshold_cuts_off_false_alarms(truth, perfect):
    perfect[3]["score"] = 0.6
    false_alarms = [wrong(3, c, [0, 0, 20, 20], 0.3) for c in (3, 7)]
    curves = precision_recall(evaluate_results(truth, perfect + false_alarms))
    assert [curve.best_f1 for curve in curves] == [pytest.approx(1.0), pytest.approx(1.0)]
    assert curves[0].best_score == pytest.approx(0.6)
    assert best_threshold(curves) == pytest.approx(0.6)
    assert best_threshold(precision_recall(evaluate_results(truth, []))) == 0.5


def test_confusion_matrix_by_hand(truth, perfect):
    perfect[1]["category_id"] = 3  # the dog is taken for a cat
    del perfect[2]  # a cat is missed
    results = [
        *perfect,
        wrong(3, 7, [0, 0, 20, 20], 0.9),  # a dog where nothing is
        wrong(1, 7, [20, 65, 10, 10], 0.9),  # in the crowd region: not counted
        wrong(3, 7, [0, 0, 20, 20], 0.4),  # below the threshold
    ]
    matrix = confusion_matrix(truth, results, score=0.5)
    assert matrix.names == ("cat", "dog", "background")
    assert matrix.counts.tolist() == [[2, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_each_object_is_paired_once_with_the_best_overlap(truth):
    near, exact = wrong(1, 3, [10, 10, 20, 18], 0.95), wrong(1, 3, [10, 10, 20, 20], 0.6)
    matrix = confusion_matrix(truth, [near, exact])
    assert matrix.counts[0].tolist() == [1, 0, 2]
    assert matrix.counts[-1].tolist() == [1, 0, 0]
    other = wrong(1, 7, [10, 10, 20, 20], 0.99)  # the same overlap: the right class goes first
    assert confusion_matrix(truth, [exact, other]).counts[0].tolist() == [1, 0, 2]


def test_perfect_results_lie_on_the_diagonal(truth, perfect):
    counts = confusion_matrix(truth, perfect, score=0.0).counts
    assert np.array_equal(counts, np.diag(np.diag(counts)))
    assert np.diag(counts).tolist() == [3, 1, 0]
    assert confusion_matrix(truth, []).counts.tolist() == [[0, 0, 3], [0, 0, 1], [0, 0, 0]]


def test_image_scores_worst_first(truth, perfect):
    perfect = [r for r in perfect if r["bbox"] != [5, 5, 30, 10]]
    perfect[1]["category_id"] = 3
    scores = image_scores(truth, perfect, score=0.0)
    assert [(s.image_id, s.right, s.wrong, s.missed) for s in scores] == [
        (1, 1, 1, 1),
        (2, 1, 0, 1),
        (3, 0, 0, 0),
    ]
    assert [s.f1 for s in scores] == pytest.approx([0.5, 2 / 3, 1.0])
