"""Variants, grids and seeds become runs; what is wrong in words is said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import fiddle as fdl
import pytest

import boxwright as bw
from boxwright.errors import ConfigError
from boxwright.models.assigners import DynamicIoUAssigner, MaxIoUAssigner
from boxwright.models.losses import DynamicSmoothL1, SmoothL1
from boxwright.study.plan import (
    READY,
    Variant,
    cross,
    parse_grid,
    parse_variant,
    plan,
    ready_made,
    small_recipes,
    split_values,
    start_from,
)
from boxwright.study.protocol import with_epochs
from boxwright.study.request import Request, as_text, grid_texts, variants_of

FASTER = "faster_rcnn_mnv2_320"


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("fcos_mnv2_320", Variant("fcos_mnv2_320")),
        ("a:x.y=0.5", Variant("a", ("x.y=0.5",))),
        ("a: x=((1, 2),) y='b c' name=small one", Variant("a", ("x=((1, 2),)", "y='b c'"), "small one")),
        ("a:nms=F(b=c, d=0.5) x=1", Variant("a", ("nms=F(b=c, d=0.5)", "x=1"))),
        ("my/own.py:recipe", Variant("my/own.py:recipe")),
        ("my/own.py:recipe:weights=timm:net.in1k", Variant("my/own.py:recipe", ("weights=timm:net.in1k",))),
    ],
)
def test_variants_are_read_and_written(text: str, variant: Variant) -> None:
    assert parse_variant(text) == variant
    assert parse_variant(as_text(variant) or "") == variant


def test_grids_are_read_and_written() -> None:
    assert list(split_values("1, (2, 3),'a,b',[4,[5]]")) == ["1", "(2, 3)", "'a,b'", "[4,[5]]"]
    grid = parse_grid(["a.b=1,2", "c=x"])
    assert grid == {"a.b": ("1", "2"), "c": ("x",)}
    assert parse_grid(grid_texts({"a.b": [1, 2], "c": ["x"], "d": [(1, 2)]})) == {**grid, "d": ("(1, 2)",)}
    for wrong in (["a"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(ConfigError):
            parse_grid(wrong)


def test_every_combination_has_a_name_of_its_own() -> None:
    variants = [Variant("a"), Variant("a", ("optimizer.lr=1",)), Variant("b", ("optimizer.lr=2",), "mine")]
    made = cross(variants, {"model.depth": ["50", "101"], "t.0.short+t.1.short": ["320"]})
    assert [variant.name for variant in made] == [
        f"{begin} depth={depth} short=320" for begin in ("a", "a lr=1", "mine") for depth in (50, 101)
    ]
    assert made[2].overrides == ("optimizer.lr=1", "model.depth=50", "t.0.short=320", "t.1.short=320")
    clash = cross([Variant("a", ("optimizer.lr=1", "schedule.lr=2"))], {})
    assert clash[0].name == "a optimizer.lr=1 schedule.lr=2"
    with pytest.raises(ConfigError, match="two variants are called 'a'"):
        cross([Variant("a"), Variant("a")], {})


def test_runs_have_their_settings_seeds_and_folders() -> None:
    runs = plan(
        [Variant(FASTER), Variant("fcos_mnv2_320", ("seed=7",), "F/1")],
        {},
        data="datasets/bccd",
        overrides=["epochs=3", "seed=5"],
        seeds=2,
    )
    assert [(run.variant, run.seed, run.folder) for run in runs] == [
        (FASTER, 5, FASTER),
        (FASTER, 6, f"{FASTER}-seed6"),
        ("F/1", 7, "F_1"),
        ("F/1", 8, "F_1-seed8"),
    ]
    assert all(run.config.epochs == 3 and run.config.data.root == "datasets/bccd" for run in runs)
    assert [run.config.seed for run in runs] == [5, 6, 7, 8]
    assert len({run.digest for run in runs}) == 4
    again = plan([Variant(FASTER)], {}, data="datasets/bccd", overrides=["epochs=3", "seed=5"])
    assert again[0].digest == runs[0].digest
    other = plan([Variant(FASTER)], {}, data="datasets/bccd", overrides=["epochs=3", "seed=5"], minutes=1)
    assert other[0].digest != runs[0].digest


def test_descriptions_are_not_changed() -> None:
    config = bw.recipe("fcos_mnv2_320")
    (variant,) = variants_of({"mine": config})
    (run,) = plan([variant], {"epochs": ["2"]}, data="somewhere")
    assert (run.variant, run.config.epochs, config.epochs) == ("mine epochs=2", 2, 30)
    assert "root" not in config.data.__arguments__
    assert as_text(variant) is None


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ([], {}, "needs variants"),
        ([Variant("fcos_mnv2_32")], {}, "did you mean fcos_mnv2_320"),
        ([Variant("fcos_mnv2_320", ("epoch=3",))], {}, "did you mean epochs"),
        ([Variant(FASTER)], {"seeds": 0}, "seeds=0"),
        ([Variant(FASTER)], {"minutes": 0.0}, "minutes=0"),
        ([Variant(FASTER, (), "a b"), Variant(FASTER, (), "a_b")], {}, "share the folder"),
        ([Variant(fdl.Config(dict))], {}, "Config of an Experiment"),
    ],
)
def test_mistakes_are_found_first(variants: list[Variant], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(variants, {}, **options)


def test_weights_go_where_pretrained_ones_were() -> None:
    c4 = bw.recipe("faster_rcnn_c4_mnv2_320")
    start_from(c4, "file.pth")
    assert c4.model.backbone.weights == "file.pth"
    assert c4.model.roi.stages[0].trunk.network.weights == "file.pth"
    scratch = bw.recipe("faster_rcnn_hrnetv2p_small_320")
    start_from(scratch, "file.pth")
    (run,) = plan([Variant("faster_rcnn_hrnetv2p_small_320")], {})
    assert plan([Variant(scratch)], {})[0].digest == run.digest  # random weights stay random


def test_ready_made_lists() -> None:
    methods = small_recipes()
    assert {FASTER, "ssd_mnv2_320", "faster_rcnn_hrnetv2p_small_320", "mask_rcnn_mnv2_320"} <= set(methods)
    assert all(name.endswith("320") and "d53" not in name for name in methods)
    for name in READY:
        assert len(plan(ready_made(name), {})) == len(READY[name]())
    with pytest.raises(ConfigError, match="there are: methods, dynamic_rcnn"):
        ready_made("nothing")


def test_dynamic_variants_differ_in_their_two_parts_alone() -> None:
    found = []
    for run in plan(ready_made("dynamic_rcnn"), {}):
        stage = run.config.model.roi.stages[0].criterion
        found.append((fdl.get_callable(stage.assigner), fdl.get_callable(stage.code_loss)))
    assert found == [
        (MaxIoUAssigner, SmoothL1),
        (DynamicIoUAssigner, SmoothL1),
        (MaxIoUAssigner, DynamicSmoothL1),
        (DynamicIoUAssigner, DynamicSmoothL1),
    ]


def test_milestones_move_with_the_epochs() -> None:
    config = with_epochs(bw.recipe("faster_rcnn_r50_fpn_1x"), 6)
    assert (config.epochs, config.schedule.milestones) == (6, (4.0, 5.5))
    assert with_epochs(bw.recipe(FASTER), 6).epochs == 6


def test_a_request_tells_its_command() -> None:
    request = Request(
        variants=("fcos_mnv2_320", "a:x=1 name=b"),
        named="methods",
        data="datasets/my data",
        overrides=("epochs=6", "canvas.shapes=((64, 64),)"),
        vary=("a.b=1,2",),
        weights="w.pth",
        seeds=3,
        minutes=2.5,
        split="val",
    )
    assert request.command(Path("runs/s")) == (
        "boxwright study fcos_mnv2_320 'a:x=1 name=b' --study methods 'data.root=datasets/my data' epochs=6 "
        "'canvas.shapes=((64, 64),)' weights=w.pth --vary a.b=1,2 --seeds 3 --minutes 2.5 --split val "
        "out=runs/s"
    )
    assert Request(complete=False).command(Path("x")) == ""
    for request, message in ((Request(complete=False), "objects"), (Request(("f.py:g",)), "Python files")):
        with pytest.raises(ConfigError, match=message):
            request.check_can_go_on(Path("x"))
