"""The table of recipes: complete, documented, and fit to be written to a file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import fiddle as fdl
import pytest

import boxwright.recipes
from boxwright.assembly import set_num_classes
from boxwright.config import (
    apply_overrides,
    check_values,
    diff,
    flatten,
    from_json,
    history,
    to_json,
)
from boxwright.errors import ConfigError
from boxwright.recipes import recipe, recipes, table
from boxwright.recipes.experiment import Experiment

NAMES = sorted(table())


def test_every_recipe_function_is_listed() -> None:
    found = set()
    for module in pkgutil.iter_modules(boxwright.recipes.__path__):
        content = importlib.import_module(f"boxwright.recipes.{module.name}")
        for name, function in vars(content).items():
            own = inspect.isfunction(function) and function.__module__ == content.__name__
            if (
                own
                and not inspect.signature(function).parameters
                and "Experiment]" in str(function.__annotations__.get("return"))
            ):
                found.add(name)
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_documented_and_can_be_kept(name: str) -> None:
    assert recipes()[name].endswith(".")
    config = recipe(name)
    assert fdl.get_callable(config) is Experiment
    check_values(config)
    assert config is not recipe(name)
    assert diff(config, recipe(name)) == ""
    assert set(history(config)) == set(flatten(config))
    assert "0x" not in "".join(boxwright.config.shown(v) for v in flatten(config).values())
    loaded = from_json(to_json(config))
    set_num_classes(loaded, 7)
    set_num_classes(config, 7)
    assert diff(config, loaded) == ""


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean fcos_mnv2_320"):
        recipe("fcos_mnv2_32")
    with pytest.raises(ConfigError, match="the recipes are: "):
        recipe("?")


def test_recipe_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my_own_recipe.py"
    file.write_text(
        "import boxwright as bw\n"
        "def shorter():\n"
        "    config = bw.recipe('fcos_mnv2_320')\n"
        "    config.epochs = 3\n"
        "    return config\n"
        "def wrong():\n"
        "    return 3\n"
    )
    config = recipe(f"{file}:shorter")
    assert config.epochs == 3
    assert history(config)["epochs"].endswith("my_own_recipe.py:4")
    apply_overrides(config, ["epochs=4"])
    with pytest.raises(ConfigError, match="has: shorter, wrong"):
        recipe(f"{file}:longer")
    with pytest.raises(ConfigError, match="no function 'recipe'"):
        recipe(str(file))
    with pytest.raises(ConfigError, match="returned int"):
        recipe(f"{file}:wrong")
    with pytest.raises(ConfigError, match="no such file"):
        recipe(f"{tmp_path}/nothing.py:shorter")
    (tmp_path / "broken_recipe.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        recipe(f"{tmp_path}/broken_recipe.py:shorter")


def test_an_error_in_a_recipe_of_a_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "failing_recipe.py"
    file.write_text(
        "import boxwright as bw\n"
        "def typo():\n"
        "    config = bw.recipe('fcos_mnv2_320')\n"
        "    config.optimizer.learning_rate = 3\n"
        "    return config\n"
        "def unknown():\n"
        "    return bw.recipe('fcos_mnv2')\n"
    )
    with pytest.raises(
        ConfigError, match=r"failing_recipe\.py: typo failed with .*learning_rate.*\(line 4\)"
    ):
        recipe(f"{file}:typo")
    with pytest.raises(ConfigError, match="did you mean fcos_mnv2_320") as told:
        recipe(f"{file}:unknown")
    assert told.value.__notes__ == [f"in unknown of {file}"]
