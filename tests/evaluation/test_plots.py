"""Plots: files are written, and nothing global is touched."""

import sys

import numpy as np
import pytest
from PIL import Image

from boxwright.errors import MissingExtraError
from boxwright.evaluation import confusion_matrix, evaluate_results, plots, precision_recall

matplotlib = pytest.importorskip("matplotlib")

TRAIN = [{"epoch": e, "loss": 2 - e / 2, "loss/box": 1.0, "lr": None if e == 1 else 0.1} for e in (1, 2, 3)]
VAL = [{"epoch": 2, "bbox/AP": 0.2}, {"epoch": 3, "bbox/AP": None}]


def style() -> dict:
    """All settings but the backend, which would be chosen by asking for it."""
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}


def is_picture(path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and np.array(image.convert("L")).std() > 1


def test_all_plots(random_set, tmp_path):
    truth, results = random_set(2)
    evaluation = evaluate_results(truth, results)
    curves = precision_recall(evaluation)
    matrix = confusion_matrix(truth, results)
    backend, settings = matplotlib.get_backend(auto_select=False), style()
    files = [
        plots.plot_precision_recall(curves, tmp_path / "deep" / "pr.png"),
        plots.plot_precision_recall(curves * 5, tmp_path / "many.png"),
        plots.plot_precision_recall(curves[:1], tmp_path / "one.png"),
        plots.plot_confusion(matrix, tmp_path / "confusion.png"),
        plots.plot_training(TRAIN, VAL, tmp_path / "training.png"),
        plots.plot_training(TRAIN, [], tmp_path / "no_validation.png"),
        plots.plot_statistics([{"epoch": e, "stat/a": e, "stat/b": 1.0} for e in (1, 2)], tmp_path / "s.png"),
        plots.plot_classes(evaluation.per_class, tmp_path / "classes.png"),
        plots.plot_classes({"cat": {"voc/AP50": 0.5}}, tmp_path / "voc.png"),
        plots.plot_sizes(evaluation.metrics, tmp_path / "sizes.png"),
        plots.plot_sizes({"bbox/AP": 0.5, "segm/AP": 0.4, "segm/APs": 0.1}, tmp_path / "two.png"),
    ]
    assert all(is_picture(path) for path in files)
    assert matplotlib.get_backend(auto_select=False) == backend
    assert style() == settings
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"boxwright\[plot\]"):
        plots.plot_sizes({"bbox/AP": 0.5}, tmp_path / "sizes.png")
