"""Training a shallow dense head where it is sampled: gradients of some hundred places instead of all.

A proposal network looks at every place of every level, but it is trained on 256 priors of an image (Faster
R-CNN, arXiv:1506.01497, Sec. 3.1.3); the outputs of all others have no gradient. So all places are looked at
without gradient, for the proposals, and the sampled ones once more with it: a convolution of 3x3 is a matrix
product there, of the cells around each place. The backward pass then does not visit the levels, and neither
they nor the head's activations are kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures import DensePredictions
from ..layers.conv import ConvNorm
from ..targets import Filled, Sample

FEWER = 4
"""Single places are looked at again where at most one in so many is sampled."""


@dataclass(frozen=True, kw_only=True)
class RepeatablePredictions(DensePredictions):
    """Raw outputs without gradient, of which those that are trained are predicted again, with it.

    Args:
        again: the outputs `(B, S, ...)` of a sample's priors; those of slots that do not count are zero.
    """

    again: Callable[[Sample], DensePredictions]


def of_sample(predictions: DensePredictions, sample: Sample) -> DensePredictions:
    """The outputs `(B, S, ...)` that a sample is trained on."""
    if isinstance(predictions, RepeatablePredictions):
        return predictions.again(sample)
    quality = predictions.quality_logits
    return DensePredictions(
        sample.take(predictions.class_logits),
        sample.take(predictions.codes),
        None if quality is None else sample.take(quality),
    )


def without_gradient(predictions: DensePredictions) -> DensePredictions:
    """The same outputs, for those who choose by them."""
    quality = predictions.quality_logits
    quality = None if quality is None else quality.detach()
    return DensePredictions(predictions.class_logits.detach(), predictions.codes.detach(), quality)


def trains_few(sampler: object, places: int) -> bool:
    """Whether a sampler chooses so few priors of an image that looking at their places again pays."""
    number = getattr(sampler, "number", None)
    return number is not None and FEWER * number <= places


def is_shallow(stem: nn.Sequential, predictors: Sequence[nn.Conv2d]) -> bool:
    """Whether `predict_at` computes what a head does: a plain 3x3 convolution and 1x1 predictors."""
    plain = all(type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) for layer in predictors)
    if not plain or len(stem) != 1 or not isinstance(stem[0], ConvNorm) or stem[0].norm is not None:
        return False
    conv = stem[0].conv
    settings = (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"
    return type(conv) is nn.Conv2d and settings == (
        *(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode),
    )


def predict_at(
    features: Sequence[Tensor],
    stem: ConvNorm,
    predictors: Sequence[nn.Conv2d],
    per_place: int,
    sample: Sample,
) -> list[Tensor]:
    """What predictors on a 3x3 convolution make of the priors of a sample.

    Args:
        features: levels of `(B, channels, H, W)`.
        stem: the convolution and its activation (`is_shallow`).
        predictors: 1x1 convolutions with `per_place * size` output channels, of any sizes.
        per_place: priors at one place; they follow each other.
        sample: with an index.

    Returns:
        `(B, S, size)` of each predictor, zero in slots that do not count.
    """
    assert sample.index is not None
    place, prior = sample.index // per_place, sample.index % per_place
    found, first = None, 0
    for feature in features:
        height, width = feature.shape[2:]
        local = place - first
        filled = Filled.of(sample.valid & (local >= 0) & (local < height * width))
        values = filled.restore(_predict(_cells_around(feature, local, filled), stem, predictors))
        found = values if found is None else found + values
        first += height * width
    assert found is not None
    outputs = found.split([layer.out_channels for layer in predictors], -1)
    return [_of_prior(output.unflatten(-1, (per_place, -1)), prior) for output in outputs]


def _predict(cells: Tensor, stem: ConvNorm, predictors: Sequence[nn.Conv2d]) -> Tensor:
    """`(F, 9, channels)` cells around places to all outputs `(F, ...)` at these places."""
    assert isinstance(stem.conv, nn.Conv2d)
    kernel = stem.conv.weight.permute(0, 2, 3, 1).flatten(1)
    hidden = F.linear(cells.flatten(1), kernel)
    # Autocast remembers how it cast a parameter, and the pass over all places let it do so without gradient.
    # What is made of parameters, as kernel and weight here, it casts anew; the bias is added outside of it.
    if stem.conv.bias is not None:
        hidden = hidden + stem.conv.bias
    if stem.activation is not None:
        hidden = stem.activation(hidden)
    weight = torch.cat([layer.weight.flatten(1) for layer in predictors])
    bias = torch.cat([layer.bias for layer in predictors if layer.bias is not None])
    return F.linear(hidden, weight, bias)


def _cells_around(feature: Tensor, place: Tensor, filled: Filled) -> Tensor:
    """The 3x3 cells around places `(B, S)` of a level, row by row `(F, 9, channels)`; zero beyond its border.

    Places outside of the level give any values.
    """
    _, channels, height, width = feature.shape
    image = torch.arange(place.shape[0], device=place.device)[:, None].expand_as(place)
    image, place = filled.drop(image), filled.drop(place)
    step = torch.arange(-1, 2, device=place.device)
    y = (place // width)[:, None] + step.repeat_interleave(3)
    x = (place % width)[:, None] + step.repeat(3)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row = image[:, None] * height + y.clamp(0, height - 1)
    index = row * width + x.clamp(0, width - 1)
    cells = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where the channels are innermost
    found = cells.index_select(0, index.flatten()).view(*index.shape, channels)
    return found * inside[..., None]


def _of_prior(values: Tensor, prior: Tensor) -> Tensor:
    """`(B, S, K, size)` of all priors at a place to `(B, S, size)` of the one at `prior (B, S)`."""
    index = prior[..., None, None].expand(-1, -1, 1, values.shape[-1])
    return values.gather(2, index)[:, :, 0]
