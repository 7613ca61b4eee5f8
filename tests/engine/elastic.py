"""What the tests of elastic training run on each rank; a script that forks ranks, as `toy.py` beside it.

An option `job` names one of the functions here; they get the run folder, and the other options by name.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import toy

import boxwright as bw
from boxwright import distributed
from boxwright.data.loader import Loader
from boxwright.data.transforms import HorizontalFlip, PhotometricDistortion
from boxwright.engine import Hook, TrainingInterrupted, default_hooks
from boxwright.engine.communication import Communication
from boxwright.errors import BoxwrightError, DataError


class Mishap(Hook):
    """Something happens to one rank at a step."""

    key, priority = "mishap", 5

    def __init__(self, what, rank, step):
        self.what, self.rank, self.step = what, rank, step

    def before_train_iter(self, state):
        if (distributed.rank(), state.step) == (self.rank, self.step):
            happen(self.what)


def happen(what):
    if what == "sleep":
        time.sleep(60)
    if what == "error":
        raise DataError("image 7 is gone")
    if what == "bug":
        raise RuntimeError("a matrix is missing")
    os.kill(os.getpid(), getattr(signal, what))


class Seen(Hook):
    """Writes down which images each step was made of, over all ranks and accumulated batches."""

    key = "seen"

    def __init__(self, path):
        self.path = path

    def after_train_iter(self, state):
        mine = [i for batch in state.batches for i in batch.image_ids]
        ids = sorted(i for ids in distributed.gather_objects(mine) for i in ids)
        if distributed.is_main():
            with self.path.open("a") as file:
                file.write(json.dumps([state.step, ids]) + "\n")


class Slow(Hook):
    """Gives a killer time."""

    key = "slow"

    def __init__(self, seconds):
        self.seconds = seconds

    def before_train_iter(self, state):
        time.sleep(self.seconds)


def train(
    out, data, epochs=4, batch=4, accumulate=1, stop=None, mishap=None, delay=0.0, timeout=None, every=1,
    log=1, **options,
):  # fmt: skip
    """The toy's model on a data folder; `batch` images make up a step over all ranks."""
    share = batch // distributed.world_size() // accumulate
    transforms = (HorizontalFlip(), PhotometricDistortion())
    loader = Loader(bw.data.folder(data).train, transforms, batch_size=share, accumulate=accumulate)
    hooks = default_hooks(checkpoint_iterations=every, checkpoint_minutes=None, log_every=log, console=False)
    hooks += [Slow(delay), Seen(out.with_name(f"{out.name}.seen"))]
    if stop is not None:
        hooks.append(Mishap("SIGTERM", 0, stop))
    if mishap is not None:
        hooks.append(Mishap(*mishap))
    state = toy.run(
        out, loader=loader, hooks=hooks, epochs=epochs, accumulate=accumulate, dropout=0.0, norm=False,
        lr=0.02, clip_norm=1.0, ema_decay=0.5, communication=Communication(timeout_s=timeout), **options,
    )  # fmt: skip
    if distributed.is_main():
        torch.save(toy.weights(state), out / "final.pt")


def plain(out, mishap=None, **options):
    """The toy's own loader, which cannot share its steps out anew."""
    hooks = [Mishap(*mishap)] if mishap else []
    toy.run(out, extra=hooks, **options)


def own(out, **options):
    """Of each rank its own options, by `rank0_...`."""
    mine = f"rank{distributed.rank()}_"
    options = {k.removeprefix(mine): v for k, v in options.items() if k.startswith(mine) or k[:4] != "rank"}
    JOBS[options.pop("then")](out, **options)


def agree(out, version=None, settings=(), data=None):
    """The questions that ranks are asked at start."""
    import boxwright.engine.agreement as agreement
    from boxwright.config import apply_overrides
    from boxwright.data.fingerprint import contents

    if version is not None:
        agreement.__version__ = version
    config = bw.recipe("fcos_mnv2_320")
    apply_overrides(config, settings)
    questions = [agreement.agree_on_versions, lambda: agreement.agree_on_configuration(config)]
    if data is not None:
        questions.append(lambda: agreement.agree_on_data(contents(bw.data.folder(data))))
    for question in questions:
        try:
            question()
        except BoxwrightError as error:
            print(f"{type(error).__name__} on rank {distributed.rank()}: {error}", file=sys.stderr)


def recipe(out, name, settings, stop=None, **options):
    """`boxwright.train`."""
    from boxwright.config import apply_overrides

    config = bw.recipe(name)
    apply_overrides(config, settings)
    hooks = [] if stop is None else [Mishap("SIGTERM", 0, stop)]
    with contextlib.suppress(TrainingInterrupted):
        bw.train(config, out, console=False, report=False, hooks=hooks, **options)


def command(out, words):
    """`boxwright WORDS...`, which ends the process."""
    from boxwright.cli import main

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the launcher speaks to the test by the other
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


def agent(out, restarts, ranks=2, **options):
    """What `torchrun --max-restarts` does, with forked workers, which need no time to import."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, ranks, run_id=out.name, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts,
        start_method="fork", monitor_interval=0.05, local_addr="localhost",
    )  # fmt: skip
    elastic_launch(config, worker)(str(out), options)


def worker(out, options):
    out = Path(out)
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (out.parent / f"pid-{attempt}-{rank}").write_text(str(os.getpid()))
    random.seed(os.getpid())
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    try:
        train(out, **options)
    finally:
        distributed.stop()


JOBS = {job.__name__: job for job in (train, plain, own, agree, recipe, command, agent)}


def main(out, options):
    torch.set_num_threads(1)
    job = options.pop("job")
    if job not in ("agent", "command", "recipe"):  # these join the process group themselves
        distributed.start(torch.device("cpu"))
    try:
        JOBS[job](Path(out), **options)
    except TrainingInterrupted as error:
        print(error, file=sys.stderr)
    finally:
        distributed.stop()


if __name__ == "__main__":
    import faster_coco_eval  # noqa: F401
    import torch.distributed.launcher.api

    import boxwright.api
    import boxwright.cli.app

    for name in ("fcos_mnv2_320", "faster_rcnn_mnv2_320"):
        bw.build(bw.recipe(name), pretrained=False)  # imports what building needs
    toy.main = main
    toy.serve()
