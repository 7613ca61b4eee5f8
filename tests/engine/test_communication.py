"""Settings of the exchange between ranks: two processes on gloo, and what their results should be."""

import contextlib
import sys
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn

import boxwright as bw
from boxwright import distributed
from boxwright.config import apply_overrides, build, from_json, to_json
from boxwright.engine import Hook, communication, default_hooks, find_last, load_state, load_weights, sgd
from boxwright.engine.communication import Communication, check_communication, stages
from boxwright.engine.hooks import LearningRateHook
from boxwright.engine.powersgd import PowerSGD
from boxwright.errors import ConfigError

TINY = 0.0005  # MiB: several buckets
WIDTH = 12
SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
VARIANTS = {
    "plain": {},
    "copied": {"gradient_as_bucket_view": False},
    "buckets": {"bucket_mb": TINY},
    "static": {"static_graph": True},
    "unused": {"find_unused": True, "bucket_mb": TINY},
    "fp16": {"compress": "fp16"},
    "bf16": {"compress": "bf16", "bucket_mb": TINY},
    "fsdp": {"shard": "fsdp"},
    "fsdp_bf16": {"shard": "fsdp", "compress": "bf16"},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Deep(nn.Module):
    """A backbone with a stem and two stages, a frozen layer, and a head with a single number."""

    def __init__(self, idle=False):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, WIDTH, 3)
        self.backbone.stages = nn.ModuleList([nn.Sequential(Block(), Block()), nn.Sequential(Block())])
        self.head, self.scale = nn.Linear(WIDTH, 4), nn.Parameter(torch.tensor(0.5))
        self.idle = nn.Linear(2, 2) if idle else None
        self.backbone.stem.bias.requires_grad_(False)

    def features(self, images):
        x = self.backbone.stem(images.float() / 255)
        for stage in self.backbone.stages:
            for block in stage:
                x = block(x)
        return x.mean((2, 3))

    def forward(self, batch):
        error = self.head(self.features(batch.images)) * self.scale - batch.targets.boxes[:, 0]
        return {"loss/box": error.square().mean()}

    def predict(self, images, sizes):
        boxes = (self.head(self.features(images)) * self.scale)[:, None]
        toy = sys.modules["__main__"]
        return toy.Detections(boxes, torch.ones(len(images), 1), torch.zeros(len(images), 1).long(),
                              torch.ones(len(images), 1).bool())  # fmt: skip


class Losses(Hook):
    key = "losses"

    def __init__(self):
        self.values = []

    def after_train_iter(self, state):
        self.values.append(float(distributed.mean_over_ranks(state.losses["loss/box"])))


def run(out, *, hooks=None, seen=None, **options):
    """Two epochs of two steps of three passes each."""
    toy = sys.modules["__main__"]
    settings = {"epochs": 2, "batches": 12, "accumulate": 3, "clip_norm": 0.5, "ema_decay": 0.5, **options}
    model = settings.pop("model", None) or Deep()
    hooks = [LearningRateHook()] if hooks is None else hooks
    return toy.run(out, model=model, hooks=[*hooks, *([seen] if seen else [])], **settings)


def weights_of(state):
    from boxwright.engine.sharding import whole

    found = {f"model.{k}": v for k, v in whole(state.model.state_dict()).items()}
    return found | {f"ema.{k}": v for k, v in whole(state.ema.model.state_dict()).items()}


def on_rank(out):
    if distributed.world_size() == 4:
        return four_ranks(out)
    results = {}
    for name, options in VARIANTS.items():
        results[name] = weights_of(run(out / name, communication=Communication(**options)))
        results[name] = {k: v.clone() for k, v in results[name].items() if v is not None}
    if distributed.is_main():
        torch.save(results, out / "results.pt")
    exact_resumes(out)
    error_feedback(out)
    count_exchanges(out)
    unused(out)


def exact_resumes(out):
    """Whole runs, and runs that stop in the middle and go on; PowerSGD from its third step on."""
    toy = sys.modules["__main__"]
    compressed = {"compress": "powersgd", "powersgd_rank": 2, "powersgd_start": 2, "bucket_mb": TINY}
    for name, options in (("powersgd", compressed), ("sharded", {"shard": "fsdp"})):
        ends = {}
        for way in ("whole", "cut"):

            def go(stop, resume=False, folder=out / f"{name}_{way}", options=options):
                losses = Losses()
                evaluate = toy.Validation([toy.make_batch(100)] * (1 + distributed.rank()), toy.Evaluator())
                hooks = default_hooks(evaluate, checkpoint_iterations=3, console=False)
                state = run(folder, hooks=hooks, seen=losses, epochs=4, lr=0.2, resume=resume,
                            extra=[Stop(stop)], communication=Communication(**options))  # fmt: skip
                return {"weights": weights_of(state), "losses": losses.values}

            with contextlib.suppress(RuntimeError):
                ends[way] = go(stop=5 if way == "cut" else None)
            if way == "cut":
                ends[way] = go(None, resume=True)
        if distributed.is_main():
            torch.save(ends, out / f"{name}.pt")


class Stop(Hook):
    key = "stop"

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, state):
        if state.step == self.step:
            raise RuntimeError("pulled the plug")


def error_feedback(out):
    """What was applied, and what is still to be sent, sum up to what was computed."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((24, 18), (12, 3, 3, 3), (5,))]
    powersgd = PowerSGD({p: str(i) for i, p in enumerate(parameters)}, 2, 0)
    generator = torch.Generator().manual_seed(distributed.rank())
    computed, applied = ([torch.zeros(p.shape) for p in parameters] for _ in range(2))
    lags = []
    for _ in range(20):
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        for total, gradient in zip(computed, gradients, strict=True):
            total += gradient
        powersgd._reduce_compressed(parameters, gradients)
        for total, gradient in zip(applied, gradients, strict=True):
            total += gradient
        lags.append(float(powersgd.errors["0"].norm()))
    for total in computed:
        dist.all_reduce(total)
    for error in powersgd.errors.values():
        dist.all_reduce(error)
    if distributed.is_main():
        errors = {name: error / 2 for name, error in powersgd.errors.items()}
        means = [total / 2 for total in computed]
        told = {"computed": means, "applied": applied, "errors": errors, "lags": lags}
        torch.save(told, out / "feedback.pt")


def count_exchanges(out):
    """Exchanges of gradients in four steps, with one pass a step and with three."""
    counted = Counter()
    for name, options, module, function in (
        ("ddp", {"compress": "bf16"}, communication, "average_bucket"),
        ("fsdp", {"shard": "fsdp"}, dist, SCATTER),
    ):
        for accumulate in (1, 3):
            key, original = f"{name}_{accumulate}", getattr(module, function)

            def exchange(*arguments, key=key, original=original, **more):
                counted[key] += 1
                return original(*arguments, **more)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, function, exchange)
                run(out / f"count_{key}", batches=4 * accumulate, accumulate=accumulate,
                    communication=Communication(**options))  # fmt: skip
    if distributed.is_main():
        torch.save(dict(counted), out / "counted.pt")


def unused(out):
    with pytest.raises(
        ConfigError, match=r"2 parameters .* idle.weight, idle.bias\. Freeze them .*find_unused=true"
    ):
        run(out / "idle", model=Deep(idle=True))
    run(out / "found", model=Deep(idle=True), communication=Communication(find_unused=True))
    run(out / "known", model=Deep(idle=True), communication=Communication(static_graph=True))


@pytest.fixture(scope="module")
def done(launcher, tmp_path_factory):
    out = tmp_path_factory.mktemp("communication")
    launcher.start(out, ranks=2, call=__file__)
    assert launcher.wait() == [0, 0], launcher.said()
    return out


@pytest.fixture(scope="module")
def results(done):
    return torch.load(done / "results.pt", weights_only=True)


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


@pytest.mark.parametrize(
    ("name", "largest"),
    [("copied", 0), ("buckets", 0), ("static", 1e-6), ("unused", 0), ("fp16", 2e-5), ("bf16", 2e-4),
     ("fsdp", 1e-6), ("fsdp_bf16", 2e-4)],
)  # fmt: skip
def test_settings_change_the_result_no_more_than_stated(results, name, largest):
    lost = difference(results["plain"], results[name])
    assert lost <= largest
    assert (lost > 0) or "16" not in name  # rounding was at work


@pytest.mark.parametrize("name", ["powersgd", "sharded"])
def test_a_run_that_was_cut_goes_on_exactly(done, name):
    ends = torch.load(done / f"{name}.pt", weights_only=True)
    assert difference(ends["whole"]["weights"], ends["cut"]["weights"]) == 0
    losses = ends["whole"]["losses"]
    assert ends["cut"]["losses"] == losses[-len(ends["cut"]["losses"]) :]
    assert losses[-1] < losses[0] / 2


def test_compressing_starts_when_it_should(done):
    whole, compressed = (
        torch.load(done / f"{name}.pt", weights_only=True)["whole"]["losses"]
        for name in ("sharded", "powersgd")
    )
    assert compressed[:3] == pytest.approx(whole[:3], abs=1e-6)
    assert compressed[-1] != pytest.approx(whole[-1], abs=1e-6)
    assert compressed[-1] == pytest.approx(whole[-1], rel=0.05)


def test_error_feedback_loses_nothing(done):
    """Applied gradients and the errors still to be sent sum up to the computed ones."""
    told = torch.load(done / "feedback.pt", weights_only=True)
    for index, (computed, applied) in enumerate(zip(told["computed"], told["applied"], strict=True)):
        error = told["errors"].get(str(index))
        late = 0 if error is None else error.view(computed.shape)
        torch.testing.assert_close(applied + late, computed, atol=1e-4, rtol=0)
    assert set(told["errors"]) == {"0", "1"}  # the vector travels as it is
    assert max(told["lags"]) < 3 * told["lags"][0]  # it is sent in time: the errors do not pile up


def test_ranks_exchange_in_the_last_pass_alone(done):
    counted = torch.load(done / "counted.pt", weights_only=True)
    assert counted["ddp_1"] == counted["ddp_3"] == 4
    assert counted["fsdp_1"] == counted["fsdp_3"] == 4 * 3  # two stages and what is in none


def test_a_checkpoint_of_shards_is_like_any_other(done, results):
    path = find_last(done / "sharded_whole")
    ends = torch.load(done / "sharded.pt", weights_only=True)["whole"]["weights"]
    model = Deep()
    for average, prefix in ((False, "model."), (True, "ema.")):
        weights, _ = load_weights(path, ema=average)
        assert (
            difference(weights, {k.removeprefix(prefix): v for k, v in ends.items() if k.startswith(prefix)})
            == 0
        )
        model.load_state_dict(weights)
    saved, optimizer = load_state(path)["optimizer"], sgd(model, 0.1)
    own = optimizer.state_dict()["param_groups"]
    assert [g["params"] for g in own] == [g["params"] for g in saved["param_groups"]]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
    momenta = [
        (p.shape, optimizer.state[p]["momentum_buffer"].shape)
        for g in optimizer.param_groups
        for p in g["params"]
    ]
    assert len(momenta) == 22
    assert all(parameter == momentum for parameter, momentum in momenta)


def test_stages_are_the_blocks_of_a_container():
    model = Deep()
    first, second = model.backbone.stages
    assert stages(model) == [list(first), list(second)]
    first.requires_grad_(False)
    assert stages(model) == [list(second)]
    second.extend(Block() for _ in range(9))
    assert [len(stage) for stage in stages(model)] == [8, 2]
    assert stages(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compress": "zip"}, "choose one of none, fp16, bf16, powersgd"),
        ({"shard": "zero"}, "choose one of none, fsdp"),
        ({"bucket_mb": 0}, "bucket_mb=0 must be positive"),
        ({"timeout_s": -1}, "timeout_s=-1 must be positive"),
        ({"powersgd_rank": 0}, "powersgd_rank=0"),
        ({"static_graph": True, "find_unused": True}, "set one of them"),
        ({"shard": "fsdp", "static_graph": True, "bucket_mb": 1}, "static_graph, bucket_mb cannot be had"),
        ({"shard": "fsdp", "compress": "powersgd"}, "compress=powersgd cannot be had"),
    ],
)
def test_senseless_settings(options, told):
    with pytest.raises(ConfigError, match=told):
        Communication(**options)


@pytest.mark.parametrize(
    ("options", "precision", "compiled", "told"),
    [
        ({"compress": "powersgd", "powersgd_start": 5}, "fp16", False, "loss scaling of precision=fp16"),
        ({"compress": "powersgd", "powersgd_start": 10}, "fp32", False, "the run has 10 steps"),
        ({"shard": "fsdp"}, "fp16", False, "without loss scaling"),
        ({"shard": "fsdp"}, "bf16", True, "compile=true"),
    ],
)
def test_settings_that_do_not_fit_the_run(options, precision, compiled, told):
    with pytest.raises(ConfigError, match=told):
        check_communication(Communication(**options), precision, compiled, 10)


def test_recipes_take_the_settings_from_the_command_line():
    config = bw.recipe("fcos_mnv2_320")
    apply_overrides(config, ["communication.compress=bf16", "communication.timeout_s=60"])
    again = from_json(to_json(config))
    assert build(again.communication) == Communication(compress="bf16", timeout_s=60.0)
    with pytest.raises(ConfigError, match=r"communication\.compress takes"):
        apply_overrides(config, ["communication.compress=zip"])


def test_one_process_says_that_nothing_is_exchanged(toy, tmp_path, capsys):
    toy.run(tmp_path / "a", epochs=1, communication=Communication(compress="bf16"))
    assert "one process: the settings of `communication` have no effect" in capsys.readouterr().err
    toy.run(tmp_path / "b", epochs=1)
    assert "communication" not in capsys.readouterr().err


def test_errors_of_other_ranks_are_shared_out(monkeypatch):
    """With another number of ranks, what is still to be sent stays the same on average."""
    parameter = nn.Parameter(torch.zeros(3, 4))
    state = {"bases": {"w": torch.ones(4, 1)}, "errors": [{"w": torch.ones(3, 4)}, {"w": torch.zeros(3, 4)}]}
    powersgd = PowerSGD({parameter: "w"}, 1, 0)
    powersgd.load_state_dict(state, 7, torch.device("cpu"))
    assert powersgd.step == 7
    assert torch.equal(powersgd.errors["w"], torch.full((3, 4), 0.5))
    powersgd.load_state_dict(None, 8, torch.device("cpu"))  # a run that did not compress so far
    assert powersgd.step == 8


def four_ranks(out):
    """With more than two ranks the order of a sum matters; buckets whose layout stays keep it on resuming."""
    for name, options in (
        ("stays", {"find_unused": True, "bucket_mb": TINY}),
        ("moves", {"bucket_mb": TINY}),
    ):
        ends = {}
        for way in ("whole", "cut"):
            for resume in (False, True) if way == "cut" else (False,):
                stop = Stop(3 if way == "cut" and not resume else None)
                hooks = [*default_hooks(checkpoint_iterations=1, console=False), stop]
                with contextlib.suppress(RuntimeError):
                    state = run(out / f"{name}_{way}", hooks=hooks, batches=24, resume=resume,
                                communication=Communication(**options))  # fmt: skip
                    ends[way] = weights_of(state)
        if distributed.is_main():
            torch.save(ends, out / f"{name}.pt")


@pytest.mark.slow
def test_four_ranks_resume_exactly_where_the_buckets_stay(launcher, tmp_path):
    launcher.start(tmp_path, ranks=4, call=__file__)
    assert launcher.wait() == [0] * 4, launcher.said()
    for name, largest in (("stays", 0), ("moves", 1e-7)):
        ends = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert difference(ends["whole"], ends["cut"]) <= largest
