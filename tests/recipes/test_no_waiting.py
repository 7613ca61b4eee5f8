"""No step asks the host for a value: what would make a GPU wait, looked for on a CPU.

The operators that read a tensor's value, or copy numbers from host memory, are watched for; those inside our
own operators (`torch.library.custom_op`) are their backends' affair.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from boxwright.config import NumClasses, Pretrained, build, set_tagged
from boxwright.models.targets import Filled
from boxwright.recipes import table
from boxwright.structures import Batch, Targets

WAITING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten.repeat_interleave.Tensor",
    "aten.equal.default",
}
NAMES = [name for name in table() if name.endswith(("_mnv2_320", "_small_320"))]


class Watch(TorchDispatchMode):
    """Notes where an operator is called that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = str(func)
        numbers = name == "aten.lift_fresh.default" and args[0].dim() > 0
        chosen = args[1] if name.startswith(("aten.index.Tensor", "aten.index_put")) else ()
        if name in WAITING or numbers or any(i is not None and i.dtype == torch.bool for i in chosen):
            ours = [f for f in traceback.extract_stack() if "/boxwright/" in f.filename]
            self.found.append(f"{name} at {ours[-1].filename}:{ours[-1].lineno}" if ours else name)
        return func(*args, **(kwargs or {}))


def small_batch() -> Batch:
    valid = torch.tensor([[True, True], [True, False]])
    boxes = torch.tensor([[8.0, 8, 40, 50], [30, 20, 90, 60]]).repeat(2, 1, 1) * valid[..., None]
    bitmap = torch.zeros(2, 2, 64, 96, dtype=torch.uint8)
    for image in range(2):
        for slot in range(int(valid[image].sum())):
            x1, y1, x2, y2 = boxes[image, slot].int().tolist()
            bitmap[image, slot, y1:y2, x1:x2] = 1
    from boxwright.ops.masks import pack

    masks = pack([bitmap[0], bitmap[1, :1]], 2)
    targets = Targets(boxes, valid.long() * 0, valid, ~valid & False, masks)
    sizes = torch.tensor([[64, 96], [60, 80]])
    return Batch(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), sizes, targets)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for key, value in losses.items() if key.startswith("loss/")]).sum()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eager execution on a CPU compacts empty slots, which has to look at them; a GPU does not.
    monkeypatch.setattr(Filled, "of", classmethod(lambda cls, valid: cls(valid, None)))
    config = table()[name]()
    set_tagged(config.model, Pretrained, None)
    set_tagged(config.model, NumClasses, 3)
    model: nn.Module = build(config.model)
    batch = small_batch()
    total(model.train()(batch)).backward()  # constants are made once
    with torch.no_grad():
        model.eval().predict(batch.images, batch.sizes)
    with Watch() as watch:
        total(model.train()(batch)).backward()
        with torch.no_grad():
            model.eval().predict(batch.images, batch.sizes)
    assert not watch.found
