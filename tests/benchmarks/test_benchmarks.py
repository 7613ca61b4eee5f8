"""The benchmark scripts at toy sizes: that they measure what they say, and keep it."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

harness = importlib.import_module("benchmarks.harness")
detectors = importlib.import_module("benchmarks.detectors")
evaluator = importlib.import_module("benchmarks.evaluator")
gpu = importlib.import_module("benchmarks.gpu")
inference = importlib.import_module("benchmarks.inference")
loader = importlib.import_module("benchmarks.loader")
operators = importlib.import_module("benchmarks.operators")
savings = importlib.import_module("benchmarks.savings")
table = importlib.import_module("benchmarks.table")
training = importlib.import_module("benchmarks.training")
CPU = torch.device("cpu")


def test_competitors_run_in_turn_and_ratios_are_to_ours() -> None:
    order: list[str] = []
    runs = {who: lambda who=who: order.append(who) for who in ("ours", "theirs")}
    timings = harness.interleave(runs, 3, CPU, warmup=1)
    assert order == ["ours", "theirs"] * 4
    assert len(timings["ours"].seconds) == 3
    times = {"ours": harness.Timing((2.0, 2.0, 4.0)), "theirs": harness.Timing((4.0, 6.0, 5.0))}
    ours, theirs = harness.rows_of(times, "case", "fp32", CPU)
    assert (ours.seconds, ours.ratio, theirs.ratio) == (2.0, 1.0, 2.5)
    assert theirs.spread == pytest.approx(0.2)


def test_rows_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(harness, "ROWS", tmp_path / "rows")
    page = tmp_path / "benchmarks.md"
    page.write_text("# Page\n\n<!-- toy: begin -->\nold\n<!-- toy: end -->\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    row = harness.Row("case", "ours", "fp32", 2, "64x64", 0.5, 0.1, 1.0)
    for seconds in (0.5, 0.25):
        rows = [
            harness.Row(**{**vars(row), "seconds": seconds}),
            harness.Row(**{**vars(row), "who": "torchvision", "ratio": 3.0}),
        ]
        harness.record("toy", rows, CPU)
    assert "4 images/s" in capsys.readouterr().out
    with (tmp_path / "rows" / "toy.csv").open() as file:
        assert [line["seconds"] for line in csv.DictReader(file)] == ["0.5", "0.5", "0.25", "0.5"]
    table.main()
    text = page.read_text()
    assert "old" not in text
    assert "| case | ours | fp32 | 2 | 64x64 | 250 ms | 8 | 10% |" in text
    assert "3.00x" in text
    assert text.endswith("after\n")


def test_rows_go_where_they_are_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROWS", harness.ROWS)
    folder = tmp_path / "some" / "rows"
    options = ["benchmarks", "--rows", str(folder), "operators", "--only", "nms", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", options)
    runpy.run_module("benchmarks", run_name="__main__")
    with (folder / "operators.csv").open() as file:
        assert [row["who"] for row in csv.DictReader(file)] == ["ours", "torchvision"]


def test_a_checkout_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "boxwright":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(harness, "version", version)
    assert harness.versions()["boxwright"]


def test_a_case_that_does_not_fit_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with harness.leaving_out("toy, batch 64"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
    assert capsys.readouterr().out == "toy, batch 64 is left out: CUDA out of memory\n"
    with pytest.raises(AssertionError, match="differ"), harness.leaving_out("toy"):
        raise AssertionError("features differ")


@pytest.mark.parametrize(
    ("script", "seconds", "expected"),
    [("exit 0", 20, "done"), ("exit 3", 20, "failed"), ("sleep 60", 0.2, "stopped, its time was up")],
)
def test_a_line_of_the_plan_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, expected: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    start = time.perf_counter()
    assert gpu.run(gpu.Line("toy --x 1", seconds), start + 30) == expected
    assert time.perf_counter() - start < 10
    if seconds > 1:
        assert (tmp_path / "asked").read_text() == f"-m benchmarks --rows {harness.ROWS} toy --x 1\n"
    monkeypatch.setattr(gpu, "LEAST", 10.0)
    assert gpu.run(gpu.Line("toy", seconds), start + 5) == "left out"


@pytest.mark.parametrize("line", gpu.PLAN, ids=lambda line: line.options)
def test_the_plan_says_what_its_scripts_understand(line, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *options = line.options.split()
    script = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, *options])

    class Begins(Exception):
        pass

    def begin() -> None:
        raise Begins

    monkeypatch.setattr(harness, "the_device", begin)  # what comes after the options
    with pytest.raises(Begins):
        script.main()


class Toy:
    """Steps by competitor and precision; a text is the message of the error that one raises."""

    who = "peer"

    def __init__(self, **messages: str) -> None:
        self.messages = messages

    def step(self, who: str, precision: str) -> Callable[[], None]:
        def step() -> None:
            if message := self.messages.get(f"{who.split()[-1]}_{precision}"):
                raise RuntimeError(message)

        return step


def measured(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr(harness, "ROWS", tmp_path / "rows")
    training.measure(toy, "toy", 2, (8, 8), CPU, ["fp32", "bf16"], 1, ["ours", "ours, compiled"])
    with (tmp_path / "rows" / "training.csv").open() as file:
        return [(row["who"], row["precision"]) for row in csv.DictReader(file)]


def test_what_does_not_train_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(Toy(peer_fp32="no kernel", compiled_bf16="no graph"), tmp_path, monkeypatch)
    assert found == [("ours", "bf16"), ("peer", "bf16")]
    said = capsys.readouterr().out.splitlines()
    assert "toy, peer is left out, it does not train in fp32: no kernel" in said
    assert "toy, ours, compiled is left out, it does not train in bf16: no graph" in said
    with pytest.raises(RuntimeError, match="ours fails"):
        measured(Toy(ours_fp32="ours fails"), tmp_path, monkeypatch)


def test_rows_of_savings_stand_on_their_own_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(harness, "ROWS", tmp_path / "rows")
    benchmarks, memory = tmp_path / "benchmarks.md", tmp_path / "memory.md"
    benchmarks.write_text("# Page\n")
    memory.write_text(f"# Memory\n\n{savings.BEGIN}\nold\n{savings.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", benchmarks)
    monkeypatch.setattr(savings, "PAGE", memory)
    rows = [
        harness.Row("Toy, fixed statistics", who, "fp32", 2, "64x64", 0.5, 0.1, share, value=mib, note="MiB")
        for who, share, mib in (("plain", 1.0, 800.0), ("all together", 0.5, 400.0))
    ]
    harness.record("savings", rows, CPU)
    table.main()
    assert "no place" not in capsys.readouterr().out
    assert benchmarks.read_text() == "# Page\n"
    text = memory.read_text()
    assert "old" not in text
    assert "**Toy, fixed statistics**, batch 2, 64x64" in text
    assert "| all together | fp32 | 400 MiB | 50% | 0.5 s | 1.00x |" in text
    assert text.endswith("after\n")


@pytest.mark.parametrize("name", ["retinanet_r50_fpn", "faster_rcnn_mnv2_320"])
def test_both_detectors_do_the_same_work(name: str) -> None:
    pair = detectors.make_pair(name, 1, 64, 96, CPU)  # checks that features agree
    for who in ("ours", "torchvision"):
        pair.step(who, "fp32")()
        pair.predict(who, "fp32")()


def test_detections_agree_by_their_scores() -> None:
    theirs = torch.linspace(0.9, 0.1, 40)
    few = torch.ones(1, 50, dtype=torch.bool).cumsum(1) <= 40

    def share(mine: torch.Tensor) -> float:
        scores = torch.nn.functional.pad(mine, (0, 50 - len(mine)))[None]
        outputs = {"ours": SimpleNamespace(scores=scores, valid=few), "peer": [{"scores": theirs}]}
        pair = SimpleNamespace(who="peer", predict=lambda who, _: lambda: outputs[who])
        return inference.difference(pair)

    assert share(theirs + 1e-6) == 0
    turned = torch.cat((theirs[:10], theirs[11:], torch.tensor([0.05])))  # all ranks from there on change
    assert share(turned) == pytest.approx(1 / 40)
    assert share(theirs + 0.005) > inference.ALIKE


def test_the_synthetic_results_give_the_metrics_of_pycocotools() -> None:
    truth, results = evaluator.synthetic(20, 150, 1500)
    measured = evaluator.evaluate_results(truth, results).metrics
    expected = evaluator.theirs(truth, results)
    for key, value in zip(evaluator.KEYS, expected, strict=True):
        assert measured[f"bbox/{key}"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("reduced", [False, True])
def test_the_loaders_do_equal_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduced: bool) -> None:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    case = loader.Case(file=(96, 128), short=48, long=64)
    root = loader.make_folder(tmp_path / "photos", 8, case.file)
    loader.check_equal_work(root, case, reduced)
    assert loader.consume(loader.ours(root, case, 4, reduced)) == 8
    assert loader.consume(loader.theirs(root, case, 4)) == 8


def test_operators_agree() -> None:
    case = operators.suppression(CPU)
    assert case.difference() == 0


def test_the_scripts_are_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "training" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "benchmarks", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode != 0
