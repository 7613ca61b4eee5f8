"""What the documentation says is true of the code: names, commands, recipes, rows."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import boxwright as bw
from boxwright.recipes.norms import override

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [page for page in PAGES if "_build" not in page.parts]
OWN_WORDS = ("out", "data", "split")


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """Every command line that calls boxwright, in any page, without what launches it."""
    found = []
    for page in PAGES:
        for block in blocks(page, "", "sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.lstrip("$ "), comments=True)
                start = next((i for i, word in enumerate(words) if word == "boxwright"), None)
                if start is not None:
                    found.append((page.name, words[start + 1 :]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_pages_names_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bw":
                assert hasattr(bw, node.attr), f"bw.{node.attr} does not exist"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boxwright"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_commands_in_pages_exist(page: str, words: list[str]) -> None:
    from typer.main import get_command

    from boxwright.cli.app import app

    command = get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        assert not word.startswith("-") or word.split("=")[0] in known | {"--help"}, (
            f"{page}: no option {word}"
        )


def test_recipes_and_overrides_in_commands_exist() -> None:
    for _, words in commands():
        if not words or words[0] not in ("train", "config"):
            continue
        plain = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        names = [word for word in plain if word in bw.recipes()]
        unknown = [
            word for word in plain if "/" not in word and ".py:" not in word and word not in bw.recipes()
        ]
        assert unknown in ([], ["RECIPE"], ["NAME"]), f"no recipe {unknown}"
        overrides = [word for word in words if "=" in word and word.split("=")[0] not in OWN_WORDS]
        if names:
            override(bw.recipe(names[0]), overrides)


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
