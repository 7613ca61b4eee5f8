"""Weight standardisation (arXiv:1903.10520)."""

from __future__ import annotations

from torch import Tensor, nn


class ConvWS2d(nn.Conv2d):
    """Convolution whose kernels, one for each output channel, have mean 0 and deviation 1 (Sec. 3).

    `W = (V - mean(V)) / (std(V) + eps)` over the input channels and taps of a kernel; V is what is trained
    and kept. Meant with group norm behind it: without a norm, outputs would be large.

    Departure from the paper: as in its authors' code and in MMDetection, whose weights are trained so, the
    deviation is that of a sample (divided by one less), and `eps` is added to it, not to the variance.
    """

    eps = 1e-5

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        return self._conv_forward(input, standardise(self.weight, self.eps), self.bias)


def standardise(weight: Tensor, eps: float) -> Tensor:
    """Kernels `(O, ...)` with mean 0 and deviation 1 each; computed in float32, in the dtype of `weight`."""
    kernels = weight.float() if weight.dtype.itemsize < 4 else weight
    dims = tuple(range(1, weight.dim()))
    centred = kernels - kernels.mean(dims, keepdim=True)
    return (centred / (kernels.std(dims, keepdim=True) + eps)).to(weight.dtype)
