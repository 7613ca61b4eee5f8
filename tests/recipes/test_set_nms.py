"""The suppression of any detector set in one line, in Python, as text, and when a run is loaded."""

import pytest
import torch
from fiddle import Config
from torch import nn

import boxwright as bw
from boxwright.config import NumClasses, Pretrained, build, set_tagged
from boxwright.errors import ConfigError
from boxwright.models.suppression import GreedyNMS, SoftNMS
from boxwright.recipes import recipe, table
from boxwright.recipes.norms import override
from boxwright.recipes.suppression import parse_nms


def last(model: nn.Module):
    """The suppression that makes the detections of a built detector."""
    roi = getattr(model, "roi", None)
    head = model.get_submodule("head") if roi is None else roi.stages[-1]
    return head.postprocess.nms  # pyright: ignore[reportAttributeAccessIssue]


def test_every_recipe_takes_it():
    for name in table():
        override(recipe(name), ["nms=WeightedNMS(iou=0.6)"])


@pytest.mark.parametrize("name", ["yolov3_mnv2_320", "rfcn_mnv2_320", "htc_without_semantic_mnv2_320"])
def test_the_last_post_process_has_it_and_the_proposals_keep_theirs(name: str):
    config = recipe(name)
    set_tagged(config, Pretrained, None)
    proposals = build(config.model.rpn.postprocess) if "rpn" in config.model.__arguments__ else None
    override(config, ["nms=SoftNMS(method=gaussian, sigma=0.4)"])
    with torch.device("meta"):
        model = build(config.model)
    assert last(model) == SoftNMS("gaussian", sigma=0.4)
    if proposals is not None:
        assert model.rpn.postprocess == proposals


@pytest.mark.parametrize("name", ["ssd_mnv2_320", "cascade_rcnn_mnv2_320"])
@pytest.mark.parametrize("nms", [SoftNMS("linear"), Config(SoftNMS, method="gaussian"), "WeightedNMS"])
def test_detections_follow_it(name: str, nms):
    def detect(config):
        torch.manual_seed(0)
        set_tagged(config, Pretrained, None)
        set_tagged(config, NumClasses, 2)
        model = build(config.model).eval()
        with torch.no_grad():
            return model.predict(images, torch.tensor([[64, 64]]))

    images = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1)).byte()
    changed = recipe(name)
    bw.set_nms(changed, nms)
    plain, other = recipe(name), changed
    for config in (plain, other):
        stages = config.model.roi.stages if "roi" in config.model.__arguments__ else [config.model.head]
        stages[-1].postprocess.score_threshold = 0.0
    a, b = detect(plain), detect(other)
    assert a.valid.any()
    assert b.valid.any()
    assert not torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SoftNMS(gaussian)", "write GreedyNMS, SoftNMS, WeightedNMS"),
        ("Kept", "write GreedyNMS"),
        ("soft", "write GreedyNMS"),
        ("SoftNMS(method=", "write GreedyNMS"),
        ("SoftNMS(method=print())", "write GreedyNMS"),
        ("SoftNMS(sigmas=2)", "sigmas"),
        ("SoftNMS(method=quadratic)", "method takes"),
        ("GreedyNMS(iou=half)", "iou takes"),
    ],
)
def test_what_is_no_suppression(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_nms(text)
    with pytest.raises(ConfigError, match=message):
        bw.set_nms(recipe("fcos_mnv2_320"), text)


def test_what_cannot_be_set():
    with pytest.raises(ConfigError, match="is no suppression"):
        bw.set_nms(recipe("fcos_mnv2_320"), 0.5)
    other = recipe("fcos_mnv2_320")
    other.model = Config(nn.Linear, 2, 2)
    with pytest.raises(ConfigError, match=r"model.head.postprocess"):
        bw.set_nms(other, GreedyNMS())
