from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from boxwright.errors import ConfigError
from boxwright.models.layers import group_norm, relu
from boxwright.models.necks import FPN
from boxwright.structures import FeatureSpec

SPECS = (FeatureSpec(8, 4), FeatureSpec(16, 8), FeatureSpec(24, 16), FeatureSpec(32, 32))


def maps(specs=SPECS, size=(96, 72), batch=2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, s.channels, -(-size[0] // s.stride), -(-size[1] // s.stride), generator=generator)
        for s in specs
    ]


def load_from_torchvision(ours: FPN, theirs: FeaturePyramidNetwork) -> None:
    """torchvision's convolution number i is `inner_blocks.i.0`; with a norm, number i's norm is `.1`."""
    state = {}
    for key, value in theirs.state_dict().items():
        part, index, *rest = key.split(".")
        if part == "extra_blocks":
            state[f"extras.{['p6', 'p7'].index(index)}.conv.{rest[0]}"] = value
        else:
            part = {"inner_blocks": "laterals", "layer_blocks": "outputs"}[part]
            state[f"{part}.{index}.{('conv', 'norm')[int(rest[0])]}.{rest[1]}"] = value
    ours.load_state_dict(state)


@pytest.mark.parametrize(
    ("extra", "norm"),  # torchvision has no norm behind P6 and P7; ours has, as MMDetection
    [("pool", None), ("pool", partial(group_norm, groups=4)), ("on_input", None), ("on_output", None)],
)
def test_parity_with_torchvision(extra, norm):
    torch.manual_seed(0)
    on_input = extra == "on_input"
    blocks = {
        "pool": LastLevelMaxPool(),
        "on_input": LastLevelP6P7(32, 12),
        "on_output": LastLevelP6P7(12, 12),
    }
    theirs = FeaturePyramidNetwork([s.channels for s in SPECS], 12, blocks[extra], norm_layer=norm).eval()
    assert extra == "pool" or theirs.extra_blocks.use_P5 != on_input
    num_outs = 5 if extra == "pool" else 6
    ours = FPN(SPECS, 12, num_outs=num_outs, extra=extra, relu_before_extra=extra != "pool", norm=norm).eval()
    load_from_torchvision(ours, theirs)
    inputs = maps()
    expected = theirs(dict(enumerate(inputs)))
    for a, b in zip(ours(inputs), expected.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start_level", [0, 1])
@pytest.mark.parametrize("extra", ["pool", "on_input", "on_lateral", "on_output"])
def test_declared_levels_are_the_real_ones(extra, start_level):
    neck = FPN(SPECS, 8, start_level=start_level, num_outs=6, extra=extra)
    outs = neck(maps(size=(256, 256)))
    assert neck.specs == tuple(FeatureSpec(o.shape[1], 256 // o.shape[2]) for o in outs)
    assert [s.stride for s in neck.specs] == [2 ** (2 + start_level + i) for i in range(6)]


def test_extra_levels_come_from_what_they_say():
    torch.manual_seed(0)
    inputs = maps()
    for extra in ("on_input", "on_lateral", "on_output"):
        neck = FPN(SPECS, 8, num_outs=6, extra=extra, relu_before_extra=True)
        outs = neck(inputs)
        sources = {
            "on_input": inputs[-1],
            "on_lateral": neck.laterals[-1](inputs[-1]),
            "on_output": outs[3],
        }
        torch.testing.assert_close(outs[4], neck.extras[0](sources[extra]))
        torch.testing.assert_close(outs[5], neck.extras[1](outs[4].relu()))


def test_norm_and_activation():
    neck = FPN(SPECS, 8, norm=nn.BatchNorm2d, norm_on_lateral=False, activation=relu)
    assert all(layer.norm is None and layer.conv.bias is not None for layer in neck.laterals)
    assert all(layer.norm is not None and layer.conv.bias is None for layer in neck.outputs)
    assert all(o.min() >= 0 for o in neck(maps()))
    assert all(layer.norm is not None for layer in FPN(SPECS, 8, norm=nn.BatchNorm2d).laterals)


def test_sizes_that_do_not_halve_evenly():
    outs = FPN(SPECS, 8)(maps(size=(100, 68)))
    assert [tuple(o.shape[-2:]) for o in outs] == [(25, 17), (13, 9), (7, 5), (4, 3), (2, 2)]


def test_a_batch_gives_what_its_images_give():
    neck, inputs = FPN(SPECS, 8).eval(), maps()
    together = neck(inputs)
    for i in range(2):
        alone = neck([x[i : i + 1] for x in inputs])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-5, atol=1e-5)


def test_compiles_and_exports():
    neck, inputs = FPN(SPECS, 8, num_outs=6, extra="on_output", relu_before_extra=True).eval(), maps()
    eager = neck(inputs)
    compiled = torch.compile(neck, fullgraph=True, backend="aot_eager")(inputs)
    program = torch.export.export(neck, (inputs,)).module()(inputs)
    for a, b, c in zip(eager, compiled, program, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_keeps_channels_last():
    neck = FPN(SPECS, 8).to(memory_format=torch.channels_last)
    outs = neck([x.to(memory_format=torch.channels_last) for x in maps()])
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_level": 4}, "start_level is 4"),
        ({"start_level": -1}, "start_level is -1"),
        ({"num_outs": 3}, "4 inputs are used"),
        ({"extra": "on_top"}, "extra is 'on_top'"),
        ({"extra": None}, "no `extra`"),
        ({"relu_before_extra": True}, "no effect"),
        ({"extra": "on_input", "relu_before_extra": True}, "no effect"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FPN(SPECS, 8, **arguments)


def test_levels_have_to_go_from_fine_to_coarse():
    with pytest.raises(ConfigError, match="fine to coarse"):
        FPN(SPECS[::-1], 8)
