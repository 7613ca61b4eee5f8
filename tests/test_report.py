"""The report is one page made from the run folder's files."""

import html.parser
import importlib.util
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import boxwright.data as data
from boxwright.errors import DataError, MissingExtraError
from boxwright.evaluation import evaluate_results, write_evaluation
from boxwright.report import read_metrics, write_plots, write_report
from boxwright.report.charts import (
    Axis,
    Point,
    Series,
    appearance,
    best_points,
    line_chart,
    scatter_chart,
    ticks,
)

CLASSES = ("cat", "<b>dog</b>")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four images with a box, a mask and a crowd region each, read as a COCO folder."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        name = f"img & {i}.jpg"
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(root / name)
        images.append({"id": i, "file_name": name, "width": 80, "height": 60})
        for k, x in enumerate((5, 45)):
            outline = [[x, 10, x + 20, 10, x + 20, 40, x, 40]]
            box = [x, 10, 20, 30]
            common = {"image_id": i, "bbox": box, "area": 600, "segmentation": outline, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "category_id": k + 1, **common})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (root / "instances.json").write_text(text)
    return data.folder(root, format="coco", val="instances.json").split("val")


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    """A run folder: perfect on images 1 and 2, a confusion on 3, a miss and a false alarm on 4."""
    truth = table.to_coco()
    results = []
    for a in truth["annotations"]:
        record = {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        if a["image_id"] == 3:
            record["category_id"] = 1
        if a["image_id"] == 4 and a["category_id"] == 1:
            record["bbox"] = [60, 45, 10, 10]
        results.append(record)
    run = tmp_path_factory.mktemp("runs") / "my <run>"
    for record in results:
        record["segmentation"] = encoded(record["segmentation"])
    metrics, per_class = {}, {}
    for kind in ("bbox", "segm"):
        measured = evaluate_results(truth, results, kind)
        metrics |= measured.metrics
        for name, values in measured.per_class.items():
            per_class.setdefault(name, {}).update(values)
    write_evaluation(run, metrics, per_class, results)
    lines = [
        {
            "kind": "train",
            "step": s,
            "epoch": s / 10,
            "lr": 0.1,
            "loss": 3 / s,
            "loss/box": 1 / s,
            "loss/cls": None,
            "stat/iou_threshold": 0.4 + s / 100,
            "stat/beta": 1.0,
        }
        for s in range(1, 31)
    ]
    lines += [{"kind": "val", "step": s, "epoch": s / 10, "bbox/AP": s / 50} for s in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, table, examples=2)
    return run


def encoded(segmentation) -> dict:
    from faster_coco_eval.core import mask

    rle = mask.segmToRle(segmentation, 80, 60)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order and collects their attributes."""

    VOID = ("meta", "img", "br", "line", "circle", "path", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


def parse(run) -> Tags:
    tags = Tags()
    tags.feed((run / "report.html").read_text(encoding="utf-8"))
    assert tags.open == []
    return tags


def test_page_is_whole_and_self_contained(finished):
    page = parse(finished)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^']*", "", text))
    for section in ("results", "classes", "learning", "curves", "confusion", "worst", "best"):
        assert f"<section id='{section}'>" in text
    assert "<b>dog</b>" not in text  # names are escaped
    assert "&lt;b&gt;dog" in text
    assert "NaN" not in text
    assert sum(address.startswith("data:") for address in page.addresses) == 4


def test_numbers_stand_in_the_page(finished):
    words = " ".join(parse(finished).words)
    metrics = json.loads((finished / "evaluation.json").read_text())
    assert f"{100 * metrics['bbox/AP']:.1f}" in words
    assert f"{100 * metrics['per_class']['cat']['bbox/AP50']:.1f}" in words
    assert "trained for 30 steps, 3 epochs" in words


def test_figures_and_pictures(finished):
    figures = json.loads((finished / "plots" / "figures.json").read_text())
    assert figures["score"] == pytest.approx(0.9)
    assert figures["confusion"]["counts"] == [[3, 0, 1], [1, 3, 0], [1, 0, 0]]
    worst = [
        (p["image"], p["right"], p["wrong"], p["missed"]) for p in figures["pictures"] if p["kind"] == "worst"
    ]
    assert worst == [("img & 3.jpg", 1, 1, 1), ("img & 4.jpg", 1, 1, 1)]
    best = [p["image"] for p in figures["pictures"] if p["kind"] == "best"]
    assert best == ["img & 1.jpg", "img & 2.jpg"]
    for name in ("training", "statistics", "classes", "sizes", "precision_recall", "confusion"):
        assert (finished / "plots" / f"{name}.png").stat().st_size > 1000


def test_page_comes_from_the_files_alone(finished, tmp_path):
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert write_report(copy).read_text() == before


def test_parts_without_files_are_left_out(finished, tmp_path):
    shutil.copy(finished / "metrics.jsonl", tmp_path)
    parse_run = write_report(tmp_path).parent
    text = (parse_run / "report.html").read_text()
    parse(parse_run)
    assert "id='learning'" in text
    assert "id='confusion'" not in text
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "plots", "report.html"]
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "none")


def test_without_matplotlib_the_page_says_so(finished, tmp_path, monkeypatch):
    shutil.copy(finished / "evaluation.json", tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    text = write_report(tmp_path).read_text()
    assert "pip install &#x27;boxwright[plot]&#x27;" in text
    with pytest.raises(MissingExtraError, match=r"boxwright\[plot\]"):
        write_plots(tmp_path)


def test_damaged_files(finished, tmp_path, table):
    lines = (finished / "metrics.jsonl").read_text()
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines + '{"kind": "tr')  # torn by a kill
    assert len(read_metrics(path)) == 33
    path.write_text("nonsense\n" + lines)
    with pytest.raises(DataError, match="line 1"):
        write_report(tmp_path)
    path.write_text(lines)
    (tmp_path / "config.json").write_text("{}")
    assert "The settings are not listed" in write_report(tmp_path).read_text()
    with pytest.raises(DataError, match=r"predictions\.json"):
        write_report(tmp_path, table)
    (tmp_path / "plots" / "figures.json").write_text("{")
    with pytest.raises(DataError, match=r"figures\.json"):
        write_report(tmp_path)


def test_settings_are_listed(finished, tmp_path):
    from boxwright.config import to_json
    from boxwright.recipes import recipe

    shutil.copy(finished / "metrics.jsonl", tmp_path)
    (tmp_path / "config.json").write_text(to_json(recipe("fcos_mnv2_320")))
    text = write_report(tmp_path).read_text()
    assert "id='settings'" in text
    assert "optimizer.lr" in text


def test_each_statistic_of_the_training_has_a_chart(finished):
    words = " ".join(parse(finished).words)
    assert "Statistics" in words
    assert "iou threshold" in words
    assert "beta" in words


def test_chart():
    chart = line_chart("t", [Series("a", [0, 1, 2], [1.0, float("nan"), 3.0])], Axis("x"), Axis("y"))
    assert chart.count("<circle") == 2
    assert chart.count("M") == 2  # the gap
    assert line_chart("t", [], Axis("x"), Axis("y")) == ""
    assert "<svg" in line_chart("t", [Series("a", [1], [1.0])], Axis("x"), Axis("y"))


def test_many_lines_differ():
    looks = [appearance(number) for number in range(21)]
    assert len(set(looks)) == 21
    series = [Series(f"line {k}", [0, 1], [k, k + 1], *look) for k, look in enumerate(looks)]
    chart = line_chart("t", series, Axis("x"), Axis("y"))
    assert chart.count("stroke-dasharray") == chart.count("repeating-linear-gradient") == 14


def test_scatter_names_its_points_and_draws_the_frontier():
    points = [Point("slow", 3, 0.6), Point("fast", 1, 0.4), Point("<beaten>", 2, 0.3), Point("equal", 1, 0.4)]
    assert [point.name for point in best_points(points)] == ["fast", "slow"]
    chart = scatter_chart("t", points, Axis("x", 0.0), Axis("y"), frontier=True)
    assert chart.count("<circle") == 4
    assert chart.count("class='frontier'") == 1
    assert "<beaten>" not in chart
    named = re.findall(r"<text class='name' x='([\d.]+)' y='([\d.]+)'>(\w+)<", chart)
    places = {name: (float(x), float(y)) for x, y, name in named}
    assert abs(places["fast"][1] - places["equal"][1]) > 8 or abs(places["fast"][0] - places["equal"][0]) > 30
    assert scatter_chart("t", [], Axis("x"), Axis("y")) == ""
    assert "frontier" not in scatter_chart("t", points, Axis("x"), Axis("y"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 12), (-3, 7), (0, 0.013), (1e4, 3e5), (5, 5.1)])
def test_ticks_are_round_and_inside(low, high):
    values = ticks(low, high)
    assert 3 <= len(values) <= 11
    assert low - 1e-9 <= values[0] < values[-1] <= high * (1 + 1e-9)
