"""Numbers that follow the training, against a slow reference that keeps lists."""

import copy
import math

import numpy as np
import pytest
import torch

from boxwright.errors import ConfigError
from boxwright.models.adaptive import AdaptiveValue, nan_median

NAN = math.nan


@pytest.mark.parametrize(
    "values", [[3.0, 1.0, 2.0], [4.0, 1.0], [NAN, 5.0, NAN, 1.0, 2.0, 9.0], [NAN, 7.0], [NAN]]
)
def test_median_is_numpys(values: list[float]):
    found = nan_median(torch.tensor(values)).item()
    present = [value for value in values if not math.isnan(value)]
    assert found == pytest.approx(np.median(present)) if present else math.isnan(found)


@pytest.mark.parametrize(("summary", "slow"), [(torch.nanmean, np.mean), (nan_median, np.median)])
def test_equals_a_slow_reference(summary, slow):
    generator = torch.Generator().manual_seed(0)
    value = AdaptiveValue(0.5, 4, summary, lowest=0.3, highest=0.6)
    expected, kept = 0.5, []
    for step in range(1, 42):
        number, present = torch.rand((), generator=generator), torch.rand((), generator=generator) < 0.4
        value.record(number, present)
        kept += [number.item()] if present else []
        if step % 4 == 0:
            expected, kept = (min(max(float(slow(kept)), 0.3), 0.6) if kept else expected), []
        assert value.value.item() == pytest.approx(expected)


def test_saved_state_goes_on_exactly():
    def steps(value: AdaptiveValue, first: int, last: int) -> list[float]:
        found = []
        for step in range(first, last):
            value.record(torch.tensor(math.sin(step)), torch.tensor(step % 3 > 0))
            found.append(value.value.item())
        return found

    whole, cut = (AdaptiveValue(0.0, 5, torch.nanmean) for _ in range(2))
    expected = steps(whole, 0, 23)
    before = steps(cut, 0, 12)
    resumed = AdaptiveValue(0.0, 5, torch.nanmean)
    resumed.load_state_dict(copy.deepcopy(cut.state_dict()))
    assert before + steps(resumed, 12, 23) == expected


def test_evaluation_records_nothing_and_shapes_stay():
    value = AdaptiveValue(1.0, 2, torch.nanmean).eval()
    before = copy.deepcopy(value.state_dict())
    for _ in range(5):
        value.record(torch.tensor(3.0), torch.tensor(True))
    torch.testing.assert_close(value.state_dict(), before, equal_nan=True)
    assert {name: tuple(tensor.shape) for name, tensor in before.items()} == {
        "value": (),
        "history": (2,),
        "steps": (),
    }
    with pytest.raises(ConfigError, match="interval is 0"):
        AdaptiveValue(1.0, 0, torch.nanmean)
