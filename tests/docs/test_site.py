"""What the documentation says is true of the code: names, commands, recipes, rows."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, blocks, name_of
from PIL import Image

import boxwright as bw
from boxwright.config import flatten


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_pages_names_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bw":
                assert hasattr(bw, node.attr), f"bw.{node.attr} does not exist"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boxwright"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_commands_named_in_sentences_exist() -> None:
    """Those between backquotes, which may be parts of commands."""
    from typer.main import get_command

    from boxwright.cli.app import app

    found = 0
    for page in PAGES:
        for text in re.findall(r"`boxwright ([a-z][^`\n]*)`", page.read_text(encoding="utf-8")):
            words, command = shlex.split(text), get_command(app)
            while words and hasattr(command, "commands"):
                assert words[0] in command.commands, f"{name_of(page)}: no command {words[0]}"
                command, words = command.commands[words[0]], words[1:]
            known = {
                option
                for parameter in command.params
                for option in (*parameter.opts, *parameter.secondary_opts, "--help")
            }
            options = {word for word in words if word.startswith("-")}
            assert options <= known, f"{name_of(page)}: boxwright {text}: no option {options - known}"
            found += 1
    assert found > 20


def test_files_named_in_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`(boxwright/[\w/]+\.py|tests/[\w/]+\.py|docs/[\w/]+\.py)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}, which does not exist"


def test_architecture_shows_the_rows_of_the_import_test() -> None:
    spec = importlib.util.spec_from_file_location("rows", ROOT / "tests" / "test_import_rows.py")
    assert spec is not None
    assert spec.loader is not None
    rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rows)
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown: dict[int, str] = {}
    number = -1
    for label, units in re.findall(r"^(row \d|     ) \| (.+)$", text, re.MULTILINE):
        number = int(label[-1]) if label.strip() else number
        shown[number] = f"{shown.get(number, '')} {units}".strip()
    assert [shown[i].split() for i in range(len(rows.ROWS))] == [row.split() for row in rows.ROWS]


def test_every_recipe_stands_on_a_method_page() -> None:
    prefixes = [
        argument
        for page in (ROOT / "docs" / "methods").glob("*.md")
        for argument in re.findall(r"\{recipe-table\} (\w+)", page.read_text())
    ]
    assert [name for name in bw.recipes() if not name.startswith(tuple(prefixes))] == []


def test_links_out_of_the_site_exist() -> None:
    """Those of files that the site's own build does not look at."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (ROOT / target).exists(), f"{page.name}: no {target}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in PAGES:
        if "docs" in page.parts:
            base = page.parent.relative_to(ROOT / "docs")
            for text in re.findall(
                r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
            ):
                entries = [line for line in text.splitlines() if line and not line.startswith(":")]
                listed |= {str(base / entry) for entry in entries}
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in PAGES if "docs" in p.parts}
    assert pages == listed


def test_names_of_the_migration_table_exist() -> None:
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    known = set(flatten(bw.recipe("mask_rcnn_r50_fpn_1x"))) | {"norm.backbone"}
    modules = """models.detectors models.dense_heads models.roi_heads models.roi_heads.htc models.necks
        models.roi_heads.box_head models.roi_heads.mask_head models.priors models.coders models.assigners
        models.samplers models.losses models.suppression models.backbones structures engine evaluation"""
    parts = {name for m in modules.split() for name in dir(importlib.import_module(f"boxwright.{m}"))}
    settings, classes = page.split("## Settings")[1].split("## Parts")
    for line in re.findall(r"^\| .*\|$", settings, re.MULTILINE)[2:]:
        for text in re.findall(r"`([^`]+)`", line.split("|")[3]):
            assert text.partition("=")[0] in known, text
    for line in re.findall(r"^\| .*\|$", classes, re.MULTILINE)[2:]:
        for text in re.findall(r"`([A-Z]\w+)`", line.split("|")[3]):
            assert text in parts, text


def test_list_of_recipes_is_made_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    zoo = importlib.import_module("zoo")
    text = zoo.markdown()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(bw.recipes())
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert len(headings) == len(set(headings)) > 15
    for page in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / page).is_file()
    assert "\n\n[The method](methods/atss.md). Papers: {paper}`ATSS`\n" in text
    assert (
        "| `faster_rcnn_x101_32x4d_fpn_1x` | ResNeXt-101 32x4d | timm | 800 / 1333 | 12 x 16 | bbox |" in text
    )
    assert "| `ssd300` | VGG-16 | torchvision | 300 x 300 | 120 x 64 | bbox |" in text


def test_pictures_are_those_of_their_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    figures = importlib.import_module("figures")
    assert (ROOT / "docs" / "images" / "pipeline.svg").read_text(encoding="utf-8") == figures.pipeline()
    places = {title: list(figures.positives(recipe)) for title, recipe in figures.RULES.items()}
    assert all(len({level for level, _, _ in found}) >= 2 for found in places.values())
    with Image.open(ROOT / "docs" / "images" / "assignment.png") as picture:
        assert picture.size == figures.assignment(scale=1).size


def test_citation_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {bw.__version__}\n" in text
    assert "\nlicense: Apache-2.0\n" in text


PUBLIC = [
    "config",
    "convert",
    "data",
    "data.transforms",
    "engine",
    "engine.hooks",
    "evaluation",
    "interop",
    "models.assigners",
    "models.backbones",
    "models.coders",
    "models.dense_heads",
    "models.detectors",
    "models.layers",
    "models.losses",
    "models.necks",
    "models.priors",
    "models.roi_heads",
    "models.samplers",
]


@pytest.mark.parametrize("package", ["", *PUBLIC])
def test_public_names_are_in_the_reference(package: str) -> None:
    """Each class and function that a package exports is on a page of the reference."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    found = re.findall(r"automodule:: (\S+)\n   :members:(.*)", text)
    listed = {(module, name.strip()) for module, names in found for name in names.split(",")}
    module = importlib.import_module(f"boxwright.{package}".rstrip("."))
    lacking = []
    for name in module.__all__:
        item = getattr(module, name)
        home = getattr(item, "__module__", None)
        if inspect.isclass(item) or inspect.isfunction(item):
            known = (home, "") in listed or (home, name) in listed or (module.__name__, name) in listed
            lacking += [] if known else [f"{home}.{name}"]
    assert lacking == []
