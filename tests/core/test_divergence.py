"""Divergences of next tokens: the closed forms, their gradients by plain autograd, and what a chunk may not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.core import divergence, logps
from luthier.core.divergence import Beliefs, Way, divergence_sum, draw_tokens
from luthier.core.logps import Head

M, H, V = 23, 8, 31
WAYS: list[Way] = ["forward_kl", "reverse_kl", "jsd"]


def beliefs(seed: int, rows: int = V, width: int = H, **head: object) -> Beliefs:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=draw)
    return Beliefs(torch.randn(M, width, generator=draw), Head(weight, **head))  # type: ignore[arg-type]


def plain(mine: Beliefs, other: Beliefs, way: Way, temperature: float = 1.0) -> Tensor:
    """The textbook's formulas on whole matrices, in double precision: D of each position."""
    rows = min(len(mine.head.weight_VH), len(other.head.weight_VH))

    def logits(b: Beliefs) -> Tensor:
        raw = b.hidden_MH.double() @ b.head.weight_VH.double().t() * b.head.scale
        if b.head.bias_V is not None:
            raw = raw + b.head.bias_V.double()
        raw = raw if b.head.softcap is None else b.head.softcap * torch.tanh(raw / b.head.softcap)
        return (raw / temperature)[:, :rows]

    q, p = logits(mine).softmax(-1), logits(other).softmax(-1)
    if way == "forward_kl":
        return (p * (p.log() - q.log())).sum(-1)
    if way == "reverse_kl":
        return (q * (q.log() - p.log())).sum(-1)
    m = (p + q) / 2
    return ((p * (p.log() - m.log())).sum(-1) + (q * (q.log() - m.log())).sum(-1)) / 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("head", "temperature"),
    [({}, 1.0), ({}, 2.5), ({"scale": 0.3}, 1.0), ({"softcap": 4.0}, 1.5), ({"bias_V": torch.randn(V)}, 1.0)],
    ids=["plain", "hot", "scaled", "capped", "biased"],
)
def test_value_and_gradients_are_those_of_plain_torch(way: Way, head: dict, temperature: float) -> None:
    mine, other = beliefs(0, **head), beliefs(1, width=H + 3)
    weights = torch.rand(M)
    hidden, weight = mine.hidden_MH.requires_grad_(), mine.head.weight_VH.requires_grad_()
    leaves = [hidden, weight]
    if mine.head.bias_V is not None:
        leaves.append(mine.head.bias_V.detach().requires_grad_())
        mine = Beliefs(hidden, Head(weight, leaves[-1]))
    found = divergence_sum(mine.at(temperature), other.at(temperature), weights, way)
    expected = (plain(mine, other, way, temperature) * weights.double()).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    ours = torch.autograd.grad(3.0 * found, leaves)
    theirs = torch.autograd.grad(3.0 * expected, leaves)
    for one, another in zip(ours, theirs):
        torch.testing.assert_close(one, another.to(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_head_of_its_own_kind_gives_the_same(way: Way) -> None:
    mine, other, weights = beliefs(0), beliefs(1), torch.rand(M)
    layer = torch.nn.Linear(H, V, bias=False)
    layer.weight.data.copy_(mine.head.weight_VH)
    own = Beliefs(mine.hidden_MH, Head(layer.weight, project=layer))
    hidden = mine.hidden_MH.requires_grad_()
    weight = mine.head.weight_VH.requires_grad_()
    direct = divergence_sum(mine, other, weights, way)
    general = divergence_sum(own, other, weights, way)
    assert float(general) == pytest.approx(float(direct), rel=1e-6)
    expected = torch.autograd.grad(direct, [hidden, weight])
    for one, another in zip(torch.autograd.grad(general, [hidden, layer.weight]), expected):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_lies_between_a_model_and_itself(way: Way) -> None:
    mine = beliefs(0)
    hidden = mine.hidden_MH.clone().requires_grad_()
    total = divergence_sum(Beliefs(hidden, mine.head), mine, torch.ones(M), way)
    assert abs(float(total)) < 1e-5
    assert float(torch.autograd.grad(total, hidden)[0].abs().max()) < 1e-6


def test_jensen_and_shannon_stay_below_ln_2_however_far_models_lie_apart() -> None:
    far = beliefs(1)
    far = Beliefs(far.hidden_MH * 50, far.head)
    near = Beliefs(beliefs(0).hidden_MH * 50, beliefs(0).head)
    assert 0 < float(divergence_sum(near, far, torch.ones(M), "jsd")) / M <= 0.6932
    assert torch.isfinite(divergence_sum(near, far, torch.ones(M), "reverse_kl"))


@pytest.mark.parametrize("way", WAYS)
def test_the_chunks_change_nothing_and_no_larger_matrix_is_made(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other, weights = beliefs(0), beliefs(1), torch.rand(M)
    hidden = mine.hidden_MH.requires_grad_()
    whole = divergence_sum(mine, other, weights, way)
    expected = torch.autograd.grad(whole, hidden)[0]
    seen: list[int] = []
    values = divergence._values

    def counting(logp: Tensor, logq: Tensor, how: Way) -> tuple[Tensor, Tensor]:
        seen.append(len(logq))
        return values(logp, logq, how)

    monkeypatch.setattr(logps, "CHUNK_ROWS", 4)
    monkeypatch.setattr(logps, "CHUNK_BYTES", 4)
    monkeypatch.setattr(divergence, "_values", counting)
    cut = divergence_sum(mine, other, weights, way)
    assert max(seen) <= 4
    assert len(seen) == 6
    assert float(cut) == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(cut, hidden)[0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spare", [-5, 5])
def test_rows_that_only_one_vocabulary_has_are_left_out(spare: int) -> None:
    mine, other = beliefs(0), beliefs(1, rows=V + spare)
    weight = mine.head.weight_VH.requires_grad_()
    found = divergence_sum(mine, other, torch.ones(M), "forward_kl")
    expected = plain(mine, other, "forward_kl").sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    ours, theirs = torch.autograd.grad(found, weight)[0], torch.autograd.grad(expected, weight)[0]
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


def test_no_position_is_no_divergence() -> None:
    mine = Beliefs(torch.zeros(0, H, requires_grad=True), beliefs(0).head)
    total = divergence_sum(mine, Beliefs(torch.zeros(0, H), beliefs(1).head), torch.zeros(0), "jsd")
    assert float(total) == 0
    assert len(draw_tokens(mine, 0)) == 0


def test_tokens_are_drawn_as_often_as_they_are_expected() -> None:
    hidden = torch.ones(1, 1).expand(20_000, 1)
    logits = torch.tensor([[0.0], [1.0], [2.0]])
    drawn = draw_tokens(Beliefs(hidden, Head(logits)), seed=3)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, logits[:, 0].softmax(0), atol=0.01, rtol=0.0)
    assert torch.equal(drawn, draw_tokens(Beliefs(hidden, Head(logits)), seed=3))
