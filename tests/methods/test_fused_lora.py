"""The fused LoRA product against PEFT's own layer, and when it steps back."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from families import build
from luthier.methods.lora import Lora
from luthier.methods.modules.lora_linear import FusedLoraLinear, _FusedLora

IN, OUT, RANK = 24, 20, 4


def _layers(has_bias: bool, dropout: float = 0.0) -> tuple[FusedLoraLinear, PeftLinear]:
    """The same adapted layer twice: ours, and PEFT's."""
    from peft import LoraConfig

    made = []
    for kind in (FusedLoraLinear, PeftLinear):
        torch.manual_seed(0)
        base = nn.Linear(IN, OUT, bias=has_bias).requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=12, lora_dropout=dropout, init_lora_weights=True)
        layer = PeftLinear(base, "default", config=config, r=RANK, lora_alpha=12)
        layer.__class__ = kind
        nn.init.normal_(layer.lora_B["default"].weight)  # at the start B is zero and proves nothing
        made.append(layer)
    return made[0], made[1]


def _run(layer: PeftLinear, x: Tensor, upstream: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(upstream)
    return [out.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


def _fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    apply = _FusedLora.apply

    def watched(*args: object) -> Tensor:
        calls.append(1)
        return apply(*args)

    monkeypatch.setattr(_FusedLora, "apply", watched)
    return calls


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, OUT - 1), (1, OUT), (4, 30)], ids=str)
def test_forward_and_backward_equal_pefts_layer(
    shape: tuple[int, int], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _fused_calls(monkeypatch)  # from OUT tokens on the weight is folded, below it is not
    ours, theirs = _layers(has_bias)
    draw = torch.Generator().manual_seed(1)
    x, upstream = torch.randn(*shape, IN, generator=draw), torch.randn(*shape, OUT, generator=draw)
    for mine, reference in zip(_run(ours, x, upstream), _run(theirs, x, upstream)):
        assert (mine - reference).abs().max() < 1e-5 * reference.abs().max()
    assert len(calls) == 1


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    ours, theirs = _layers(False)
    x = torch.randn(40, IN)
    for layer in (ours, theirs):
        layer(x).sum().backward()
    torch.testing.assert_close(ours.lora_A["default"].weight.grad, theirs.lora_A["default"].weight.grad)


def test_a_transposed_input_is_taken_as_it_is() -> None:
    ours, theirs = _layers(True)
    x = torch.randn(5, IN, 7).transpose(1, 2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [3, OUT + 1])
def test_finite_differences_agree(tokens: int) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((tokens, IN), (OUT, IN), (OUT,), (RANK, IN), (OUT, RANK))
    x, weight, bias, a, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    trained = [t.requires_grad_() for t in (x, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: _FusedLora.apply(x, weight, bias, a, b, 0.7), trained)


@pytest.mark.parametrize("reason", ["dropout", "disabled", "merged", "16 bits", "autocast", "trained base"])
def test_it_steps_back_where_fusing_would_not_be_exact(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = _layers(True, dropout=0.5 if reason == "dropout" else 0.0)
    calls = _fused_calls(monkeypatch)
    x = torch.randn(30, IN)
    if reason == "16 bits":
        x = x.bfloat16()
    for layer in (ours, theirs):
        if reason == "disabled":
            layer.enable_adapters(False)
        elif reason == "merged":
            layer.merge()
        elif reason == "16 bits":
            layer.bfloat16()
        elif reason == "trained base":
            layer.get_base_layer().weight.requires_grad_(True)
    outs = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reason == "autocast"):
            outs.append(layer(x))
    assert not calls
    assert torch.equal(outs[0], outs[1])


def test_dropout_rests_in_evaluation_so_the_product_is_fused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fused_calls(monkeypatch)
    ours, theirs = _layers(True, dropout=0.5)
    x = torch.randn(30, IN)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    assert calls


def test_gpt2s_transposed_matrices_keep_pefts_forward_and_others_are_fused() -> None:
    for name, fused in (("gpt2", False), ("llama", True), ("qwen2", True)):
        model = build(name)
        Lora().apply(model)
        adapted = [m for m in model.modules() if isinstance(m, PeftLinear)]
        assert adapted
        for layer in adapted:
            can_fuse = layer._fusable_adapter(torch.zeros(3, layer.in_features), (), {}) is not None
            assert type(layer) is FusedLoraLinear
            assert can_fuse == fused
