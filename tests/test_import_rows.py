"""The import graph: a file imports from rows below its own; the few sideways imports stand in one table.

Imports inside functions and under `TYPE_CHECKING` count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "boxwright"

ROWS = (
    "structures labels errors values distributed ops config",
    "models.layers models.backbones models.necks models.priors models.coders models.assigners models.samplers"
    " models.losses models.targets models.protocols models.suppression models.adaptive",
    "models.dense_heads models.roi_heads models.query_heads",
    "models.detectors engine evaluation data compress interop visualize demo_data",
    "recipes",
    "cli serve study export convert asynchronous api assembly inference metrics report demo doctor variance",
)
ROW_OF = {unit: number for number, row in enumerate(ROWS) for unit in row.split()}

# Within the lowest and the highest row any import is fine; in between, these alone.
SIDEWAYS = {
    "models.backbones": {"models.layers"},
    "models.necks": {"models.layers"},
    # a rule may be based on the loss of a pair
    "models.assigners": {"models.losses", "models.targets", "models.adaptive"},
    "models.losses": {"models.adaptive"},
    "models.samplers": {"models.targets"},
    "models.protocols": {"models.targets", "models.suppression"},
    "models.suppression": {"models.targets"},
    "data": {"visualize"},  # contact sheets draw objects as detections are drawn
    "interop": {"models.detectors"},  # other libraries' detectors become ours
}
# Without a row: the package's lazy names, which only the top row may use, and what says nothing of parts.
LAZY_NAMES = ""
FREE = {"models", "__main__", "__version__"}


def unit_of(module: str) -> str:
    """`models.losses.focal` belongs to `models.losses`, `data.folder` to `data`."""
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "models" else parts[:1])


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name, without `boxwright.`, of each import of our own in a file of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = [*base, *(node.module.split(".") if node.module else [])]
            # `from boxwright import ops` and `from ..models import targets` name a module by the alias.
            bare = stem in (["boxwright"], ["boxwright", "models"])
            targets = [".".join([*stem, alias.name] if bare else stem) for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "boxwright":
                yield node.lineno, target.removeprefix("boxwright").removeprefix(".")


def violations(source: str, module: str, package: tuple[str, ...]) -> list[str]:
    """What breaks the rows in one file; `module` is its dotted name without `boxwright.`."""
    unit = unit_of(module)
    found = []
    for line, target in imported_modules(source, package):
        other = unit_of(target)
        row, top = ROW_OF[unit], len(ROWS) - 1
        other_row = top if other == LAZY_NAMES else ROW_OF.get(other, top)
        sideways = other_row == row and (row in (0, top) or other in SIDEWAYS.get(unit, ()))
        if not (other == unit or other in FREE or other_row < row or sideways):
            found.append(f"line {line}: {unit} (row {row}) imports {other or 'boxwright'} (row {other_row})")
    return sorted(set(found))


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    module = dotted(path)
    if unit_of(module) in FREE | {LAZY_NAMES}:
        return
    assert unit_of(module) in ROW_OF, f"{module} has no row; give it one in {Path(__file__).name}"
    package = ("boxwright", *path.relative_to(PACKAGE).parent.parts)
    found = violations(path.read_text(encoding="utf-8"), module, package)
    assert not found, f"{path.relative_to(PACKAGE.parent)}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("engine.trainer", "from ..structures import Batch", False),
        ("engine.trainer", "from ..data import Loader", True),
        ("engine.trainer", "def f():\n    from boxwright.evaluation import coco", True),
        ("engine.trainer", "from boxwright import recipes", True),
        ("models.losses.iou", "from ...ops.boxes import iou", False),
        ("models.losses.iou", "from ..dense_heads import head", True),
        ("models.losses.iou", "from ..coders.delta import DeltaCoder", True),
        ("models.necks.fpn", "from ..layers.conv import ConvNorm", False),
        ("models.dense_heads.rpn", "from .. import targets", False),
        ("models.roi_heads.box", "import boxwright.models.dense_heads.head", True),
        ("ops.boxes", "import torch", False),
        ("data.folder", "import boxwright as bw", True),
        ("engine.checkpoint", "from .. import __version__", False),
    ],
)
def test_the_rule_itself(module: str, source: str, broken: bool) -> None:
    package = ("boxwright", *module.split(".")[:-1])
    assert bool(violations(source, module, package)) is broken
