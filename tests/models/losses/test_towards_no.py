"""Value and slope in one pass against the plain steps."""

import pytest
import torch

from boxwright.models.losses import BinaryCrossEntropy, FocalLoss, QualityFocalLoss
from boxwright.models.losses import towards_no as module
from boxwright.models.losses.towards_no import towards_no


def plain(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    values = logits.double()
    cost = (1 + values.exp()).log() * values.sigmoid() ** gamma
    return cost.sum(-1), values.gather(-1, labels[..., None])[..., 0]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("classes", [1, 7])
def test_values_and_gradients(gamma: float, classes: int, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 40)  # several blocks, the last one not full
    g = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(3, 9, classes, generator=g)).requires_grad_()
    labels = torch.randint(0, classes, (3, 9), generator=g)
    factors = torch.randn(2, 3, 9, generator=g)
    results = []
    for function in (towards_no, plain):
        costs, at_label = function(logits, labels, gamma)
        total = (costs * factors[0] + at_label * factors[1]).sum()
        results.append((costs.detach(), at_label.detach(), *torch.autograd.grad(total, logits)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


def test_what_is_kept_for_the_gradient_is_of_the_size_and_type_of_the_logits():
    logits = torch.randn(5, 40, 80).bfloat16().requires_grad_()
    labels = torch.zeros(5, 40, dtype=torch.int64)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = FocalLoss()(logits, labels, torch.zeros(5, 40))
    assert [t.dtype for t in kept if t.numel() == logits.numel()] == [torch.bfloat16]
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_the_gradient_takes_the_place_of_what_was_kept_for_it():
    logits = torch.randn(40, 80, requires_grad=True)
    labels = torch.randint(0, 80, (40,), generator=torch.Generator().manual_seed(0))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        total = FocalLoss()(logits, labels, (labels < 40).float()).sum()
    (again,) = torch.autograd.grad(total, logits, retain_graph=True)
    (last,) = torch.autograd.grad(total, logits)
    assert again.data_ptr() not in kept
    assert last.data_ptr() in kept
    torch.testing.assert_close(last, again, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [FocalLoss(), BinaryCrossEntropy(), QualityFocalLoss()])
def test_compiled_the_loss_is_the_same(loss):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 4, generator=g).requires_grad_()
    labels, scores = torch.randint(0, 4, (2, 6), generator=g), (torch.rand(2, 6, generator=g) < 0.5).float()

    def run(logits: torch.Tensor) -> torch.Tensor:
        return loss(logits, labels, scores).sum()

    value, compiled = run(logits), torch.compile(run, fullgraph=True, backend="aot_eager")(logits)
    torch.testing.assert_close(compiled, value)
    grads = [torch.autograd.grad(v, logits)[0] for v in (value, compiled)]
    torch.testing.assert_close(*grads)


def test_without_gradient_and_without_rows():
    costs, at_label = towards_no(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2.0)
    assert costs.shape == at_label.shape == (0,)
    with torch.no_grad():
        costs, _ = towards_no(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0.0)
    torch.testing.assert_close(costs, torch.full((2,), 3 * 0.693147))
