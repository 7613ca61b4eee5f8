"""Broken results and ground truth: the message names file, record and remedy."""

import json

import pytest

from boxwright.errors import DataError
from boxwright.evaluation import check_ground_truth, check_results, read_results

GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}

BROKEN_RECORDS = [
    (7, "record 1 is a int"),
    ({**GOOD, "image_id": None}, "image_id None.*whole number"),
    ({**GOOD, "image_id": True}, "image_id True"),
    ({**GOOD, "image_id": 1.5}, "image_id 1.5"),
    ({**GOOD, "image_id": 99}, "image 99, which the ground truth does not list.*data set"),
    ({k: v for k, v in GOOD.items() if k != "category_id"}, "lacks 'category_id'"),
    ({**GOOD, "category_id": "cat"}, "category_id 'cat'"),
    ({**GOOD, "category_id": 0}, "category 0; the ground truth knows 3, 7.*not labels"),
    ({**GOOD, "score": float("nan")}, "score nan.*finite"),
    ({**GOOD, "score": "high"}, "score 'high'"),
    ({k: v for k, v in GOOD.items() if k != "score"}, "score None"),
    ({**GOOD, "bbox": [1, 2, 3]}, "four finite numbers"),
    ({**GOOD, "bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
    ({**GOOD, "bbox": "1234"}, "four finite numbers"),
    ({**GOOD, "bbox": [10, 10, -3, 4]}, "negative size.*not two corners"),
    ({k: v for k, v in GOOD.items() if k != "bbox"}, "bbox None"),
    ({**GOOD, "segmentation": [[1, 1, 2, 2, 3, 3]]}, "no polygons, encode the mask"),
    (
        {**GOOD, "segmentation": {"size": [50, 100], "counts": "abc"}},
        r"\[50, 100\] but its image \[100, 100\]",
    ),
    (
        {**GOOD, "segmentation": {"size": [100, 100], "counts": "abc"}},
        "not a run-length.*write the mask again",
    ),
    ({**GOOD, "segmentation": {"size": [100, 100], "counts": ""}}, "not a run-length"),
    ({**GOOD, "segmentation": {"size": [100, 100], "counts": 5}}, "not a run-length"),
    ({**GOOD, "segmentation": {"size": [100, 100], "counts": [1, 2]}}, "not a run-length"),
]


@pytest.mark.parametrize(("record", "message"), BROKEN_RECORDS)
def test_broken_records(truth, tmp_path, record, message):
    path = tmp_path / "found.json"
    path.write_text(json.dumps([GOOD, record]))
    with pytest.raises(DataError, match=message) as caught:
        read_results(path, truth)
    assert f"{path}: record 1" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2", "\x00", "{}", "7", '"text"', "null"])
def test_broken_files(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"found\.json"):
        read_results(path)


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.json.*give the path"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="not JSON"):
        read_results(tmp_path / "bytes.json")


def test_good_records_pass_unchanged(truth):
    assert check_results([GOOD], truth) == [GOOD]
    assert check_results([], truth) == []
    assert check_results([{**GOOD, "image_id": 1.0}], truth)[0]["image_id"] == 1


def test_a_mask_without_box_gets_its_box(truth):
    runs = [10 * 100 + 20, 5, 95, 5, 10000 - 1020 - 105]  # rows 20..24 of columns 10 and 11
    record = {k: v for k, v in GOOD.items() if k != "bbox"}
    record["segmentation"] = {"size": [100, 100], "counts": runs}
    checked = check_results([record], truth)[0]
    assert checked["bbox"] == [10, 20, 2, 5]
    assert isinstance(checked["segmentation"]["counts"], str | bytes)
    assert json.dumps(checked)


def test_data_set_with_scores_is_taken_as_results(truth, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"annotations": [GOOD]}))
    assert read_results(path, truth) == [GOOD]


def test_broken_ground_truth(truth):
    with pytest.raises(DataError, match="is a list, not a COCO data set"):
        check_ground_truth([])
    with pytest.raises(DataError, match="no list 'categories'"):
        check_ground_truth({"images": [], "annotations": []})
    annotation = truth["annotations"][1]
    for change, message in [
        ({"image_id": 5}, "annotation 1 is on image 5"),
        ({"category_id": 4}, "annotation 1 has category 4; known are 3, 7"),
        ({"bbox": [0, 0, 1]}, "annotation 1 has bbox"),
    ]:
        annotations = [annotation | change]
        with pytest.raises(DataError, match=message):
            check_ground_truth({**truth, "annotations": annotations})
    with pytest.raises(DataError, match="image id 1 stands twice"):
        check_ground_truth({**truth, "images": [truth["images"][0]] * 2})
