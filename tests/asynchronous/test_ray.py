"""Asynchronous training as a user calls it; without Ray, what the user is told."""

import json
import sys

import fiddle as fdl
import pytest
from command_line import call
from tiny_settings import TINY_DENSE

import boxwright as bw
from boxwright.assembly import assemble
from boxwright.asynchronous.actors import require_ray
from boxwright.asynchronous.run import build_worker, refuse, steps_of
from boxwright.config import apply_overrides, to_json
from boxwright.errors import ConfigError, MissingExtraError

TINY = [*TINY_DENSE, "batch_size=2", "epochs=2"]


def tiny(data, *more) -> fdl.Config:
    config = bw.recipe("fcos_mnv2_320")
    apply_overrides(config, [*TINY, f"data.root={data}", *more])
    return config


def test_the_extra_is_named_where_ray_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"asynchronous training needs `ray`.*boxwright\[ray\]"):
        require_ray()
    assert call("train-async", "fcos_mnv2_320", "replicas=2", f"out={tmp_path}", "data.root=nowhere") == 1
    assert "boxwright[ray]" in capsys.readouterr().err
    assert call("train-async", "fcos_mnv2_320", "replicas=many", f"out={tmp_path}") == 2
    assert "replicas=many: a whole number is needed" in capsys.readouterr().err


def test_a_worker_is_built_from_the_configuration_that_a_run_keeps(tiny_data, tmp_path):
    parts = assemble(tiny(tiny_data), tmp_path, False, console=False)
    assert steps_of(parts, 2) == 4  # eight images, two a gradient
    shares = []
    for index in range(2):
        worker = build_worker(to_json(parts.config), (), index, 2, "cpu", None)
        assert worker.model.state_dict().keys() == parts.experiment.model.state_dict().keys()
        shares.append([i for batch in worker.loader for i in batch.image_ids])
    assert sorted(shares[0] + shares[1]) == list(range(1, 9))


@pytest.mark.parametrize(
    ("override", "told"),
    [("precise_norm=5", "precise_norm looks at training images"),
     ("memory.compile_budget=0.5", "memory.compile_budget is not for")],
)  # fmt: skip
def test_what_the_mode_does_not_do_is_refused(tiny_data, tmp_path, override, told):
    more = ["compile=true"] if "budget" in override else []
    parts = assemble(tiny(tiny_data, override, *more), tmp_path, False, console=False)
    with pytest.raises(ConfigError, match=told):
        refuse(parts, "cpu")


@pytest.mark.slow
def test_two_workers_train_and_the_run_is_like_any_other(tiny_data, tmp_path):
    pytest.importorskip("ray")
    from boxwright.asynchronous import train

    out = tmp_path / "run"
    run = train(tiny(tiny_data), out, 2, max_staleness=2, device="cpu", console=False, report=False)
    assert 0 <= run.metrics["bbox/AP"] <= 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stale = [line for line in lines if line["kind"] == "staleness"]
    assert sum(sum(line["histogram"].values()) for line in stale) == 8
    assert max(line["max"] for line in stale) <= 2
    assert bw.evaluate(out)["bbox/AP"] == run.metrics["bbox/AP"]
    with pytest.raises(ConfigError, match=r"Ray has .* CPUs"):
        train(tiny(tiny_data), tmp_path / "many", 4096, device="cpu", console=False)
