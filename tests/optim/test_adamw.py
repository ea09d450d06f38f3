"""AdamW against the paper's equations and torch's plain implementation."""

from __future__ import annotations

import pytest
import torch

from luthier.optim.adamw import AdamW


def _parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in ((7, 5), (5,))]


def test_one_update_follows_the_equations_of_the_paper() -> None:
    rate, decay, beta1, beta2, eps = 0.1, 0.3, 0.8, 0.95, 1e-3
    (weight,) = _parameters()[:1]
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    optimizer = AdamW(beta1=beta1, beta2=beta2, eps=eps).build([{"params": [weight], "weight_decay": decay}], rate)
    expected, first, second = weight.detach().double(), torch.zeros(7, 5).double(), torch.zeros(7, 5).double()
    for step in range(1, 4):
        g = gradient.double() * step
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
        direction = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)
        expected = expected - rate * decay * expected - rate * direction
        weight.grad = gradient * step
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_the_fused_kernel_gives_what_torchs_plain_loop_gives() -> None:
    ours, theirs = _parameters(), _parameters()
    fused = AdamW().build([{"params": ours, "weight_decay": 0.1}], 1e-2)
    plain = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=False, foreach=False)
    for step in range(20):
        for mine, other in zip(ours, theirs):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        fused.step()
        plain.step()
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}])
def test_numbers_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdamW(**bad)
