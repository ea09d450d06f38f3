"""Log-probabilities from hidden states, against torch's plain cross-entropy over the full matrix of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from luthier.core import logps as logps_module
from luthier.core.logps import Head, logps, nll_sum

M, H, V = 50, 12, 37  # M is no multiple of any chunk, so that the last chunk is short
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "everything": {"bias": True, "scale": 1.7, "softcap": 3.0},
}
CHUNK_ROWS = [1, 23, 1000]


@pytest.fixture(params=CHUNK_ROWS, ids=lambda rows: f"{rows} rows")
def _chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps_module, "CHUNK_BYTES", 4 * V * request.param)
    monkeypatch.setattr(logps_module, "CHUNK_ROWS", 1)


def _problem(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    options = dict(HEADS[kind])
    hidden = torch.randn(M, H, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=draw).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=draw).to(dtype).requires_grad_() if options.pop("bias", False) else None
    targets = torch.randint(0, V, (M,), generator=draw)
    weights = torch.rand(M, generator=draw) * 2  # weights other than one
    return hidden, Head(weight, bias, **options), targets, weights


def _leaves(hidden: Tensor, head: Head) -> list[Tensor]:
    return [t for t in (hidden, head.weight_VH, head.bias_V) if t is not None]


def _full_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = linear(hidden, head.weight_VH, head.bias_V) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _reference(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Negative log-likelihoods in float64 over the full matrix, and the float64 leaves they came from."""
    doubles = [t.detach().double().requires_grad_() for t in _leaves(hidden, head)]
    wide = replace(head, weight_VH=doubles[1], bias_V=doubles[2] if head.bias_V is not None else None)
    return cross_entropy(_full_logits(doubles[0], wide), targets, reduction="none"), doubles


def _assert_gradients(leaves: list[Tensor], reference: list[Tensor], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(leaves, reference, strict=True):
        assert ours.grad is not None
        scale = theirs.grad.abs().max()
        assert (ours.grad.double() - theirs.grad).abs().max() < tolerance * scale


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize("kind", HEADS)
def test_the_weighted_sum_and_its_gradients_equal_plain_cross_entropy(kind: str) -> None:
    hidden, head, targets, weights = _problem(kind)
    reference, doubles = _reference(hidden, head, targets)
    ours = nll_sum(hidden, head, targets, weights)
    assert ours.item() == pytest.approx((reference * weights).sum().item(), rel=1e-6)
    (2.5 * ours).backward()  # a factor from above, as the engine's division is
    (2.5 * (reference * weights).sum()).backward()
    _assert_gradients(_leaves(hidden, head), doubles)


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize("kind", HEADS)
def test_log_probabilities_and_their_gradients_equal_plain_cross_entropy(kind: str) -> None:
    hidden, head, targets, _ = _problem(kind)
    upstream = torch.randn(M, generator=torch.Generator().manual_seed(1))
    reference, doubles = _reference(hidden, head, targets)
    ours = logps(hidden, head, targets)
    torch.testing.assert_close(ours.double(), -reference, rtol=0, atol=1e-5)
    ours.backward(upstream)
    (-reference).backward(upstream.double())
    _assert_gradients(_leaves(hidden, head), doubles)


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("upstream", [None, 0.5])
def test_a_gradient_added_by_the_loss_itself_is_the_same_and_keeps_what_was_there(
    kind: str, upstream: float | None
) -> None:
    hidden, head, targets, weights = _problem(kind)
    reference, doubles = _reference(hidden, head, targets)
    own = replace(head, adds_to_grad=True, upstream=upstream)
    for _ in range(2):  # the first finds no gradient, the second adds to one, as micro-batches do
        (0.5 * nll_sum(hidden, own, targets, weights)).backward()
    (reference * weights).sum().backward()
    _assert_gradients(_leaves(hidden, head), doubles)


def test_a_gradient_made_for_another_factor_than_the_one_announced_is_an_error() -> None:
    hidden, head, targets, weights = _problem("plain")
    own = replace(head, adds_to_grad=True, upstream=0.5)
    with pytest.raises(AssertionError, match="another factor"):
        nll_sum(hidden, own, targets, weights).backward()


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", "none"])
@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_only_what_requires_a_gradient_gets_one(trained: str, function: str) -> None:
    hidden, head, targets, weights = _problem("everything")
    reference, doubles = _reference(hidden, head, targets)
    leaves = dict(zip(("hidden", "weight", "bias"), _leaves(hidden, head)))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == trained)
    ours = (
        nll_sum(hidden, head, targets, weights)
        if function == "nll_sum"
        else -(logps(hidden, head, targets) * weights).sum()
    )
    assert ours.requires_grad == (trained != "none")
    if trained == "none":
        return
    ours.backward()
    (reference * weights).sum().backward()
    for (name, leaf), double in zip(leaves.items(), doubles):
        if name == trained:
            _assert_gradients([leaf], [double])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_bfloat16_hidden_states_give_what_bfloat16_autograd_gives(function: str) -> None:
    hidden, head, targets, weights = _problem("everything", torch.bfloat16)
    twins = [t.detach().clone().requires_grad_() for t in _leaves(hidden, head)]
    twin = replace(head, weight_VH=twins[1], bias_V=twins[2])
    logits = (twins[0] @ twins[1].t() + twins[2]).float() * twin.scale
    logits = twin.softcap * torch.tanh(logits / twin.softcap)
    theirs = (cross_entropy(logits, targets, reduction="none") * weights).sum()
    ours = (
        nll_sum(hidden, head, targets, weights)
        if function == "nll_sum"
        else -(logps(hidden, head, targets) * weights).sum()
    )
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    for mine, twin_leaf in zip(_leaves(hidden, head), twins):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.bfloat16
        # Both round their products to 8 bits of mantissa, at different places.
        assert (mine.grad.float() - twin_leaf.grad.float()).abs().max() < 0.02 * twin_leaf.grad.float().abs().max()


@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_under_autocast_products_run_in_16_bits_and_gradients_arrive_in_float32(function: str) -> None:
    hidden, head, targets, weights = _problem("everything")
    reference, doubles = _reference(hidden, head, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = (
            nll_sum(hidden, head, targets, weights)
            if function == "nll_sum"
            else -(logps(hidden, head, targets) * weights).sum()
        )
    theirs = (reference * weights).sum()
    assert 1e-7 < abs(ours.item() / theirs.item() - 1) < 2e-2  # near, but not what float32 gives: 16 bits were used
    ours.backward()
    theirs.backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in _leaves(hidden, head))
    _assert_gradients(_leaves(hidden, head), doubles, tolerance=0.03)


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_a_head_with_a_projection_of_its_own_equals_autograd_through_it(function: str) -> None:
    hidden, head, targets, weights = _problem("everything")
    upper = torch.randn(V, V, generator=torch.Generator().manual_seed(2))

    def project(rows: Tensor) -> Tensor:
        return torch.relu(linear(rows, head.weight_VH)) @ upper.to(rows.dtype)

    own = Head(head.weight_VH, project=project, scale=head.scale, softcap=head.softcap)
    ours = (
        nll_sum(hidden, own, targets, weights)
        if function == "nll_sum"
        else -(logps(hidden, own, targets) * weights).sum()
    )
    ours.backward()
    got = [hidden.grad, head.weight_VH.grad]
    hidden.grad = head.weight_VH.grad = None
    logits = own.softcap * torch.tanh(project(hidden) * own.scale / own.softcap)
    theirs = (cross_entropy(logits, targets, reduction="none") * weights).sum()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, leaf in zip(got, (hidden, head.weight_VH)):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_finite_differences_agree(kind: str, function: str) -> None:
    hidden, head, targets, weights = _problem(kind, torch.float64)
    leaves = _leaves(hidden, head)

    def value(tensors: list[Tensor]) -> Tensor:
        moved = replace(head, weight_VH=tensors[1], bias_V=tensors[2] if len(tensors) > 2 else None)
        if function == "nll_sum":
            return nll_sum(tensors[0], moved, targets, weights)
        return -(logps(tensors[0], moved, targets) * weights).sum()

    value(leaves).backward()
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        ways = [torch.randn(t.shape, generator=draw, dtype=torch.float64) for t in leaves]
        slope = sum(float((t.grad * way).sum()) for t, way in zip(leaves, ways))
        step = 1e-3  # wide: the logits are float32 inside, whatever comes in
        with torch.no_grad():
            ahead, behind = (value([t + sign * step * way for t, way in zip(leaves, ways)]) for sign in (1, -1))
        assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=0.05)


def test_a_second_backward_pass_says_that_the_gradients_are_gone() -> None:
    hidden, head, targets, weights = _problem("plain")
    loss = nll_sum(hidden, head, targets, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_zero_weights_give_exactly_zero_loss_and_gradient() -> None:
    hidden, head, targets, weights = _problem("everything")
    ours = nll_sum(hidden, head, targets, torch.zeros_like(weights))
    ours.backward()
    assert ours.item() == 0.0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in _leaves(hidden, head))


@pytest.mark.parametrize("function", ["nll_sum", "logps"])
@pytest.mark.parametrize("has_projection", [False, True])
def test_an_empty_selection_gives_zero_and_can_be_differentiated(function: str, has_projection: bool) -> None:
    hidden, head, targets, weights = _problem("bias")
    if has_projection:
        head = replace(head, project=lambda rows: linear(rows, head.weight_VH))
    if function == "nll_sum":
        ours = nll_sum(hidden[:0], head, targets[:0], weights[:0])
    else:
        ours = logps(hidden[:0], head, targets[:0])
        assert ours.shape == (0,)
        ours = ours.sum()
    ours.backward()
    assert ours.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    hidden, head, targets, _ = _problem("plain")
    flat = replace(head, weight_VH=torch.zeros_like(head.weight_VH))
    assert nll_sum(hidden, flat, targets, torch.ones(M)).item() == pytest.approx(
        M * torch.tensor(float(V)).log().item(), rel=1e-6
    )


def test_enormous_logits_stay_finite() -> None:
    hidden, head, targets, weights = _problem("plain")
    ours = nll_sum(hidden * 1e4, head, targets, weights)
    ours.backward()
    assert torch.isfinite(ours)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("function", ["nll_sum", "logps"])
def test_no_chunk_of_logits_is_larger_than_allowed(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    shape_logits: Callable[..., object] = logps_module._shape_logits

    def watching(logits_CV: Tensor, head: Head) -> object:
        seen.append(len(logits_CV))
        return shape_logits(logits_CV, head)

    monkeypatch.setattr(logps_module, "CHUNK_BYTES", 4 * V * 20)
    monkeypatch.setattr(logps_module, "CHUNK_ROWS", 1)
    monkeypatch.setattr(logps_module, "_shape_logits", watching)
    hidden, head, targets, weights = _problem("plain")
    out = nll_sum(hidden, head, targets, weights) if function == "nll_sum" else logps(hidden, head, targets).sum()
    out.backward()
    assert max(seen) <= 20
    assert sum(seen) >= M


def test_without_gradients_a_trained_head_costs_no_gradient_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("an evaluation made a gradient")

    monkeypatch.setattr(logps_module, "_accumulate_product", refuse)
    monkeypatch.setattr(logps_module, "_weighted_gradient", refuse)
    hidden, head, targets, weights = _problem("bias")
    with torch.no_grad():
        hidden = hidden * 1.0  # what a backbone gives under no_grad: nothing to differentiate
        assert torch.isfinite(nll_sum(hidden, head, targets, weights))
        assert torch.isfinite(logps(hidden, head, targets)).all()
