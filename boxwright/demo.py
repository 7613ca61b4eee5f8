"""`boxwright demo`: from nothing to a trained, measured detector of handwritten digits, with a report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from .api import Run, train
from .data import folder
from .demo_data import make_digits
from .recipes.demo import fcos_digits


def run(out: Path = Path("runs/demo")) -> Run:
    """Make the digits data set, train on it, evaluate, and write the run folder with its report.

    A demo that was interrupted goes on where it stopped; a finished one is only evaluated again.

    Args:
        out: folder for the data set (`digits/`) and the run (`run/`).

    Raises:
        MissingExtraError: scikit-learn or matplotlib is missing; the extra `demo` brings both.
        DataError: `out/digits` holds something else.
    """
    console = Console()
    console.print("[bold]1[/] making a data set of handwritten digits")
    root = make_digits(out / "digits", train=1600)
    console.print(f"  an ordinary COCO folder: {root}")
    console.print("[bold]2[/] training a small FCOS from scratch: about four minutes on two CPU cores")
    experiment = fcos_digits()
    experiment.data = folder(root)
    finished = train(experiment, out / "run", resume=(out / "run" / "config.json").is_file())
    console.print(str(finished.metrics))
    console.print(f"[bold]3[/] the report, for any browser: {finished.path / 'report.html'}")
    picture = root / "images" / "val_00000.jpg"
    console.print(f"  try the detector: boxwright predict {finished.path} {picture}", soft_wrap=True)
    return finished
