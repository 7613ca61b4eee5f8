"""Weights that no longer change are made ready once, not in every pass.

Under autocast each pass casts all weights anew, a convolution that takes over the norm behind it multiplies
its kernel first, and oneDNN sorts the kernel into blocks: for one image that is a good part of all the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.linear import linear
from .depthwise import StridedDepthwiseConv2d

Source = tuple[tuple[int, int], ...]
"""The tensors that something was made of, each by its place in memory and the number of its changes."""


SHAPES = 32
"""Sizes of input that a layer keeps kernels for: some levels of a pyramid for each shape of canvas."""


@dataclass(frozen=True)
class Ready:
    """Kernel and bias as a pass wants them: in the dtype that is computed in, with a norm's map in them.

    A convolution on a CPU has its kernel in oneDNN's order, too. That depends on the size of the input, and
    one of the wrong order takes far longer than to sort anew, so each size has its own; they are one and the
    same tensor where the order is.
    """

    source: Source
    weight: Tensor
    bias: Tensor | None
    packed: dict[torch.Size, Tensor] = field(default_factory=dict)

    def kernel(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The one for such an input."""
        if not isinstance(layer, nn.Conv2d) or not _is_packed(layer, x, self.weight.dtype):
            return self.weight
        found = self.packed.get(x.shape)
        if found is None and len(self.packed) < SHAPES:
            sizes = layer.padding, layer.stride, layer.dilation, layer.groups
            found = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *sizes, list(x.shape))
            order = _order(found)
            found = next((known for known in self.packed.values() if _order(known) == order), found)
            self.packed[x.shape] = found
        return self.weight if found is None else found


class Kept(dict[torch.dtype, Ready]):
    """What is kept of a layer, by the dtype that is computed in. Copies of the layer start anew."""

    def __deepcopy__(self, memo: object) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def settle(module: nn.Module) -> None:
    """Keep the weights of the layers inside as passes without gradient want them, in place.

    Values stay but for the last bit. Parameters stay, too, so this takes up to twice as much memory again;
    where they change after all, what was made of them is made anew. With gradients, and in a compiled or
    exported graph, the layers are what they were.

    Args:
        module: for prediction.
    """
    for layer in module.modules():
        if type(layer) in _RUN and "ready" not in layer.__dict__:
            layer.__dict__["ready"] = Kept()
            if "following" not in layer.__dict__:  # else its forward asks for what is kept by itself
                layer.forward = partial(_forward, layer, layer.forward)


def ready(
    layer: nn.Module, x: Tensor, norm: nn.Module | None, make: Callable[[], tuple[Tensor, Tensor | None]]
) -> Ready | None:
    """What is kept of a layer for such an input; None where it is not settled or not called for prediction.

    Args:
        layer: with `weight` and perhaps `bias`.
        x: its input.
        norm: the norm that kernel and bias are made of, too; None for none.
        make: makes them.
    """
    kept: Kept | None = layer.__dict__.get("ready")
    if kept is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    source = _source(layer) if norm is None else _source(layer) + _source(norm)
    found = kept.get(dtype)
    if found is None or found.source != source:
        weight, bias = make()
        weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        found = kept[dtype] = Ready(source, weight, bias)
    return found


def run(
    layer: nn.Module,
    x: Tensor,
    made: Ready,
    activation: nn.Module | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """The layer with such a kernel and bias; then `shortcut` is added, then the activation.

    What oneDNN knows is done while the outputs of a convolution are still in registers.
    """
    kernel = made.kernel(layer, x)
    if kernel.is_mkldnn:
        return _convolve_packed(layer, x, kernel, made.bias, activation, shortcut)  # pyright: ignore
    output = _RUN[type(layer)](layer, x, kernel, made.bias)
    output = output if shortcut is None else output + shortcut
    return output if activation is None else activation(output)


def _forward(layer: nn.Module, before: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    made = ready(layer, x, None, lambda: (layer.get_parameter("weight"), layer._parameters["bias"]))
    return before(x) if made is None else run(layer, x, made)


def _source(layer: nn.Module) -> Source:
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors if t is not None)


@cache
def has_packing() -> bool:
    """Whether this build of PyTorch has what its compiler calls for convolutions with frozen weights."""
    names = "_reorder_convolution_weight", "_convolution_pointwise", "_get_mkldnn_serialized_md"
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _is_packed(layer: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> bool:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    known = x.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return last and plain and known and has_packing()


def _order(packed: Tensor) -> bytes:
    """How a kernel lies in memory."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()


def _convolve_packed(
    layer: nn.Conv2d,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    activation: nn.Module | None,
    shortcut: Tensor | None,
) -> Tensor:
    sizes = layer.padding, layer.stride, layer.dilation, layer.groups
    x = x.to(kernel.dtype)
    name, numbers = _FUSED.get(type(activation), _unknown)(activation)
    if shortcut is None:
        output = torch.ops.mkldnn._convolution_pointwise(x, kernel, bias, *sizes, name, numbers, "")
    else:
        name = name if name == "relu" else "none"  # the only one that oneDNN has behind a sum
        done = "relu" if name == "relu" else None
        shortcut = shortcut.to(kernel.dtype)
        output = torch.ops.mkldnn._convolution_pointwise.binary(
            *(x, shortcut, kernel, bias, *sizes), "add", 1.0, done, [], ""
        )
    return output if activation is None or name != "none" else activation(output)


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return layer._conv_forward(x, weight, bias)


def _convolve_transposed(layer: nn.ConvTranspose2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    sizes = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return F.conv_transpose2d(x, weight, bias, *sizes)  # pyright: ignore[reportArgumentType]


def _multiply(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight, bias)


def _unknown(activation: nn.Module | None) -> tuple[str, list[float]]:
    return "none", []


_FUSED: dict[type, Callable[..., tuple[str, list[float]]]] = {
    nn.ReLU: lambda activation: ("relu", []),
    nn.ReLU6: lambda activation: ("hardtanh", [0.0, 6.0]),
    nn.LeakyReLU: lambda activation: ("leaky_relu", [activation.negative_slope]),
}
"""Activations that oneDNN does with a convolution: its name and numbers."""

_RUN: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: _convolve,
    StridedDepthwiseConv2d: _convolve,
    nn.ConvTranspose2d: _convolve_transposed,
    nn.Linear: _multiply,
}
