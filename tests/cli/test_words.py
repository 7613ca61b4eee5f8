"""Words of the form `name=value`, in any order and from any shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import call

from boxwright.cli.train import chosen
from boxwright.cli.words import only


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_recipe_may_stand_anywhere(place: int) -> None:
    words = ["epochs=3", "out=runs/x"]
    words.insert(place, "fcos_mnv2_320")
    experiment, out, _ = chosen(words, False, None)
    assert (experiment.epochs, out) == (3, Path("runs/x"))


def test_a_second_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "out=runs/x", "fcos_mnv2_320", "atss_mnv2_320") == 2
    assert "'atss_mnv2_320': expected name=value" in capsys.readouterr().err


def test_the_home_folder_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert chosen(["fcos_mnv2_320", "out=~/runs/x"], False, None)[1] == tmp_path / "runs" / "x"
    assert only(["data=~/photos"], ("data",)) == {"data": str(tmp_path / "photos")}
