"""The norm of backbone, neck or heads set in one line."""

from functools import partial

import pytest
import timm
import torch
from fiddle import Partial
from torch import nn

import boxwright as bw
from boxwright.config import Pretrained, build, from_json, set_tagged, to_json
from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones.exchange import exchange_norms
from boxwright.models.layers import CrossBatchNorm2d, FrozenBatchNorm2d, group_norm
from boxwright.recipes import gcnet, megdet, recipe, table
from boxwright.recipes.norms import override, parse_norm


def norms(config) -> dict[str, set[str]]:
    """Kinds of norms by the first name of the part that has them."""
    set_tagged(config, Pretrained, None)
    with torch.device("meta"):
        model = build(config.model)
    kinds = nn.GroupNorm | nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            found.setdefault(name.split(".")[0], set()).add(type(module).__name__)
    return found


def small():
    config = recipe("fcos_r50_fpn_1x")
    config.model.backbone.depth, config.model.backbone.style = 18, "pytorch"
    return config


def test_every_norm_there_is():
    config = small()
    assert norms(config) == {"backbone": {"FrozenBatchNorm2d"}, "head": {"GroupNorm"}}
    assert bw.set_norm(config, Partial(CrossBatchNorm2d, ranks=4)) == 2
    assert norms(config) == {"backbone": {"CrossBatchNorm2d"}, "head": {"CrossBatchNorm2d"}}
    assert config.model.backbone.norm_eval is False
    assert build(from_json(to_json(config)).model).backbone.bn1.ranks == 4  # pyright: ignore


def test_parts_alone_even_where_there_was_none():
    config = small()
    assert bw.set_norm(config, partial(group_norm, groups=16), "neck", "heads") == 2
    assert norms(config) == {"backbone": {"FrozenBatchNorm2d"}, "neck": {"GroupNorm"}, "head": {"GroupNorm"}}
    assert config.model.backbone.norm_eval is True
    bw.set_norm(config, None, "heads")
    assert norms(config).keys() == {"backbone", "neck"}


def test_on_the_command_line():
    config = small()
    override(config, ["model.backbone.norm_eval=true", "norm.backbone=CrossBatchNorm2d(images=8)"])
    override(config, ["norm.neck=group_norm", "norm.heads=None", "epochs=3"])
    assert norms(config) == {"backbone": {"CrossBatchNorm2d"}, "neck": {"GroupNorm"}}
    assert config.model.backbone.norm_eval is True  # said by the user, whatever the order
    assert config.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Batchnorm", "neither boxwright.models.layers nor torch.nn has 'Batchnorm'"),
        ("CrossBatchNorm2d(4)", "write the name of a norm"),
        ("CrossBatchNorm2d(rank=4)", "rank"),
        ("nn.BatchNorm2d", "write the name of a norm"),
        ("CrossBatchNorm2d(ranks=", "write the name of a norm"),
        ("CrossBatchNorm2d(ranks=print())", "write the name of a norm"),
    ],
)
def test_what_is_no_norm(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_norm(text)


def test_what_has_no_norm():
    with pytest.raises(ConfigError, match="no part 'body'"):
        bw.set_norm(small(), group_norm, "body")
    with pytest.raises(ConfigError, match="the neck of this recipe has no norm to set"):
        bw.set_norm(recipe("faster_rcnn_r50_caffe_c4_1x"), group_norm, "neck")


def test_networks_of_timm_exchange_their_norms():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    net = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.uniform_(0.5, 2)
    expected = net(x)
    assert exchange_norms(net, CrossBatchNorm2d, keep=True) > 20
    torch.testing.assert_close(net.eval()(x), expected)
    with pytest.raises(CheckpointError, match="weights are those of CrossBatchNorm2d with bias"):
        exchange_norms(net, partial(group_norm, groups=1), keep=True)
    config = recipe("fcos_mnv2_320")
    bw.set_norm(config, CrossBatchNorm2d, "backbone")
    assert norms(config)["backbone"] == {"CrossBatchNorm2d"}


def test_large_batch_recipes():
    normal = table()["faster_rcnn_r50_fpn_megdet_b256"]()
    assert (normal.batch_size, normal.base_batch_size, normal.epochs) == (256, 16, 11)
    assert build(normal.schedule).milestones == (8, 10)
    long = build(megdet.long_policy(normal).schedule)
    assert [round(long.decay(epoch * 10, 180, 10), 6) for epoch in (10, 11, 14, 17)] == [1, 0.1, 0.01, 0.005]
    normal.model.backbone.depth = 18
    assert norms(normal) == {"backbone": {"CrossBatchNorm2d"}}
    same = gcnet.synchronised(recipe("mask_rcnn_r50_fpn_1x")).model.backbone
    assert (same.norm, same.norm_eval) == (CrossBatchNorm2d, False)
