import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.ops import deform_conv as module
from boxwright.ops.deform_conv import deform_conv2d, deform_conv2d_reference

SETTINGS = [
    {"kernel": (3, 3), "stride": 1, "padding": 1, "dilation": 1, "groups": 1, "deform_groups": 1},
    {"kernel": (3, 3), "stride": 2, "padding": 2, "dilation": 2, "groups": 2, "deform_groups": 2},
    {"kernel": (1, 3), "stride": (2, 1), "padding": (0, 1), "dilation": 1, "groups": 4, "deform_groups": 1},
    {"kernel": (1, 1), "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "deform_groups": 4},
]


def make(
    kernel=(3, 3),
    stride=1,
    padding=1,
    dilation=1,
    groups=1,
    deform_groups=1,
    batch=2,
    spread=2.0,
    seed=0,
    dtype=torch.float32,
):
    """Tensors `x, offset, weight, bias, mask` and the call's settings."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, 7, 9, generator=g, dtype=dtype)
    weight = torch.randn(6 if groups < 4 else 4, 4 // groups, *kernel, generator=g, dtype=dtype)
    bias = torch.randn(len(weight), generator=g, dtype=dtype)
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    taps = deform_groups * kernel[0] * kernel[1]
    offset = torch.randn(batch, 2 * taps, *size, generator=g, dtype=dtype) * spread
    mask = torch.rand(batch, taps, *size, generator=g, dtype=dtype)
    return (x, offset, weight, bias, mask), {"stride": stride, "padding": padding, "dilation": dilation}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_agrees_with_reference_and_torchvision(setting, modulated):
    (x, offset, weight, bias, mask), more = make(**setting)
    mask = mask if modulated else None
    found = deform_conv2d(x, offset, weight, bias, mask=mask, **more)
    expected = deform_conv2d_reference(x, offset, weight, bias, mask=mask, **more)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    pairs = {name: module.pair(value) for name, value in more.items()}
    theirs = torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=mask, **pairs)
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_are_those_of_the_reference(setting, modulated):
    tensors, more = make(**setting, seed=1)
    tensors = [t.requires_grad_() for t in (tensors if modulated else tensors[:4])]
    grads = []
    for function in (deform_conv2d, deform_conv2d_reference):
        output = function(*tensors[:4], mask=tensors[4] if modulated else None, **more)
        factor = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        grads.append(torch.autograd.grad((output * factor).sum(), tensors))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modulated", [False, True])
def test_gradcheck(modulated):
    (x, offset, weight, bias, mask), more = make(batch=1, seed=3, dtype=torch.float64, deform_groups=2)
    x, offset, mask = x[:, :, :4, :4], offset[:, :, :4, :4], mask[:, :, :4, :4]
    inputs = [t.clone().requires_grad_() for t in (x, offset, weight, bias)]
    if modulated:
        inputs.append(mask.clone().requires_grad_())

    def call(x, offset, weight, bias, mask=None):
        return deform_conv2d(x, offset, weight, bias, mask=mask, **more)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_offsets_it_is_a_convolution(setting):
    (x, offset, weight, bias, mask), more = make(**setting)
    plain = F.conv2d(x, weight, bias, groups=setting["groups"], **more)
    torch.testing.assert_close(deform_conv2d(x, 0 * offset, weight, bias, **more), plain)
    half = deform_conv2d(x, 0 * offset, weight, None, mask=torch.full_like(mask, 0.5), **more)
    torch.testing.assert_close(half, (plain - bias[:, None, None]) / 2)


def test_whole_offsets_shift_the_map_vertically_first():
    (x, offset, weight, _, _), more = make(kernel=(1, 1), padding=0)
    offset = torch.zeros_like(offset)
    offset[:, 0], offset[:, 1] = 2, -1  # two rows down, one column to the left
    shifted = torch.zeros_like(x)
    shifted[:, :, :-2, 1:] = x[:, :, 2:, :-1]
    torch.testing.assert_close(deform_conv2d(x, offset, weight, **more), F.conv2d(shifted, weight))


def test_half_offsets_average_neighbours_and_zeros_outside():
    x = torch.tensor([[1.0, 3.0], [5.0, 11.0]])[None, None]
    offset = torch.full((1, 2, 2, 2), 0.5)
    found = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([[5.0, 3.5], [4.0, 2.75]])[None, None])


def test_bfloat16_and_autocast():
    (x, offset, weight, bias, mask), more = make()
    low = [t.bfloat16().requires_grad_() for t in (x, offset, weight, bias, mask)]
    output = deform_conv2d(*low[:4], mask=low[4], **more)
    assert output.dtype == torch.bfloat16
    expected = deform_conv2d(*(t.detach().float() for t in low[:4]), mask=low[4].detach().float(), **more)
    torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.02)
    output.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.bfloat16 for t in low)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = deform_conv2d(x.bfloat16(), offset, weight, bias, mask=mask, **more)
    assert mixed.dtype == torch.bfloat16


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_a_batch_gives_what_its_images_give_alone(seed):
    (x, offset, weight, bias, mask), more = make(seed=seed, batch=3, spread=5.0)
    together = deform_conv2d(x, offset, weight, bias, mask=mask, **more)
    for i in range(3):
        alone = deform_conv2d(x[i : i + 1], offset[i : i + 1], weight, bias, mask=mask[i : i + 1], **more)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_an_empty_batch():
    (x, offset, weight, bias, _), more = make()
    assert deform_conv2d(x[:0], offset[:0], weight, bias, **more).shape == (0, 6, 7, 9)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout, modulated):
    (x, offset, weight, _, mask), _ = make(deform_groups=2)
    x, offset, weight, mask = (t.to(memory_format=layout) for t in (x, offset, weight, mask))
    mask = mask if modulated else None
    tensors = [None if t is None else t.requires_grad_() for t in (x, offset, weight, mask)]
    numbers = [1, 1], [1, 1], [1, 1]
    torch.library.opcheck(module._deform_conv2d_op, (*tensors, *numbers))
    detached = [None if t is None else t.detach() for t in tensors]
    torch.library.opcheck(module._deform_conv2d_backward_op, (torch.randn(2, 6, 7, 9), *detached, *numbers))


@pytest.mark.parametrize("modulated", [False, True])
def test_compiles_as_one_graph(modulated):
    tensors, more = make()
    tensors = [t.requires_grad_() for t in (tensors if modulated else tensors[:4])]

    def call(*given):
        return deform_conv2d(*given[:4], mask=given[4] if modulated else None, **more).square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected, found = (torch.autograd.grad(f(*tensors), tensors) for f in (call, compiled))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": (2, 17, 7, 9)}, "offset has 17 channels; for 4 channels and 9 taps it has 18"),
        ({"offset": (2, 54, 7, 9)}, "offset has 54 channels"),
        ({"offset": (2, 18, 6, 9), "mask": (2, 9, 6, 9)}, "offset has 6 rows, but the output has 7"),
        ({"offset": (2, 18, 7, 8), "mask": (2, 9, 7, 8)}, "offset has 8 columns, but the output has 9"),
        ({"mask": (2, 18, 7, 9)}, "mask is .* it has 9 channels"),
        ({"mask": (2, 9, 7, 8)}, "mask is"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    (x, offset, weight, bias, mask), more = make()
    offset = torch.zeros(change.get("offset", offset.shape))
    mask = torch.zeros(change.get("mask", mask.shape))
    with pytest.raises(ValueError, match=message):
        deform_conv2d(x, offset, weight, bias, mask=mask, **more)


@pytest.mark.gpu
def test_agrees_with_reference_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (x, offset, weight, bias, mask), more = make(**SETTINGS[1])
    x, offset, weight, bias, mask = (t.cuda() for t in (x, offset, weight, bias, mask))
    found = deform_conv2d(x, offset, weight, bias, mask=mask, **more)
    expected = deform_conv2d_reference(x, offset, weight, bias, mask=mask, **more)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
