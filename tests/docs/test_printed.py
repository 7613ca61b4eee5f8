"""What the pages print can be typed in: commands and Python, with what takes long exchanged for stand-ins."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from doc_pages import PAGES, ROOT, blocks, commands, lines, name_of
from PIL import Image
from torch.distributed.run import get_args_parser

import boxwright as bw
from boxwright.cli import main
from boxwright.config import build, to_json
from boxwright.inference import Detector
from boxwright.labels import LabelMap
from boxwright.metrics import Metrics
from boxwright.recipes.norms import override
from boxwright.study import plan

WITH_PYTHON = [page for page in PAGES if any("boxwright" in text for text in blocks(page, "python"))]


def stand_in(real: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes what the real one takes, and nothing else."""

    wanted = inspect.signature(answer).parameters

    def called(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(real).bind(*args, **kwargs).arguments
        return answer(**{name: value for name, value in given.items() if name in wanted})

    return called


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = bw.recipe("fcos_mnv2_320")
    config.model.backbone.name = "mobilenetv3_small_050"
    config.model.neck.out_channels = config.model.head.channels = 32
    model = bw.build(config, num_classes=2, pretrained=False)
    canvas, transforms = build(config.canvas), build(config.eval_transforms)
    return Detector(model, LabelMap(("red", "green")), transforms, canvas, precision="fp32", config=config)


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, detector: Detector
) -> Iterator[pytest.MonkeyPatch]:
    """A folder that holds what the pages speak of, and functions that answer at once."""
    here = tmp_path_factory.mktemp("desk")
    for name in ("photo.jpg", "a.jpg", "b.jpg", "c.jpg", "holiday/x.jpg"):
        (here / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (90, 120, 30)).save(here / name)
    (here / "docs").symlink_to(ROOT / "docs")
    (here / "runs" / "bccd").mkdir(parents=True)
    (here / "runs" / "bccd" / "config.json").write_text(to_json(bw.recipe("fcos_mnv2_320")))
    for page in PAGES:  # files that a page prints before it uses them
        for text in blocks(page, "text", "python"):
            if name := re.match(r"# (\w+\.txt)\n", text):
                (here / name[1]).write_text(text)
            if "def fcos_cells" in text:
                (here / "cells.py").write_text(text)

    def study(variants: Any, named: Any = None, overrides: Any = (), vary: Any = (), data: Any = None) -> Any:
        if isinstance(variants, dict):
            return [SimpleNamespace(variant=name, metrics={"bbox/AP": 0.5}, minutes=1.0) for name in variants]
        chosen = plan.ready_made(named) if named else [plan.parse_variant(text) for text in variants]
        for variant in plan.cross(chosen, plan.parse_grid(vary)):
            override(bw.recipe(str(variant.recipe)), [*overrides, *variant.overrides])
        return []

    def train(experiment: Any, out: Any) -> Any:
        assert experiment is None or experiment.model is not None
        return SimpleNamespace(path=Path(out), metrics={})

    conversion = SimpleNamespace(
        report=SimpleNamespace(names=(), dropped=()), label_map=LabelMap(("a",)), path="x.safetensors"
    )
    answers: dict[str, Callable[..., Any]] = {
        "boxwright.api.train": train,
        "boxwright.api.evaluate": lambda: Metrics({}),
        "boxwright.api.load": lambda: detector,
        "boxwright.api.show": lambda: None,
        "boxwright.asynchronous.train": train,
        "boxwright.convert.convert_checkpoint": lambda: conversion,
        "boxwright.data.folder": lambda: FOLDER(tiny_data),
        "boxwright.data.convert": lambda: None,
        "boxwright.demo.run": lambda: None,
        "boxwright.doctor.examine": lambda: SimpleNamespace(healthy=True),
        "boxwright.study.study": study,
        "boxwright.variance.gradient_variance": lambda: MagicMock(),
    }
    for name in ("train", "evaluate", "load", "show"):
        answers[f"boxwright.{name}"] = answers[f"boxwright.api.{name}"]
    answers["boxwright.gradient_variance"] = answers["boxwright.variance.gradient_variance"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        places = [(importlib.import_module(name.rpartition(".")[0]), name) for name in answers]
        real = {name: getattr(module, name.rpartition(".")[2]) for module, name in places}
        for module, name in places:
            patch.setattr(module, name.rpartition(".")[2], stand_in(real[name], answers[name]))
        yield patch


FOLDER = bw.data.folder


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_commands_can_be_given(
    page: str, words: list[str], desk: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code, f"{page}: boxwright {' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("page", "slow"),
    [pytest.param(page, False, id=name_of(page)) for page in WITH_PYTHON]
    + [pytest.param(ROOT / "docs" / "using.md", True, marks=pytest.mark.slow, id="exported")],
)
def test_python_runs(page: Path, slow: bool, desk: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"bw": bw, "__name__": "page"}
    if page.name in ("data_formats.md", "using.md"):  # their blocks go on from each other
        names |= {"data": bw.data.folder("anywhere"), "found": bw.load("runs/bccd")("photo.jpg")}
    for text in blocks(page, "python"):
        if "torch.export" in text and not slow:
            continue
        known = set(names)
        exec(compile(text, name_of(page), "exec", dont_inherit=True), names)
        for name in set(names) - known:  # recipes that a page writes
            made = names[name]
            if inspect.isfunction(made) and made.__module__ == "page" and "return" in made.__annotations__:
                assert made().model is not None


def test_launchers_take_their_options() -> None:
    parser, found = get_args_parser(), 0
    for page, words in lines():
        if "torchrun" in words and "-m" in words:
            given = words[words.index("torchrun") + 1 :]
            parsed = parser.parse_args(given)
            assert parsed.module, name_of(page)
            assert parsed.training_script == "boxwright", name_of(page)
            found += 1
    assert found > 5


def test_targets_and_benchmarks_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for page, words in lines():
        if words[0] == "make":
            named = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert named <= targets, f"{name_of(page)}: make {named - targets}"
        if words[:3] == ["python", "-m", "benchmarks"] and len(words) > 3:
            assert words[3] in scripts, f"{name_of(page)}: no benchmark {words[3]}"
            source = (ROOT / "benchmarks" / f"{words[3]}.py").read_text()
            for option in (word for word in words[4:] if word.startswith("--")):
                assert f'"{option}"' in source, f"{name_of(page)}: {words[3]} has no {option}"
