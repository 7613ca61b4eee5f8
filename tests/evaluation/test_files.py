"""The measurement's files: whole or not there."""

import errno
import json
import os

import pytest

from boxwright.errors import DataError
from boxwright.evaluation import evaluate_results, read_evaluation, write_evaluation


def test_write_and_read(truth, perfect, tmp_path):
    measured = evaluate_results(truth, perfect)
    run = tmp_path / "run"
    path = write_evaluation(run, measured.metrics, measured.per_class, perfect, split="val")
    content = json.loads(path.read_text())
    assert content["bbox/AP"] == 1.0
    assert content["split"] == "val"
    assert read_evaluation(run) == (measured.metrics, measured.per_class)
    assert json.loads((run / "predictions.json").read_text()) == perfect
    assert sorted(os.listdir(run)) == ["evaluation.json", "predictions.json"]
    write_evaluation(run, measured.metrics, measured.per_class)  # without results, the old ones stay
    assert json.loads((run / "predictions.json").read_text()) == perfect


def test_nothing_half_written(tmp_path):
    write_evaluation(tmp_path, {"bbox/AP": 0.5}, {})
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(tmp_path, {"bbox/AP": float("nan")}, {})
    with pytest.raises(ValueError, match="already taken"):
        write_evaluation(tmp_path, {"bbox/AP": 0.1}, {}, **{"bbox/AP": 1})
    assert read_evaluation(tmp_path)[0] == {"bbox/AP": 0.5}
    assert os.listdir(tmp_path) == ["evaluation.json"]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"evaluation\.json"):
        write_evaluation(tmp_path, {"bbox/AP": 0.5}, {})
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged(tmp_path):
    with pytest.raises(DataError, match="boxwright evaluate"):
        read_evaluation(tmp_path)
    for text in ("", "[]", "[1]", '"x"'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(DataError, match=r"evaluation\.json cannot be read"):
            read_evaluation(tmp_path)
