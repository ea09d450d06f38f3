"""The leaner norms and rotations against the ones of transformers that they stand in for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama import modeling_llama as llama

from families import build
from luthier.models.lean_blocks import make_gelu_leaner, make_norm_leaner, make_rotation_leaner, rotated

WIDTH = 24


def _norm(lean: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    norm = llama.LlamaRMSNorm(WIDTH, eps=1e-5).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.5, 2.0, WIDTH))
    assert not lean or make_norm_leaner(norm)
    return norm


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 1, WIDTH), (2, 7, WIDTH), (2, 5, 3, WIDTH), (9, WIDTH)], ids=str)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_norm_and_its_gradients_are_the_same(shape: tuple[int, ...], trained: bool) -> None:
    results = []
    for lean in (True, False):
        norm = _norm(lean).requires_grad_(trained)
        x = _drawn(*shape).requires_grad_()
        out = norm(x)
        (out * _drawn(*shape).cos()).sum().backward()
        results.append([out.detach(), x.grad, *([norm.weight.grad] if trained else [])])
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_norms_gradient_is_that_of_its_finite_differences() -> None:
    # In float64 the class's own forward runs, so that the function itself is called here.
    from luthier.models.lean_blocks import _Norm

    x = _drawn(4, WIDTH).double().requires_grad_()
    weight = torch.linspace(-1.5, 2.0, WIDTH, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: _Norm.apply(a, b, 1e-5), (x, weight))


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 2, WIDTH, requires_grad=True)
    _norm(True)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_other_numbers_than_float32_go_through_the_norms_own_forward() -> None:
    x = _drawn(3, WIDTH).bfloat16()
    assert torch.equal(_norm(True, torch.bfloat16)(x), _norm(False, torch.bfloat16)(x))


def test_a_norm_that_nothing_below_wants_a_gradient_of_is_no_part_of_the_graph() -> None:
    assert not _norm(True).requires_grad_(False)(_drawn(2, WIDTH)).requires_grad


def _kept(run: object) -> int:
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = run()  # type: ignore[operator]
    assert out.requires_grad
    return sum(seen.values())


def test_a_trained_norm_keeps_its_input_alone() -> None:
    x = _drawn(50, WIDTH).requires_grad_()
    lean, plain = _kept(lambda: _norm(True)(x)), _kept(lambda: _norm(False)(x))
    rows, weight = 50 * 4, WIDTH * 4
    assert lean == 50 * WIDTH * 4 + rows + weight
    assert plain >= lean + 50 * WIDTH * 4


@pytest.mark.parametrize("where", [1, 2], ids=["heads-first", "places-first"])
def test_a_rotation_and_its_gradients_are_the_same(where: int) -> None:
    shapes = [(2, 4, 7, 8), (2, 2, 7, 8)] if where == 1 else [(2, 7, 4, 8), (2, 7, 2, 8)]
    angles = _drawn(2, 7, 8)
    results = []
    for rotate in (rotated, llama.apply_rotary_pos_emb):
        # Attention hands over transposed views.
        q, k = (_drawn(*s).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for s in shapes)
        out = rotate(q, k, angles.cos(), angles.sin(), unsqueeze_dim=where)
        torch.stack([(o * o.detach().sin()).sum() for o in out]).sum().backward()
        assert [o.stride() for o in out] == [q.stride(), k.stride()]
        results.append([*(o.detach() for o in out), q.grad, k.grad])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "norms", "turns"),
    [("llama", True, True), ("qwen3", True, True), ("mixtral", True, True), ("gemma2", False, True)],
)
def test_a_family_gets_what_its_own_code_is(name: str, norms: bool, turns: bool) -> None:
    model = build(name)
    plain = copy.deepcopy(model)
    found = [(make_norm_leaner(m), make_rotation_leaner(m)) for m in model.modules()]
    assert any(n for n, _ in found) == norms
    assert any(t for _, t in found) == turns
    tokens = torch.randint(5, 40, (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    for one in (model, plain):
        one(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            assert (ours.grad - theirs.grad).abs().max() < 2e-5 * max(float(theirs.grad.abs().max()), 1e-3)


def test_a_family_without_either_keeps_its_own() -> None:
    assert not any(make_norm_leaner(m) or make_rotation_leaner(m) for m in build("gpt2").modules())


def test_gpt2s_gelu_is_the_same_and_keeps_its_input_alone() -> None:
    results = []
    for lean in (True, False):
        gelu = build("gpt2").get_submodule("transformer.h.0.mlp.act")
        assert not lean or make_gelu_leaner(gelu)
        x = (3 * _drawn(5, WIDTH)).requires_grad_()
        kept = _kept(lambda: gelu(x))  # noqa: B023
        gelu(x).square().sum().backward()
        results.append((gelu(x).detach(), x.grad, kept))
        assert gelu(x.bfloat16()).dtype == torch.bfloat16
    (ours, our_grad, our_kept), (theirs, their_grad, their_kept) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-5, atol=1e-5)
    assert our_kept == 5 * WIDTH * 4
    assert their_kept >= 4 * our_kept


def test_an_attention_that_turns_neighbours_keeps_its_own_rotation() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("cohere", vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    assert not any(make_rotation_leaner(m) for m in model.modules())
