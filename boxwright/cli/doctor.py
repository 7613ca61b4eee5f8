"""`boxwright doctor`."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Say what this machine and installation offer, and test the operators.

        boxwright doctor

    Shows versions, devices, the precision that `precision=auto` takes and why, and for each operator its
    backend and the largest difference from its plain reference. The exit code is 1 if an operator is wrong.
    """  # fmt: skip
    from rich.console import Console

    from ..doctor import examine

    report = examine()
    Console().print(report)
    if not report.healthy:
        raise typer.Exit(1)
