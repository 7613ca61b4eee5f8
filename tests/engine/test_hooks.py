"""What the hooks write and show."""

import io
import json

import pytest
from rich.console import Console

from boxwright.engine import checkpoint
from boxwright.engine.hooks import (
    CheckpointHook,
    ConsoleHook,
    EvaluateHook,
    LearningRateHook,
    MetricsHook,
    ProfileHook,
    TensorBoardHook,
    default_hooks,
)
from boxwright.engine.hooks.metrics import mend
from boxwright.errors import ConfigError


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_means_rates_and_validations(toy, tmp_path):
    seen = []

    class Watch(MetricsHook):
        key, priority = "watch", 59

        def after_train_iter(self, state):
            seen.append({k: v.item() for k, v in state.losses.items()})

    state = toy.run(tmp_path / "run", epochs=2, batches=5, extra=[Watch()], clip_norm=1.0)
    records = lines(tmp_path / "run")
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 2), ("train", 4), ("train", 5), ("val", 5),
        ("train", 6), ("train", 8), ("train", 10), ("val", 10),
    ]  # fmt: skip
    second = records[1]
    assert second["loss/box"] == pytest.approx((seen[2]["loss/box"] + seen[3]["loss/box"]) / 2)
    assert second["loss"] == pytest.approx(second["loss/box"] + second["loss/l1"])
    assert second["lr"] == pytest.approx(0.05 * state.schedule.factor(3, 10, 5))
    assert second["epoch"] == pytest.approx(0.8)
    assert {"stat/out", "stat/gradient_norm", "images_per_second", "memory_mb"} <= second.keys()
    assert records[-1]["toy/score"] == state.metrics["toy/score"]


def test_torn_and_later_lines_are_dropped_on_resume(tmp_path):
    file = tmp_path / "metrics.jsonl"
    kept = ['{"kind": "train", "step": 2}', '{"kind": "val", "step": 2}', '{"kind": "train", "step": 4}']
    late = ['{"kind": "val", "step": 4}', '{"kind": "train", "step": 6}', '{"kind": "train", "st']
    file.write_text("\n".join([*kept, *late]))
    mend(file, 4)
    assert file.read_text().splitlines() == kept
    mend(file, 0)
    assert file.read_text() == ""
    mend(tmp_path / "none", 3)


def test_a_value_that_is_not_finite_is_null_in_json(toy, tmp_path):
    hooks = [MetricsHook(), EvaluateHook(lambda state: {"a": float("nan"), "b": 1})]
    toy.run(tmp_path / "run", epochs=1, hooks=hooks)
    last = lines(tmp_path / "run")[-1]
    assert last.pop("seconds") >= 0
    assert last == {"kind": "val", "step": 7, "epoch": 1, "a": None, "b": 1}


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5])])
def test_evaluates_every_few_epochs_and_at_the_end(toy, tmp_path, every, epochs):
    at = []
    toy.run(
        tmp_path / "run", epochs=5, batches=1, hooks=[EvaluateHook(lambda s: at.append(s.epoch) or {}, every)]
    )
    assert at == epochs


def score_by_epoch(scores):
    return EvaluateHook(lambda state: {"other": 0.0, "score": scores[state.epoch - 1]})


def test_best_is_kept_beside_the_newest(toy, tmp_path):
    scores = [0.1, 0.7, 0.3, 0.7, 0.2, float("nan")]
    hooks = [CheckpointHook(metric="score", keep=2), score_by_epoch(scores)]
    toy.run(tmp_path / "run", epochs=6, batches=2, hooks=hooks)
    folder = tmp_path / "run/checkpoints"
    assert [path.name for path in checkpoint.steps(folder)] == [
        "step_00000012",
        "step_00000010",
        "step_00000004",
    ]
    best = checkpoint.read_pointer(folder / "best")
    assert best == {"name": "step_00000004", "step": 4, "metric": "score", "value": 0.7}
    assert checkpoint.read_pointer(folder / "last")["name"] == "step_00000012"
    toy.run(tmp_path / "run", epochs=6, batches=2, resume=True,
            hooks=[CheckpointHook(metric="score", keep=2), score_by_epoch(scores)])  # fmt: skip
    assert checkpoint.read_pointer(folder / "best") == best


def test_falling_back_forgets_a_best_that_is_to_come(toy, tmp_path):
    make = lambda: [CheckpointHook(metric="score", keep=9), score_by_epoch([0.1, 0.2, 0.9])]  # noqa: E731
    toy.run(tmp_path / "run", epochs=3, batches=2, hooks=make())
    folder = tmp_path / "run/checkpoints"
    (folder / "step_00000006/state.pt").write_bytes(b"")
    state = toy.run(tmp_path / "run", epochs=3, batches=2, hooks=make(), resume=True)
    assert state.first_step == 4
    assert checkpoint.read_pointer(folder / "best")["step"] == 6
    assert checkpoint.verify(folder / "step_00000006") is None


def test_saves_by_minutes(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1, hooks=[CheckpointHook(minutes=1e-9, keep=99)])
    assert len(checkpoint.steps(tmp_path / "run/checkpoints")) == 7


def test_an_unknown_metric_is_told(toy, tmp_path):
    with pytest.raises(ConfigError, match="other, score"):
        toy.run(tmp_path / "run", hooks=[CheckpointHook(metric="bbox/AP"), score_by_epoch([1.0])])


@pytest.mark.parametrize("make", [lambda: CheckpointHook(keep=0), lambda: CheckpointHook(every=0),
                                  lambda: EvaluateHook(dict, -1), lambda: MetricsHook(0),
                                  lambda: ProfileHook(count=0)])  # fmt: skip
def test_senseless_arguments(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("terminal", [True, False])
def test_console(toy, tmp_path, terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    evaluate = EvaluateHook(lambda state: {"toy/score": 0.25})
    toy.run(tmp_path / "run", epochs=2, hooks=[LearningRateHook(), ConsoleHook(2, console=console), evaluate])
    said = text.getvalue()
    for part in ("training 0.00 M parameters", "epoch 2/2", "iteration 14/14", "loss", "lr", "images/s",
                 "GiB", "left", "toy/score 0.2500"):  # fmt: skip
        assert part in said, part


def test_each_record_of_a_log_is_one_line(toy, tmp_path):
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=20)
    evaluate = EvaluateHook(lambda state: {f"toy/a_long_name_{n}": 0.25 for n in range(6)})
    toy.run(tmp_path / "run", epochs=2, hooks=[LearningRateHook(), ConsoleHook(2, console=console), evaluate])
    lines = text.getvalue().splitlines()
    assert {line.split()[0] for line in lines} == {"training", "epoch", "validation"}
    assert all(line.endswith("left") for line in lines if line.startswith("epoch"))


def test_profile(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1, hooks=[ProfileHook(2, 2)])
    assert json.loads((tmp_path / "run/profile/trace.json").read_text())["traceEvents"]
    assert "conv" in (tmp_path / "run/profile/operators.txt").read_text()


def test_a_profile_that_never_began_is_told(toy, tmp_path, capsys):
    toy.run(tmp_path / "run", epochs=1, hooks=[ProfileHook(50)])
    assert "nothing was profiled" in capsys.readouterr().err


def test_tensorboard(toy, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy.run(
        tmp_path / "run", epochs=2, hooks=[LearningRateHook(), TensorBoardHook(2), score_by_epoch([0.5, 0.6])]
    )
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4, 6, 7, 8, 10, 12, 14]
    assert [e.value for e in events.Scalars("val/score")] == pytest.approx([0.5, 0.6])


def test_default_hooks_are_ordered_and_distinct():
    from boxwright.engine.state import order_hooks

    keys = [hook.key for hook in order_hooks(default_hooks(lambda state: {}))]
    assert keys == ["learning_rate", "nonfinite", "metrics", "console", "checkpoint", "evaluate"]
