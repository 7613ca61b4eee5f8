"""Configuration: overrides, tags, listing, JSON and building."""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import fiddle as fdl
import pytest
from torch import nn

import boxwright as bw
from boxwright.config import (
    NumClasses,
    apply_overrides,
    build,
    check_values,
    diff,
    flatten,
    from_json,
    history,
    read_config,
    set_tagged,
    to_json,
)
from boxwright.errors import ConfigError, DataError
from boxwright.values import Count, Share

TRUST = (__name__,)


@dataclass(frozen=True)
class Resize:
    short: int = 800
    sides: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Canvas:
    shapes: tuple[tuple[int, int], ...] = ((320, 320),)


class Head:
    def __init__(
        self,
        num_classes: Annotated[int, NumClasses] = 80,
        norm: Callable[[int], nn.Module] | None = None,
        prior: float = 0.01,
        mode: Literal["sum", "mean"] = "sum",
        weights: str | Path | None = None,
        **extra: int,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes, self.norm, self.prior, self.weights = num_classes, norm, prior, weights


@dataclass
class Model:
    head: Head
    resize: Resize = Resize()
    others: dict[str, Head] = field(default_factory=dict)


def optimiser(model: Model, lr: float = 0.1, nesterov: bool = False) -> tuple[float, bool]:
    return lr, nesterov


def broken_data(root: str) -> None:
    raise DataError(f"{root}: no images")


@dataclass
class Whole:
    model: Model
    transforms: Sequence[Callable] = ()
    optimizer: Callable = optimiser
    canvas: Canvas = Canvas()
    epochs: int = 12
    metrics: tuple[str, ...] = ("bbox",)
    clip: float | None = None


def whole() -> fdl.Config[Whole]:
    return fdl.Config(
        Whole,
        model=fdl.Config(Model, head=fdl.Config(Head, norm=functools.partial(nn.GroupNorm, 4, eps=1e-4))),
        transforms=(fdl.Config(Resize, short=600), fdl.Config(Resize)),
        optimizer=fdl.Partial(optimiser, lr=0.02),
    )


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("optimizer.nesterov=true", "optimizer.nesterov", True),
        ("transforms.1.short=640", "transforms.1.short", 640),
        ("transforms.0.sides=[3,4]", "transforms.0.sides", (3, 4)),
        ("model.resize.short=5", "model.resize.short", 5),
        ("canvas.shapes=[[64, 64], [32, 96]]", "canvas.shapes", ((64, 64), (32, 96))),
        ("metrics=('bbox','segm')", "metrics", ("bbox", "segm")),
        ("clip=35", "clip", 35.0),
        ("clip=None", "clip", None),
        ("model.head.weights=2017", "model.head.weights", "2017"),
        ("model.head.weights=null", "model.head.weights", None),
        ("model.head.mode=mean", "model.head.mode", "mean"),
        ("model.head.anything=4", "model.head.anything", 4),
        ("model.head.norm=None", "model.head.norm", None),
    ],
)
def test_override_sets_the_value(override: str, path: str, value: object) -> None:
    config = whole()
    apply_overrides(config, [override])
    assert flatten(config)[path] == value
    assert type(flatten(config)[path]) is type(value)
    assert history(config)[path] == f"command line: {override}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "did you mean epochs"),
        ("optimizer.learning=3", "it has: model, lr, nesterov"),
        ("modle.head.prior=3", "did you mean model"),
        ("optimizer.lr.x=3", "optimizer.lr is 0.02"),
        ("transforms.2.short=3", "has 2 items"),
        ("transforms.first=3", "no item 'first'"),
        ("epochs=many", "epochs takes int, but 'many' is str"),
        ("epochs=1.5", "epochs takes int, but '1.5' is float"),
        ("epochs=True", "takes int"),
        ("optimizer.nesterov=1", "takes bool"),
        ("model.head.mode=max", "takes Literal"),
        ("transforms.0.sides=[3]", "takes tuple"),
        ("model.head=FPN", "takes Head"),
        ("epochs", "not an assignment"),
        ("=3", "not an assignment"),
    ],
)
def test_override_reports_what_is_wrong(override: str, message: str) -> None:
    config = whole()
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        apply_overrides(config, [override])
    assert diff(whole(), config) == ""


def test_a_part_of_several_values_is_not_set_by_one() -> None:
    with pytest.raises(
        ConfigError, match=r"set what is below it: model\.head\.num_classes, model\.head\.norm"
    ):
        apply_overrides(whole(), ["model.head=FPN"])
    with pytest.raises(ConfigError, match=r"optimizer takes .*Callable, but 'adam' is str; .*optimizer\.lr"):
        apply_overrides(whole(), ["optimizer=adam"])
    with pytest.raises(ConfigError, match=r"model\.head\.norm takes"):
        apply_overrides(whole(), ["model.head.norm=group_norm"])
    with pytest.raises(ConfigError, match=r"transforms\.1 takes a call, .*below it: transforms\.1\.short"):
        apply_overrides(whole(), ["transforms.1=None"])
    with pytest.raises(ConfigError, match=r"canvas takes Canvas, but 'None' is NoneType"):
        apply_overrides(whole(), ["canvas=None"])
    with pytest.raises(ConfigError, match=r"""write it as a list, such as metrics="\['bbox'\]\""""):
        apply_overrides(whole(), ["metrics=segm"])


def test_a_name_that_stands_deeper_is_given_with_its_path() -> None:
    for override, path in (("lr=1", "optimizer.lr"), ("model.prior=1", "model.head.prior")):
        with pytest.raises(ConfigError, match=rf"did you mean {path}\?"):
            apply_overrides(whole(), [override])


def test_values_of_python_and_files_are_looked_at() -> None:
    config = whole()
    config.epochs = "ten"
    with pytest.raises(ConfigError, match="epochs takes int, but 'ten' is str"):
        check_values(config)
    config = whole()
    config.transforms[1].short = 2.5
    with pytest.raises(ConfigError, match=r"transforms\.1\.short takes int, but 2.5 is float"):
        check_values(config)
    config = whole()
    config.metrics, config.model.head.weights, config.clip = ["bbox"], Path("a.pth"), 3
    check_values(config)


@dataclass
class Ruled:
    number: Count | None = None
    shares: tuple[Share, ...] = ()


def test_rules_of_annotations_hold_for_values_of_python() -> None:
    made = build(fdl.Config(Ruled, number=1, shares=(0.0, 1)))
    assert (made.number, made.shares) == (1, (0.0, 1))
    for given, message in (
        ({"number": 0}, "number takes a whole number from 1 on or None, not 0"),
        ({"number": 1.0}, "number takes a whole number from 1 on or None, not 1.0"),
        ({"shares": (0.5, 1.5)}, "shares takes a tuple, each a number from 0 to 1, not (0.5, 1.5)"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"0.{message}")):
            build([fdl.Config(Ruled, **given)])
    with pytest.raises(ConfigError, match="not 0"):
        bw.build(bw.recipe("fcos_mnv2_320"), num_classes=0)


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\xff", b"[]"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            read_config(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="nowhere cannot be read"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(to_json(whole()))
    assert diff(read_config(tmp_path / "config.json", TRUST), whole()) == ""


def test_set_tagged_counts() -> None:
    config = whole()
    config.model.others = {"aux": fdl.Config(Head)}
    assert set_tagged(config, NumClasses, 7) == 2
    assert config.model.others["aux"].num_classes == 7
    assert "tag NumClasses" in history(config)["model.head.num_classes"]


def test_flatten_holds_defaults_and_calls() -> None:
    flat = flatten(whole())
    assert flat["epochs"] == 12
    assert flat["model.head.prior"] == 0.01
    assert flat["model.others"] == {}
    assert repr(flat["model.head"]).endswith("Head(...)")
    assert repr(flat["optimizer"]).startswith("partial ")


def test_history_names_file_and_line() -> None:
    config = whole()
    config.epochs = 5
    told = history(config)
    assert set(told) == set(flatten(config))
    assert told["epochs"].rpartition(":")[0].endswith("test_config.py")
    assert told["model.head.prior"] == "default of Head"


def test_diff_lists_changed_values_only() -> None:
    config = whole()
    apply_overrides(config, ["epochs=3", "model.head.extra=1"])
    assert diff(whole(), whole()) == ""
    assert diff(whole(), config) == "- epochs = 12\n+ epochs = 3\n+ model.head.extra = 1"


def test_json_round_trip_keeps_values_and_tags() -> None:
    config = whole()
    config.canvas = Canvas(((64, 64),))
    config.model.head.weights = Path("a/b.pth")
    loaded = from_json(to_json(config), trust=TRUST)
    assert loaded.canvas.shapes == ((64, 64),)
    assert loaded.model.head.weights == "a/b.pth"
    assert set_tagged(loaded, NumClasses, 3) == 1
    built = build(loaded)
    assert isinstance(built.model.head.norm(8), nn.GroupNorm)
    assert diff(from_json(to_json(loaded), trust=TRUST), loaded) == ""


def test_json_refuses_what_has_no_name() -> None:
    config = whole()
    config.optimizer = lambda model: model
    with pytest.raises(ConfigError, match="cannot be written"):
        to_json(config)


def _renamed(module: str, symbol: str) -> str:
    """A configuration file in which the called function is another one."""
    text = json.loads(to_json(fdl.Config(nn.Linear, 1, 2)))
    raw = json.dumps(text)
    assert '"torch.nn.modules.linear"' in raw
    return raw.replace('"torch.nn.modules.linear"', json.dumps(module)).replace(
        '"Linear"', json.dumps(symbol)
    )


@pytest.mark.parametrize(
    ("module", "symbol"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "open"),
        ("builtins", "getattr"),
        ("functools", "reduce"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("boxwright.distributed", "os.system"),
        ("boxwright.config.files", "functools.reduce"),
        ("boxwright.config.files", "serialization.load_json"),
        ("boxwright.config.describe", "sys.modules"),
        ("boxwright.config.files", "_AllowList.__init__.__globals__"),
        ("torch.nn.modules.module", "torch.load"),
        ("fiddle._src.experimental.serialization", "import_symbol"),
        ("boxwright.recipes", "recipe"),
        ("boxwright.__main__", "main"),
        ("boxwright.api", "train"),
    ],
)
def test_json_constructs_only_the_allowed(module: str, symbol: str) -> None:
    with pytest.raises(ConfigError, match="not among the allowed"):
        from_json(_renamed(module, symbol))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '{"root": 3, "objects": {}}', "[" * 5000])
def test_json_rejects_what_is_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match="configuration"):
        from_json(text)


def test_build_names_the_path() -> None:
    config = whole()
    config.model.head.num_classes = 0
    with pytest.raises(
        ConfigError, match=r"cannot build model\.head \(Head\): ValueError: num_classes must"
    ) as error:
        build(config)
    assert isinstance(error.value.__cause__, ValueError)
    assert "Fiddle" not in str(error.value)


def test_build_names_a_missing_argument() -> None:
    with pytest.raises(ConfigError, match=r"cannot build model \(Model\).*head"):
        build(fdl.Config(Whole, model=fdl.Config(Model)))


def test_build_keeps_the_family_of_errors() -> None:
    with pytest.raises(DataError, match="no images") as error:
        build(fdl.Config(Whole, model=fdl.Config(broken_data, root="here")))
    assert any("model (broken_data)" in note for note in error.value.__notes__)
    pickle.dumps(error.value)
