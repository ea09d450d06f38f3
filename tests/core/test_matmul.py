"""Products through oneDNN against torch's own, at every remainder of the blocks and in every stride."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from luthier.core import matmul
from luthier.core.matmul import BLOCKS, LinearProduct, add_outer, product, takes

ROWS = [1, BLOCKS[0] - 1, BLOCKS[0], BLOCKS[0] + 1, 3 * BLOCKS[0] + 5]
IN, OUT = 48, 40


@pytest.fixture(params=[True, False], ids=["oneDNN", "default"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of rows of each product that oneDNN makes; one machine tries both libraries."""
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    made: list[int] = []
    through = matmul._onednn

    def watched(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        made.append(len(x_NI))
        return through(x_NI, weight_OI)

    monkeypatch.setattr(matmul, "prefers_onednn", lambda: request.param)
    monkeypatch.setattr(matmul, "_onednn", watched)
    yield made
    assert request.param or not made


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    # Both sum in float32, each in its own order.
    assert (ours.double() - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_product_is_x_times_the_transposed_weight(rows: int, is_transposed: bool, calls: list[int]) -> None:
    x, weight = _draw(rows, IN), _draw(OUT, IN, seed=1)
    if is_transposed:
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    _assert_close(product(x, weight), x.double() @ weight.double().t())
    assert set(calls) <= {BLOCKS[0]}
    assert len(calls) in (0, rows // BLOCKS[0])


@pytest.mark.parametrize("rows", ROWS)
def test_the_gradient_of_a_weight_is_added_to_what_is_there(rows: int, calls: list[int]) -> None:
    grad, x, start = _draw(rows, OUT), _draw(rows, IN, seed=1), _draw(OUT, IN, seed=2)
    into = start.clone()
    assert add_outer(into, grad, x) is into
    _assert_close(into, start.double() + grad.double().t() @ x.double())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 100), (1, 3 * BLOCKS[0] + 5)], ids=str)
def test_a_linear_layer_and_all_its_gradients_are_the_same(
    shape: tuple[int, ...], has_bias: bool, calls: list[int]
) -> None:
    upstream = _draw(*shape, OUT, seed=3)
    found = []
    for double in (False, True):
        leaves = [_draw(*shape, IN), _draw(OUT, IN, seed=1), *([_draw(OUT, seed=2)] if has_bias else [])]
        leaves = [(t.double() if double else t).requires_grad_() for t in leaves]
        bias = leaves[2] if has_bias else None
        if double:
            out = torch.nn.functional.linear(leaves[0], leaves[1], bias)
        else:
            out = LinearProduct.apply(leaves[0], leaves[1], bias)
        out.backward(upstream.to(out.dtype))
        found.append([out.detach(), *(t.grad for t in leaves)])
    for ours, theirs in zip(*found, strict=True):
        _assert_close(ours, theirs)


def test_what_needs_no_gradient_gets_none(calls: list[int]) -> None:
    for trained in range(3):
        leaves = [_draw(200, IN), _draw(OUT, IN), _draw(OUT)]
        leaves[trained].requires_grad_()
        LinearProduct.apply(*leaves).sum().backward()
        assert [t.grad is not None for t in leaves] == [i == trained for i in range(3)]


def test_a_transposed_input_of_a_layer_is_taken_as_it_is(calls: list[int]) -> None:
    x, weight = _draw(2, IN, 150).transpose(1, 2), _draw(OUT, IN, seed=1)
    _assert_close(LinearProduct.apply(x, weight, None), x.double() @ weight.double().t())


@pytest.mark.parametrize("reason", ["16 bits", "float64", "thin", "autocast"])
def test_other_products_go_to_the_default_library(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "prefers_onednn", lambda: True)
    monkeypatch.setattr(matmul, "_onednn", lambda *_: pytest.fail("oneDNN was asked"))
    x, weight = _draw(300, IN), _draw(8 if reason == "thin" else OUT, IN)
    if reason in ("16 bits", "float64"):
        dtype = torch.bfloat16 if reason == "16 bits" else torch.float64
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reason == "autocast"):
        assert not takes(x, len(weight))
        assert torch.equal(product(x, weight), x @ weight.t())
