"""The package as a whole: what importing it costs, what it ships, what it must not mention."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import boxwright

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "boxwright"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

BASE = {
    "torch",
    "torchvision",
    "timm",
    "fiddle",
    "pyarrow",
    "faster_coco_eval",
    "safetensors",
    "rich",
    "typer",
    "PIL",
    "numpy",
    "boxwright",
}
HEAVY = ("timm", "fiddle", "pyarrow", "faster_coco_eval", "typer", "torch._dynamo")
EXTRAS = (
    "matplotlib",
    "plotly",
    "sklearn",
    "tensorboard",
    "gradio",
    "fastapi",
    "onnx",
    "pycocotools",
    "transformers",
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_version_is_the_installed_one() -> None:
    assert boxwright.__version__ == PROJECT["version"] == importlib.metadata.version("boxwright")


def test_base_dependencies_are_few() -> None:
    named = {re.split(r"[<>=!~\[; ]", entry)[0] for entry in PROJECT["dependencies"]}
    assert named == {
        "torch",
        "torchvision",
        "timm",
        "fiddle",
        "pyarrow",
        "faster-coco-eval",
        "safetensors",
        "rich",
        "typer",
        "pillow",
        "pyyaml",
    }


def test_extras_bring_what_the_package_imports() -> None:
    """An extra whose packages nothing imports promises what there is not."""
    users = [*(ROOT / "boxwright").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in users)
    for extra, entries in PROJECT["optional-dependencies"].items():
        named = [re.split(r"[<>=!~\[; ]", entry)[0] for entry in entries]
        for package in named if extra not in ("dev", "docs") else ():
            module = {"scikit-learn": "sklearn"}.get(package, package)
            imported = re.search(rf"^\s*(?:import|from) (?:torch\.utils\.)?{module}\b", text, re.MULTILINE)
            assert package == "boxwright" or imported, f"extra {extra}: nothing imports {module}"


def imported_at_import_time(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Modules that these statements import when the file is run: not what only functions import."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, statement.lineno) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield statement.module or "", statement.lineno
        elif isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from imported_at_import_time(statement.orelse)
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.ClassDef):
            for part in ("body", "orelse", "handlers", "finalbody"):
                for child in getattr(statement, part, ()):
                    inner = child.body if isinstance(child, ast.ExceptHandler) else [child]
                    yield from imported_at_import_time(inner)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_has_a_docstring_and_imports_only_the_base(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name(path)} says nothing about itself"
    for target, line in imported_at_import_time(tree.body):
        top = target.split(".")[0]
        kernel = top == "triton" and path.stem.endswith("_triton")  # imported where a GPU runs it
        assert kernel or top in BASE or top in sys.stdlib_module_names, (
            f"{name(path)}:{line} imports {target}"
        )


def loaded_by(statement: str) -> set[str]:
    """Which of the heavy and optional modules a fresh interpreter has after a statement, with no network."""
    code = f"""
import json, socket, sys
def refuse(*args, **kwargs): raise AssertionError("this import opens a connection")
socket.socket.connect = socket.create_connection = refuse
{statement}
print(json.dumps([module for module in {HEAVY + EXTRAS!r} if module in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


def test_import_is_light() -> None:
    # What torch and torchvision load by themselves is not ours to keep out.
    assert loaded_by("import boxwright") <= loaded_by("import torch, torchvision")


def test_wheel_holds_the_types_marker_and_the_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for entry in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / entry, source)
    shutil.copytree(PACKAGE, source / "boxwright", ignore=shutil.ignore_patterns("__pycache__"))
    (wheel,) = WheelBuilder(str(source)).build(directory=str(tmp_path), versions=["standard"])
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    for entry in ("boxwright/py.typed", "boxwright/structures.py", "licenses/LICENSE"):
        assert entry in listing
    assert "tests/" not in listing


def own_texts() -> list[Path]:
    """Our own text files, as git tracks them; those of a copy without git, by their place."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        paths = [ROOT / entry for entry in listed.split("\0") if entry]
    else:
        paths = [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*"), *(ROOT / "docs").rglob("*")]
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".cfg", ".txt", ".sh", ".css", ".html", ""}
    return [path for path in paths if path.is_file() and path.suffix in kinds and "_build" not in path.parts]


def test_nothing_names_one_machine() -> None:
    # Written apart, so that this file does not find itself.
    patterns = "|".join(
        ["/" + "work/", "/" + "home/", "/" + "root/", "/" + "tmp/", r"index-" + "url", "/simple" + "/"]
    )
    found = []
    for path in own_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if re.search(patterns, line):
                found.append(f"{name(path)}:{number}: {line.strip()[:100]}")
    assert not found, "a path or a host of one machine:\n" + "\n".join(found)
