"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from boxwright.engine import ModelEMA


def test_average_in_closed_form_and_buffers_copied():
    model = nn.BatchNorm1d(2)
    ema = ModelEMA(model, 0.5)
    expected = model.weight.detach().clone()
    for n in range(1, 30):
        with torch.no_grad():
            model.weight.fill_(float(n))
        model.running_mean.fill_(float(n))
        ema.update(model)
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
        assert torch.allclose(ema.model.weight, expected)
        assert torch.equal(ema.model.running_mean, model.running_mean)
    assert not ema.model.weight.requires_grad
    assert not ema.model.training


def test_decay_is_checked():
    with pytest.raises(ValueError, match="ema_decay"):
        ModelEMA(nn.Linear(1, 1), 1.0)
