"""The server's logic with workers in this process: what is applied, how stale it is, what is lost."""

import json
from collections import Counter

import pytest
import torch

from boxwright.asynchronous.server import Lost, Server, StalenessHook
from boxwright.asynchronous.worker import Computing, Worker
from boxwright.engine import CosineSchedule, Hook, default_hooks, resolve_precision, sgd, train
from boxwright.engine.placing import place_model
from boxwright.errors import CheckpointError, ConfigError, TrainingError

CPU = torch.device("cpu")
OPTIONS = {"device": "cpu", "precision": "fp32", "ema_decay": 0.5, "clip_norm": 1.0}


class Here:
    """Workers of this process, with random numbers of their own; who answers next is written in a list."""

    def __init__(self, toy, order=None, count=1, accumulate=1, batches=7, lost=()):
        self.toy, self.order, self.count = toy, iter(order or ()), count
        self.accumulate, self.batches, self.lost = accumulate, batches, list(lost)
        self.workers, self.tasks, self.random, self.answers = {}, {}, {}, 0

    def start(self, worker, position):
        before = torch.get_rng_state()
        model, loader = self.toy.Net(), self.toy.Loader(self.batches)
        loader.rank, loader.ranks = worker, self.count
        place_model(model, CPU, channels_last=False)
        computing = Computing(CPU, resolve_precision("fp32", CPU), self.accumulate, seed=0)
        self.workers[worker] = Worker(worker, model, loader, computing, position)
        self.random[worker] = torch.get_rng_state()
        torch.set_rng_state(before)

    def send(self, worker, task):
        assert worker not in self.tasks, "the worker is busy"
        self.tasks[worker] = task

    def receive(self):
        self.answers += 1
        worker = next(self.order, min(self.tasks))
        task = self.tasks.pop(worker)
        if self.answers in self.lost:
            return Lost(worker, "killed")
        before = torch.get_rng_state()
        torch.set_rng_state(self.random[worker])
        arrival = self.workers[worker].compute(task)
        self.random[worker] = torch.get_rng_state()
        torch.set_rng_state(before)
        return arrival


def run(toy, out, workers, *, epochs=3, bound=None, every=2, steps=None, resume=False, extra=(), seen=None):
    torch.manual_seed(0)
    model = toy.Net()
    steps = steps or workers.count * -(-len(range(workers.batches)) // workers.count // workers.accumulate)
    server = Server(model, workers, steps, bound)
    evaluate = toy.Validation([toy.make_batch(100), toy.make_batch(101)], toy.Evaluator())
    hooks = default_hooks(evaluate, log_every=2, checkpoint_iterations=1, console=False)
    state = train(
        model, server, sgd(model, 0.05), CosineSchedule(usual_warmup=3), epochs=epochs, out=out,
        hooks=[*hooks, StalenessHook(server, every), *extra], step=server.step, resume=resume, **OPTIONS,
    )  # fmt: skip
    if seen is not None:
        seen.append(server)
    return state


def ordinary(toy, out, accumulate=1):
    torch.manual_seed(0)
    model = toy.Net()
    evaluate = toy.Validation([toy.make_batch(100), toy.make_batch(101)], toy.Evaluator())
    hooks = default_hooks(evaluate, log_every=2, console=False)
    return train(
        model, toy.Loader(7), sgd(model, 0.05), CosineSchedule(usual_warmup=3), epochs=3, out=out,
        hooks=hooks, accumulate=accumulate, **OPTIONS,
    )  # fmt: skip


class Seen(Hook):
    key = "seen"

    def __init__(self):
        self.ids, self.staleness = [], []

    def after_train_iter(self, state):
        self.ids.append(state.batches[0].image_ids)
        self.staleness.append(int(state.losses["stat/staleness"]))


class Stop(Hook):
    key = "stop"

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, state):
        if state.step == self.step:
            raise RuntimeError("pulled the plug")


def lines(out, kind):
    return [r for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_worker_is_ordinary_training_bit_for_bit(toy, tmp_path, accumulate):
    expected = ordinary(toy, tmp_path / "plain", accumulate)
    steps = -(-7 // accumulate)
    state = run(toy, tmp_path / "run", Here(toy, accumulate=accumulate), steps=steps)
    toy.assert_equal(toy.weights(expected), toy.weights(state))
    assert state.metrics == expected.metrics
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses == [line["loss"] for line in lines(tmp_path / "plain", "train")]
    assert {line["max"] for line in lines(tmp_path / "run", "staleness")} == {0}


def test_staleness_is_counted_and_logged(toy, tmp_path):
    """Versions fetched: both 0; then each worker that of its last arrival."""
    seen, counted = Seen(), []
    workers = Here(toy, order=[0, 1, 0, 0, 0, 1], count=2, batches=12)
    run(toy, tmp_path / "run", workers, epochs=1, every=3, steps=6, extra=[seen], seen=counted)
    assert seen.staleness == [0, 1, 1, 0, 0, 3]
    first, second = lines(tmp_path / "run", "staleness")
    assert first == {"kind": "staleness", "step": 3, "epoch": 0.5, "mean": 2 / 3, "max": 1,
                     "histogram": {"0": 1, "1": 2}, "refused": 0}  # fmt: skip
    assert (second["step"], second["mean"], second["max"]) == (6, 1.0, 3)
    assert second["histogram"] == {"0": 2, "3": 1}
    assert counted[0].version == 6
    assert lines(tmp_path / "run", "train")[0]["stat/staleness"] == 0.5
    kept = json.loads((tmp_path / "run/asynchronous.json").read_text())
    assert kept == {"replicas": 2, "max_staleness": None}


def test_a_gradient_that_is_too_stale_is_computed_anew(toy, tmp_path):
    free, bounded = Seen(), Seen()
    order = [0, 1, 0, 0, 0, 1, 1]
    run(toy, tmp_path / "free", Here(toy, order, 2, batches=12), epochs=1, steps=6, extra=[free])
    run(toy, tmp_path / "bound", Here(toy, order, 2, batches=12), epochs=1, steps=6, bound=2, extra=[bounded])
    assert free.staleness[-1] == 3
    assert bounded.staleness == [0, 1, 1, 0, 0, 0]
    assert bounded.ids == free.ids  # the same images, none left out
    assert sum(line["refused"] for line in lines(tmp_path / "bound", "staleness")) == 1


def test_workers_share_the_images_and_each_passes_over_its_share(toy, tmp_path):
    seen = Seen()
    run(toy, tmp_path / "run", Here(toy, [0, 1] * 8, 2, batches=8), epochs=2, steps=8, extra=[seen])
    for epoch in (seen.ids[:8], seen.ids[8:]):
        assert Counter(i for ids in epoch for i in ids) == Counter(range(16))


@pytest.mark.parametrize("stop", [3, 7])  # in the middle, and between two epochs
def test_one_worker_resumes_exactly(toy, tmp_path, stop):
    expected = run(toy, tmp_path / "whole", Here(toy), epochs=2)
    with pytest.raises(RuntimeError, match="plug"):
        run(toy, tmp_path / "cut", Here(toy), epochs=2, extra=[Stop(stop)])
    state = run(toy, tmp_path / "cut", Here(toy), epochs=2, resume=True)
    assert state.first_step == stop
    toy.assert_equal(toy.weights(expected), toy.weights(state))
    for kind in ("train", "staleness", "val"):
        told = [
            [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "memory_mb")}
             for line in lines(tmp_path / name, kind)]
            for name in ("whole", "cut")
        ]  # fmt: skip
        assert told[0] == told[1]


def test_another_number_of_workers_cannot_resume(toy, tmp_path):
    with pytest.raises(RuntimeError, match="plug"):
        run(toy, tmp_path / "run", Here(toy, count=2, batches=8), steps=8, extra=[Stop(3)])
    with pytest.raises(CheckpointError, match="trained by 2 workers, not 1: resume with replicas=2"):
        run(toy, tmp_path / "run", Here(toy, batches=8), steps=8, resume=True)


def test_a_lost_worker_is_replaced_behind_its_last_answer(toy, tmp_path, capsys):
    expected = run(toy, tmp_path / "whole", Here(toy), epochs=1)
    state = run(toy, tmp_path / "run", Here(toy, lost=[1, 5, 6]), epochs=1)
    toy.assert_equal(toy.weights(expected), toy.weights(state))
    assert capsys.readouterr().err.count("worker 0 is lost (killed); another one takes its place") == 3


def test_a_worker_that_is_lost_again_and_again_ends_the_run(toy, tmp_path):
    with pytest.raises(TrainingError, match=r"worker 0 was lost 4 times in a row without an answer: killed"):
        run(toy, tmp_path / "run", Here(toy, lost=range(3, 20)))


def test_senseless_bound(toy):
    with pytest.raises(ConfigError, match="max_staleness=-1"):
        Server(toy.Net(), Here(toy), 7, -1)
