"""Names of MMDetection's configurations, in the spelling of 3.x and of 2.x."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from boxwright.config import Pretrained, build, flatten, set_tagged
from boxwright.convert import model_from_mmdetection, recipe_of_mmdetection
from boxwright.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
RECORDS = sorted(path for path in GOLDEN.glob("*.gz") if not path.name.startswith("detectron2_"))
NAMES = (Path(__file__).parent / "names.txt").read_text().split()


@pytest.mark.parametrize("name", NAMES)
def test_published_names_are_known(name: str) -> None:
    assert recipe_of_mmdetection(name).model is not None


@pytest.mark.parametrize(
    "name", ["detr_r50_8xb2-150e_coco", "retinanet_swin-t_fpn_1x_coco", "faster-rcnn_r50_pafpn_1x"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        recipe_of_mmdetection(name)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_name_and_configuration_lead_to_the_same_network(path: Path) -> None:
    name = path.name.removesuffix(".json.gz")
    record = json.loads(gzip.decompress(path.read_bytes()))
    by_name = recipe_of_mmdetection(name).model
    set_tagged(by_name, Pretrained, None)
    shapes = [
        {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
        for config in (by_name, model_from_mmdetection(record["model"]))
    ]
    assert shapes[0] == shapes[1]


def test_words_change_the_recipe() -> None:
    values = flatten(recipe_of_mmdetection("mask-rcnn_x101-32x8d_fpn_ms-poly-3x_coco").model)
    assert (values["backbone.depth"], values["backbone.groups"], values["backbone.width_per_group"]) == (
        101,
        32,
        8,
    )
    assert values["normalise.bgr"] is True
    assert recipe_of_mmdetection("rpn_r50_fpn_2x_coco").epochs == 24
