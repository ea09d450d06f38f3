"""The leaner computations against the modules they stand in for, and where they step back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from families import build, examples, tokenizer
from luthier.core import matmul
from luthier.methods.base import trainable
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.models import leaner
from luthier.models.causal import CausalModel, probe
from luthier.models.leaner import is_unwatched, make_leaner
from training import engine


def _feed_forward(lean: bool) -> nn.Module:
    module = build("llama").get_submodule("model.layers.0.mlp")
    if lean:
        make_leaner(module)
    return module


def _results(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = module(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (1, 60)], ids=str)
def test_the_gated_feed_forward_and_all_its_gradients_are_the_same(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(0))
    lean, plain = _feed_forward(True), _feed_forward(False)
    assert "forward" in vars(lean)
    for ours, theirs in zip(_results(lean, x), _results(plain, x), strict=True):
        assert (ours - theirs).abs().max() < 1e-6 * max(1.0, float(theirs.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(lean(x), plain(x), rtol=1e-6, atol=1e-6)


def _kept(module: nn.Module, x: Tensor) -> int:
    """How many of gate, up and the input of down are alive between forward and backward."""
    alive: list[StorageWeakRef] = []

    def note(tensor: Tensor) -> None:
        alive.append(StorageWeakRef(tensor.untyped_storage()))

    for part in (module.gate_proj, module.up_proj):
        part.register_forward_hook(lambda _, args, out: note(out))
    module.down_proj.register_forward_pre_hook(lambda _, args: note(args[0]))
    out = module(x)
    kept = sum(not ref.expired() for ref in alive)
    out.sum().backward()
    return kept


def test_it_keeps_two_of_the_large_tensors_instead_of_their_product_too() -> None:
    x = torch.randn(1, 40, 32, requires_grad=True)
    assert _kept(_feed_forward(False), x) == 3
    assert _kept(_feed_forward(True), x) == 2


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mixtral"])
def test_a_feed_forward_of_another_form_keeps_its_own_forward(name: str) -> None:
    model = build(name)
    make_leaner(model)
    changed = {type(m).__name__ for m in model.modules() if "forward" in vars(m)}
    assert not any("mlp" in c.lower() or "moe" in c.lower() or "expert" in c.lower() for c in changed)


@pytest.mark.parametrize("padding", [None, 3])
def test_the_gradient_of_an_embedding_is_the_same_and_is_added_to_what_is_there(padding: int | None) -> None:
    tokens = torch.tensor([[3, 5, 5, 0], [9, 3, 3, 5]])
    upstream = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    for lean in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(10, 6, padding_idx=padding)
        if lean:
            make_leaner(table)
        for _ in range(2):
            table(tokens).backward(upstream)
        gradients.append(table.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)
    assert gradients[0].any()


@pytest.mark.parametrize("watcher", ["hook", "hook after accumulation", "frozen", "a kind of its own"])
def test_a_watched_weight_gets_its_gradient_through_autograd(watcher: str) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    assert is_unwatched(weight)
    if watcher == "hook":
        weight.register_hook(lambda grad: grad)
    elif watcher == "hook after accumulation":
        weight.register_post_accumulate_grad_hook(lambda parameter: None)
    elif watcher == "frozen":
        weight.requires_grad_(False)
    else:
        weight = type("Shard", (nn.Parameter,), {})(torch.ones(2, 2))
    assert not is_unwatched(weight)


@pytest.mark.parametrize("tied", [False, True])
def test_a_hook_on_the_shared_matrix_still_sees_its_whole_gradient(tied: bool) -> None:
    seen: dict[bool, Tensor] = {}
    rows = examples([9, 14])
    for watched in (False, True):
        model = CausalModel(build("llama", tie_word_embeddings=tied), tokenizer(), "llama", "")
        probe(model)
        weight = model.module.get_input_embeddings().weight
        if watched:
            weight.register_hook(lambda grad: grad)
        model.nll_sum(model.collate(rows)).backward()
        seen[watched] = weight.grad
    torch.testing.assert_close(seen[True], seen[False], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [Full(), Lora(rank=2, alpha=3.0)], ids=lambda m: m.kind)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_whole_model_through_onednn_has_the_gradients_of_the_default_library(
    name: str, method: Full | Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    rows = examples([90, 60, 75, 80, 5])  # several blocks and a rest
    found, made = [], []
    for onednn in (False, True):
        for module in (leaner, matmul):
            monkeypatch.setattr(module, "prefers_onednn", lambda onednn=onednn: onednn)
        through = matmul._onednn
        if onednn:
            monkeypatch.setattr(matmul, "_onednn", lambda x, w, through=through: made.append(1) or through(x, w))
        model = CausalModel(build(name), tokenizer(), name, "")
        probe(model)
        engine(model, method)
        for parameter in trainable(model.module).values():
            torch.manual_seed(parameter.numel())
            parameter.data += 0.1 * torch.randn_like(parameter)  # B, too, that starts at zero
        loss = model.nll_sum(model.collate(rows))
        loss.backward()
        found.append({n: p.grad for n, p in trainable(model.module).items()})
    assert made
    for gradient, expected in zip(found[1].values(), found[0].values(), strict=True):
        assert (gradient - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("method", [Full(), Lora(rank=2)], ids=lambda m: m.kind)
def test_under_gradient_checkpointing_nothing_inside_a_block_is_kept(method: Full | Lora) -> None:
    model = CausalModel(build("llama"), tokenizer(), "llama", "")
    probe(model)
    engine(model, method, gradient_checkpointing=True)
    inside: list[StorageWeakRef] = []
    for layer in model.module.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.self_attn.q_proj):
            part.register_forward_hook(lambda _, args, out: inside.append(StorageWeakRef(out.untyped_storage())))
    loss = model.nll_sum(model.collate(examples([30, 20])))
    assert len(inside) == 6
    assert all(ref.expired() for ref in inside)
    loss.backward()


@pytest.mark.parametrize(("name", "trims"), [("llama", True), ("qwen3", True), ("gemma2", False), ("mixtral", False)])
def test_the_last_feed_forward_runs_where_something_is_predicted_and_nowhere_else(name: str, trims: bool) -> None:
    model = CausalModel(build(name), tokenizer(), name, "")
    probe(model)
    assert model.trims is trims
    running = engine(model, Full())
    rows = examples([9, 14, 5], share=0.3)
    found = []
    for model.trims in {trims, False}:
        sizes: list[int] = []
        last = model.module.model.layers[-1].mlp
        hook = last.register_forward_hook(lambda _, args, out, sizes=sizes: sizes.append(args[0][..., 0].numel()))
        batch = model.collate(rows)
        loss = model.nll_sum(batch)
        loss.backward()
        hook.remove()
        found.append(
            (float(loss), {n: p.grad.clone() for n, p in trainable(model.module).items() if p.grad is not None})
        )
        assert sizes == [len(batch.select_M) if model.trims else sum(batch.lengths)]
        running.optimizer.zero_grad()
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for tensor, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][tensor], rtol=1e-4, atol=1e-5)
