"""The table by hand: means and deviations over seeds, failed runs, and the files that keep it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from boxwright.errors import DataError
from boxwright.study.page import histories, trade_offs, write_page
from boxwright.study.protocol import training_time
from boxwright.study.request import Request
from boxwright.study.rows import Row, csv_text, markdown, read_study, table, write_study

LEVELS = ("AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "APs", "APm", "APl")


def row(variant: str, seed: int = 0, ap: float = 0.5, **changed) -> Row:
    metrics = {f"bbox/{name}": ap - k / 100 for k, name in enumerate(LEVELS)} | {"bbox/AR1": 0.9}
    made = Row(variant, "fcos_mnv2_320", ("epochs=2",), seed, "d", f"runs/{variant}-{seed}", "finished")
    measured = {"split": "test", "metrics": metrics, "parameters": 2_500_000, "steps": 100, "epochs": 2.0}
    times = {"minutes": 1.5, "images_per_second": 9.0, "seconds_per_image": 0.02}
    return replace(made, **{**measured, **times, "about": {"machine": "M"}, **changed})


ROWS = [
    row("a", 0, 0.5),
    row("a", 1, 0.6, minutes=2.5),
    row("b | c", 0, 0.54, memory_mb=1000.0),
    replace(row("d"), status="failed", error="no\n  way", metrics={}),
    replace(row("d", 1, 0.1), metrics={"bbox/AP": 0.1}),
    Row("e", "x", (), 0, "d", "runs/e", "left out", "the data has no masks"),
]


def test_means_deviations_and_failures() -> None:
    titles, lines = table(ROWS)
    costs = ["parameters, M", "steps", "minutes", "images/s", "memory, MiB", "ms an image"]
    assert titles == ["variant", *LEVELS, *costs]
    shown = {line[0]: dict(zip(titles, line, strict=True)) for line in lines}
    assert shown["a"]["AP"] == "**0.550 ± 0.071**"  # the root of 2 * 0.05^2
    assert shown["a"]["AP90"] == "**0.490 ± 0.071**"
    assert shown["a"]["minutes"] == "2.0 ± 0.7"
    assert shown["a"]["memory, MiB"] == "-"
    assert shown["b | c"]["AP"] == "0.540"
    assert shown["b | c"]["memory, MiB"] == "1000"
    assert shown["d (1 of 2 failed)"]["AP"] == "0.100"
    assert shown["d (1 of 2 failed)"]["AP50"] == "-"
    assert shown["e (left out)"]["AP"] == "-"


def test_markdown_says_what_was_measured_and_what_failed() -> None:
    text = markdown(ROWS, "study", "boxwright study a")
    assert "4 finished runs, measured on the split test" in text
    assert "mean and standard deviation over the seeds [0, 1]" in text
    assert "boxwright study a\n" in text
    assert "- d, seed 0: no way" in text
    assert "- e, seed 0: the data has no masks" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert "b \\| c" in lines[3]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "No run has finished" in markdown([], "study")


def test_masks_have_columns_of_their_own() -> None:
    titles, lines = table([row("a", metrics={"bbox/AP": 0.5, "segm/AP": 0.25, "segm/AP50": 0.5})])
    assert titles[1:4] == ["AP", "mask AP", "mask AP50"]
    assert lines[0][2] == "**0.250**"


def test_files_hold_every_run(tmp_path: Path) -> None:
    write_study(tmp_path, Request(("a",), overrides=("epochs=2",)), ROWS)
    request, rows = read_study(tmp_path)
    assert rows == ROWS
    assert request == Request(("a",), overrides=("epochs=2",))
    read = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [line["status"] for line in read] == [r.status for r in ROWS]
    assert float(read[1]["bbox/AP"]) == 0.6
    assert read[3]["bbox/AP"] == ""
    assert read[0]["overrides"] == "epochs=2"
    assert csv_text(ROWS).splitlines()[0].endswith("bbox/AR1,machine")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(DataError, match="delete it"):
        read_study(tmp_path)
    assert read_study(tmp_path / "none") == (None, [])


def test_times_are_those_of_the_steps() -> None:
    lines = [
        {"kind": "train", "step": s, "epoch": s / 4, "images_per_second": pace, "memory_mb": 10.0 * s}
        for s, pace in ((2, 4.0), (4, 8.0), (6, 1.0), (8, 4.0))
    ]
    lines.insert(2, {"kind": "val", "step": 4, "epoch": 1, "bbox/AP": 0.1})
    assert training_time(lines, batch_size=30) == {
        "steps": 8,
        "epochs": 2.0,
        "minutes": 1.0,  # 240 images at the median of 4 a second
        "images_per_second": 4.0,
        "memory_mb": 80.0,
    }
    assert training_time([], 8) == {}


def test_curves_and_points_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, values in ((0, (0.1, 0.3)), (1, (0.3, 0.5))):
        folder = tmp_path / f"runs/a-{seed}"
        folder.mkdir(parents=True)
        lines = [{"kind": "val", "step": e, "epoch": e, "bbox/AP": v} for e, v in enumerate(values, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = histories(tmp_path, ROWS, "bbox/AP")
    assert list(found) == ["a"]
    assert found["a"] == ([1.0, 2.0], pytest.approx([0.2, 0.4]))
    points = trade_offs(ROWS, "bbox")
    assert points["minutes of training"]["a"] == pytest.approx((2.0, 0.55))
    assert points["ms an image at inference"]["b | c"] == pytest.approx((20.0, 0.54))
    assert trade_offs(ROWS, "segm") == {}
    text = write_page(tmp_path, Request(("a",)), ROWS).read_text()
    assert text.count("<svg") == 4
    assert "1 of 2 failed" in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "bbox_curves.png",
        "bbox_training.png",
        "bbox_inference.png",
    }
    assert "No run has finished" in write_page(tmp_path / "empty", Request(), []).read_text()
