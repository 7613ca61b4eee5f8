"""The loop: order of timepoints, the step, resuming bit for bit, stopping."""

import json
import os
import signal
import threading

import pytest
import torch
from torch import nn

from boxwright.engine import TIMEPOINTS, Hook, TrainingInterrupted, Validation, default_hooks
from boxwright.engine.hooks import CheckpointHook, LearningRateHook, NonFiniteHook
from boxwright.engine.state import order_hooks
from boxwright.engine.step import total_loss
from boxwright.errors import CheckpointError, ConfigError, TrainingError


class Recorder(Hook):
    def __init__(self, key, priority, log):
        self.key, self.priority, self.log = key, priority, log

    def __getattribute__(self, name):
        if name in TIMEPOINTS:
            return lambda state: self.log.append((name, self.key))
        return super().__getattribute__(name)


class StopAt(Hook):
    """Fails like a kill, or asks politely, at a step."""

    key = "stop_at"

    def __init__(self, step, how="raise"):
        self.step, self.how = step, how

    def before_train_iter(self, state):
        if state.step == self.step:
            if self.how == "raise":
                raise RuntimeError("pulled the plug")
            os.kill(os.getpid(), getattr(signal, self.how))


class Counter(Hook):
    """A user's hook with a state, of the default priority."""

    key = "counter"

    def __init__(self):
        self.iterations = self.epochs = 0

    def after_train_iter(self, state):
        self.iterations += 1

    def after_train_epoch(self, state):
        self.epochs += 1

    def state_dict(self):
        return {"iterations": self.iterations, "epochs": self.epochs}

    def load_state_dict(self, state):
        self.iterations, self.epochs = state["iterations"], state["epochs"]


def test_the_ten_timepoints_in_order(toy, tmp_path):
    log = []
    from boxwright.engine.hooks import EvaluateHook

    evaluate = EvaluateHook(Validation([toy.make_batch(5)], toy.Evaluator()))
    hooks = [
        Recorder("late", 60, log),
        Recorder("b", 50, log),
        evaluate,
        Recorder("a", 50, log),
        Recorder("early", 1, log),
    ]
    toy.run(tmp_path / "run", epochs=2, batches=2, hooks=hooks)
    names = [name for name, key in log if key == "a"]
    iteration = ["before_train_iter", "after_train_iter"]
    validation = ["before_val_epoch", "before_val_iter", "after_val_iter", "after_val_epoch"]
    epoch = ["before_train_epoch", *iteration, *iteration, "after_train_epoch", *validation]
    assert names == ["before_run", *epoch, *epoch, "after_run"]
    assert set(names) == set(TIMEPOINTS)
    assert [key for _, key in log[:4]] == ["early", "b", "a", "late"]


def test_a_clash_of_keys_is_an_error():
    with pytest.raises(ConfigError, match="share the key 'x'"):
        order_hooks([Recorder("x", 1, []), Recorder("x", 2, [])])
    with pytest.raises(ConfigError, match="no `key`"):
        order_hooks([Hook()])


def test_total_loss_takes_losses_only():
    terms = {"loss/a": torch.tensor(1.0), "loss/b": torch.tensor(2.0), "stat/c": torch.tensor(9.0)}
    assert total_loss(terms) == 3
    with pytest.raises(TrainingError, match="loss/"):
        total_loss({"stat/c": torch.tensor(9.0)})


def test_accumulation_equals_the_joined_batch(toy, tmp_path):
    from boxwright.structures import Batch, Targets

    class Joined(toy.Loader):
        def __iter__(self):
            first, second = self.batches
            targets = Targets(*(torch.cat([getattr(b.targets, n) for b in (first, second)])
                                for n in ("boxes", "labels", "valid", "ignore")))  # fmt: skip
            yield Batch(
                torch.cat([first.images, second.images]), torch.cat([first.sizes, second.sizes]), targets
            )

        def __len__(self):
            return 1

    options = {"dropout": 0.0, "norm": False, "epochs": 4, "clip_norm": 0.5}
    joined = toy.run(tmp_path / "a", loader=Joined(2), **options)
    split = toy.run(tmp_path / "b", loader=toy.Loader(2), accumulate=2, **options)
    assert joined.step == split.step == 4
    for key, value in toy.weights(joined).items():
        assert torch.allclose(value, toy.weights(split)[key], atol=1e-6), key


def test_an_epochs_last_step_takes_what_is_left(toy, tmp_path):
    state = toy.run(tmp_path / "run", batches=7, accumulate=3, epochs=2)
    assert state.steps_per_epoch == 3
    assert state.step == 6


@pytest.mark.parametrize("stop", [1, 6, 7, 11])
@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 1},
        {"iterations": 1, "accumulate": 2, "ema_decay": 0.9, "clip_norm": 1.0},
        {},
        {"iterations": 3, "precision": "bf16"},
    ],
)
def test_resume_is_exact(toy, tmp_path, stop, options):
    undisturbed = Counter()
    expected = toy.run(tmp_path / "whole", extra=[undisturbed], **options)
    with pytest.raises(RuntimeError, match="plug"):
        toy.run(tmp_path / "cut", extra=[Counter(), StopAt(stop)], **options)
    counter = Counter()
    resumed = toy.run(tmp_path / "cut", extra=[counter], resume=True, **options)
    toy.assert_equal(toy.weights(expected), toy.weights(resumed))
    assert counter.state_dict() == undisturbed.state_dict()
    assert resumed.metrics == expected.metrics
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def records(out):
    timed = ("images_per_second", "memory_mb", "seconds")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_a_finished_run_resumes_to_itself_and_can_be_extended(toy, tmp_path, capsys):
    first = toy.run(tmp_path / "run", epochs=2)
    again = toy.run(tmp_path / "run", epochs=2, resume=True)
    toy.assert_equal(toy.weights(first), toy.weights(again))
    assert first.metrics == again.metrics
    assert toy.run(tmp_path / "run", epochs=3, resume=True).step == 21
    toy.run(tmp_path / "run", epochs=1, resume=True)
    assert "is beyond the 7 steps asked for: nothing is left to train" in capsys.readouterr().err


def test_resume_without_a_checkpoint_begins(toy, tmp_path, capsys):
    state = toy.run(tmp_path / "run", resume=True)
    assert state.step == 21
    assert "from the beginning" in capsys.readouterr().err


def test_resume_refuses_what_does_not_fit(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1)
    with pytest.raises(CheckpointError, match="steps_per_epoch"):
        toy.run(tmp_path / "run", batches=5, resume=True)
    with pytest.raises(CheckpointError, match="ema_decay"):
        toy.run(tmp_path / "run", ema_decay=0.9, resume=True)
    with pytest.raises(CheckpointError, match="does not fit"):
        toy.run(tmp_path / "run", norm=False, resume=True)


def test_resume_follows_a_changed_learning_rate(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1, lr=0.05)
    state = toy.run(tmp_path / "run", epochs=2, lr=0.01, resume=True)
    assert state.optimizer.param_groups[0]["initial_lr"] == 0.01


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_saves_and_stops(toy, tmp_path, name, step):
    expected = toy.run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="resume=True") as caught:
        toy.run(tmp_path / "run", extra=[StopAt(step, name)])
    assert caught.value.exit_code == 128 + getattr(signal, name)
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = toy.run(tmp_path / "run", resume=True)
    assert resumed.first_step == step + 1
    toy.assert_equal(toy.weights(expected), toy.weights(resumed))
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_a_signal_during_validation_loses_nothing(toy, tmp_path):
    expected = toy.run(tmp_path / "whole")

    class InValidation(Hook):
        key = "in_validation"

        def before_val_iter(self, state):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted, match="step 7 of 21"):
        toy.run(tmp_path / "run", extra=[InValidation()])
    resumed = toy.run(tmp_path / "run", resume=True)
    toy.assert_equal(toy.weights(expected), toy.weights(resumed))
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_trains_outside_the_main_thread(toy, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(toy.run(tmp_path / "run", epochs=1)))
    thread.start()
    thread.join()
    assert done[0].step == 7


def test_a_failure_is_told_to_hooks_and_kept(toy, tmp_path):
    seen = []

    class Last(Hook):
        key = "last"

        def after_run(self, state):
            seen.append(state.failure)
            raise ValueError("and me")

    with pytest.raises(RuntimeError, match="plug") as caught:
        toy.run(tmp_path / "run", extra=[StopAt(2), Last()])
    assert seen == [caught.value]
    assert "and me" in caught.value.__notes__[0]


class Diverging(nn.Module):
    """Its second term is NaN for one image."""

    def __init__(self, bad, where):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.bad, self.where, self.steps = bad, where, 0

    def forward(self, batch):
        self.steps += 1
        value = self.weight.square()
        wrong = self.steps == self.bad
        if self.where == "gradient" and wrong:
            value = (
                value + 0 * torch.where(self.weight > -1, self.weight - self.weight, 1.0).sqrt()
            )  # finite, NaN slope
        return {"loss/a": value, "loss/b": value * (float("nan") if wrong and self.where == "loss" else 1.0)}


@pytest.mark.parametrize("every", [1, 20])
def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path, every, monkeypatch):
    hooks = [LearningRateHook(), NonFiniteHook(), CheckpointHook(iterations=2)]

    class Interval(Hook):
        key, priority = "interval", 0

        def before_run(self, state):
            state.check_every = every

    with pytest.raises(
        TrainingError, match=r"iteration 6 .*loss/b is nan for image ids \[10, 11\]"
    ) as caught:
        toy.run(
            tmp_path / "run", model=Diverging(6, "loss"), hooks=[*hooks, Interval()], batches=9, shuffle=False
        )
    assert "step_00000004" in str(caught.value)
    assert (tmp_path / "run/checkpoints/step_00000004").is_dir()
    assert not (tmp_path / "run/checkpoints/step_00000006").exists()


def test_weights_that_are_not_finite_are_never_saved(toy, tmp_path):
    hooks = [LearningRateHook(), NonFiniteHook(), CheckpointHook(iterations=2)]
    with pytest.raises(TrainingError, match="weights weight are not finite"):
        toy.run(tmp_path / "run", model=Diverging(6, "gradient"), hooks=hooks, batches=9)
    assert not (tmp_path / "run/checkpoints/step_00000006").exists()


def test_a_gradient_that_is_not_finite_is_found_where_it_is_clipped(toy, tmp_path):
    with pytest.raises(TrainingError, match=r"iteration 6.*gradient_norm is nan"):
        toy.run(
            tmp_path / "run",
            model=Diverging(6, "gradient"),
            hooks=[NonFiniteHook()],
            batches=9,
            clip_norm=1.0,
        )


def test_a_loader_of_a_wrong_length_is_told(toy, tmp_path):
    class Short(toy.Loader):
        def __len__(self):
            return 9

    with pytest.raises(TrainingError, match="loader's length"):
        toy.run(tmp_path / "run", loader=Short(7))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"accumulate": 0}, {"clip_norm": 0.0}])
def test_senseless_arguments(toy, tmp_path, options):
    with pytest.raises(ConfigError):
        toy.run(tmp_path / "run", **options)


def test_compiling_leaves_names_alone(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self: setattr(self, "asked", True))
    state = toy.run(tmp_path / "run", epochs=1, compile=True, hooks=default_hooks(console=False))
    assert state.model.asked
    assert not any("_orig_mod" in name for name in state.model.state_dict())


@pytest.mark.slow
def test_compiled_loss_trains_the_same(toy, tmp_path):
    options = {"epochs": 2, "dropout": 0.0, "ema_decay": 0.5}
    eager, compiled = toy.run(tmp_path / "a", **options), toy.run(tmp_path / "b", compile=True, **options)
    for key, value in toy.weights(eager).items():
        assert torch.allclose(value, toy.weights(compiled)[key], atol=1e-5), key
