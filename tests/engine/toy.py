"""A tiny model, loader and run; also a script, so that tests can kill it.

`toy.py OUT JSON` runs once. `toy.py` alone reads lines of `["OUT", {options}, ranks]` and forks a run for
each, which spares importing PyTorch; it writes the children's pids, and their wait statuses at their end.
"""

import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn

from boxwright import distributed
from boxwright.engine import CosineSchedule, Hook, TrainingInterrupted, Validation, default_hooks, sgd, train
from boxwright.structures import Batch, Detections, Targets


class Net(nn.Module):
    """Batch norm gives buffers, dropout draws random numbers."""

    def __init__(self, dropout=0.1, norm=True):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 4)

    def forward(self, batch):
        return self.loss(batch)

    def loss(self, batch):
        out = self.head(self.dropout(self.features(batch.images)))
        error = out - batch.targets.boxes[:, 0]
        return {
            "loss/box": error.square().mean(),
            "loss/l1": 0.1 * error.abs().mean(),
            "stat/out": out.mean(),
        }

    def features(self, images):
        return self.backbone(images.float() / 255).mean((2, 3))

    def predict(self, images, sizes):
        boxes = self.head(self.features(images))[:, None].float()
        ones = torch.ones(len(images), 1)
        return Detections(boxes, ones, ones.long(), ones.bool())


def make_batch(index, images=2):
    g = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (images, 3, 6, 6), generator=g, dtype=torch.uint8)
    boxes = torch.rand(images, 1, 4, generator=g)
    ones = torch.ones(images, 1, dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(images, 1, dtype=torch.long), ones, ~ones)
    ids = tuple(range(index * images, (index + 1) * images))
    return Batch(pixels, torch.full((images, 2), 6), targets, ids)


class Loader:
    """Shuffles by epoch; every rank takes its share; knows its position."""

    def __init__(self, batches=7, delay=0.0, images=2, shuffle=True):
        self.batches = [make_batch(i, images) for i in range(batches)]
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.delay, self.shuffle, self.epoch, self.position = delay, shuffle, 0, 0

    def __len__(self):
        return len(self.batches) // self.ranks

    def set_epoch(self, epoch):
        self.epoch, self.position = epoch, 0

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self):
        torch.rand(3)  # as a DataLoader does, disturbs the random state
        g = torch.Generator().manual_seed(self.epoch)
        order = (
            torch.randperm(len(self.batches), generator=g)
            if self.shuffle
            else torch.arange(len(self.batches))
        )
        mine = order.tolist()[self.rank :: self.ranks][: len(self)]
        for index in mine[self.position :]:
            self.position += 1
            time.sleep(self.delay)
            yield self.batches[index]
        self.position = 0


class WorkerLoader(Loader):
    """Its batches come from worker processes."""

    def __init__(self, batches):
        super().__init__(batches)
        self.processes = torch.utils.data.DataLoader(self.batches, batch_size=None, num_workers=2)

    def __iter__(self):
        for batch in self.processes:
            self.position += 1
            time.sleep(0.02)
            yield batch


class Evaluator:
    def reset(self):
        self.error, self.count = 0.0, 0

    def update(self, batch, detections):
        torch.rand(1)
        self.error += (detections.boxes - batch.targets.boxes).square().mean().item()
        self.count += 1

    def compute(self):
        return {"toy/score": 1 - self.error / self.count, "toy/error": self.error / self.count}


def run(
    out, *, epochs=3, batches=7, delay=0.0, hooks=None, extra=(), model=None, loader=None, lr=0.05,
    iterations=None, images=2, shuffle=True, dropout=0.1, norm=True, **options,
):  # fmt: skip
    torch.manual_seed(0)
    model = model or Net(dropout, norm)
    if hooks is None:
        evaluate = Validation([make_batch(100), make_batch(101)], Evaluator())
        hooks = default_hooks(evaluate, log_every=2, checkpoint_iterations=iterations, console=False)
    settings = {"device": "cpu", "precision": "fp32", **options}
    return train(
        model, loader or Loader(batches, delay, images, shuffle), sgd(model, lr),
        CosineSchedule(usual_warmup=3), epochs=epochs, out=Path(out), hooks=[*hooks, *extra], **settings,
    )  # fmt: skip


def weights(state):
    values = {f"model.{k}": v.clone() for k, v in state.model.state_dict().items()}
    if state.ema is not None:
        values |= {f"ema.{k}": v.clone() for k, v in state.ema.model.state_dict().items()}
    return values


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


class Misfortune(Hook):
    """A signal to this rank, or a loss that is not a number on one rank, at a step."""

    key = "misfortune"

    def __init__(self, interrupt, nan_at):
        self.interrupt, self.nan_at = interrupt, nan_at

    def before_train_iter(self, state):
        if state.step == self.interrupt and distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)
        if [distributed.rank(), state.step] == self.nan_at:
            state.batches[0].targets.boxes.fill_(float("nan"))


def main(out, options):
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    if options.pop("workers", False):
        options["loader"] = WorkerLoader(options["batches"])
    misfortune = Misfortune(options.pop("interrupt", None), options.pop("nan_at", None))
    try:
        if "call" in options:  # something else to do on every rank: `on_rank(out)` of a file
            return runpy.run_path(options["call"])["on_rank"](Path(out))
        state = run(out, extra=[misfortune], **options)
        if distributed.is_main():
            torch.save(weights(state), Path(out) / "final.pt")
    except TrainingInterrupted as error:
        print(error, file=sys.stderr)
    finally:
        distributed.stop()


def serve():
    import torch._dynamo  # optimisers and DistributedDataParallel import it late, in seconds
    import torch.distributed._functional_collectives  # noqa: F401

    for line in sys.stdin:
        out, options, ranks = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [os.fork() or child(rank, ranks, port, out, options) for rank in range(ranks)]
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in children]), flush=True)


def child(rank, ranks, port, out, options):
    os.setsid()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        main(out, options)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2])) if len(sys.argv) > 1 else serve()
