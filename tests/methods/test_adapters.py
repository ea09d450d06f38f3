"""Adapters: the published formulas in every kind of block, the published counts, and what each option does."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, relu, silu
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from families import FAMILIES, build, config, enlarge, examples, tokenizer
from luthier.core.batch import collate
from luthier.core.component import Component, StageFacts
from luthier.core.errors import ModelError, RunError
from luthier.methods.adapter import Adapter
from luthier.methods.base import Method, head_parameters, trainable
from luthier.methods.compacter import Compacter
from luthier.methods.h_adapter import HAdapter
from luthier.methods.hadamard import Hadamard
from luthier.methods.ia3 import Ia3
from luthier.methods.modules.bottleneck import Bottleneck
from luthier.methods.modules.compacter import KroneckerLinear, SharedRule, kronecker_size
from luthier.methods.parallel import Parallel
from luthier.methods.pfeiffer import Pfeiffer
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.models.sublayers import block_sublayers
from luthier.objectives.sft import Sft
from training import engine

TOKENS = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(2))
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}
KINDS: dict[str, Method] = {
    "adapter": Adapter(bottleneck=6, norms=True),
    "pfeiffer": Pfeiffer(bottleneck=6),
    "parallel": Parallel(bottleneck=6),
    "compacter": Compacter(bottleneck=8),
    "hadamard": Hadamard(),
    "ia3": Ia3(),
}
ADAPTERS = {kind: method for kind, method in KINDS.items() if kind != "ia3"}


def _scatter(model: nn.Module, seed: int = 9) -> None:
    """Move every trained tensor off its start, so that an update without effect would be seen."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def _logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def _classifier(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    chosen = BertConfig(**BERT) if name == "bert" else config(name)
    chosen.num_labels = 3
    return enlarge(AutoModelForSequenceClassification.from_config(chosen, attn_implementation="eager"))


# ------------------------------------------------- the published formulas, written out for every way a block is built

Update = Callable[[Tensor, Tensor], Tensor]
"""What a sublayer that read x and wrote h sends on to the residual addition."""


def _llama_block(self: nn.Module, hidden_states: Tensor, *, after: Update, beside: Update, **kwargs: object) -> Tensor:
    x = self.input_layernorm(hidden_states)
    written, _ = self.self_attn(hidden_states=x, **kwargs)
    stream = hidden_states + after(x, written)
    x = self.post_attention_layernorm(stream)
    return stream + beside(x, self.mlp(x))


def _gpt2_block(
    self: nn.Module,
    hidden_states: Tensor,
    past_key_values: object = None,
    attention_mask: Tensor | None = None,
    *args: object,
    after: Update,
    beside: Update,
    **kwargs: object,
) -> Tensor:
    x = self.ln_1(hidden_states)
    stream = hidden_states + after(x, self.attn(x, attention_mask=attention_mask)[0])
    x = self.ln_2(stream)
    return stream + beside(x, self.mlp(x))


def _neox_block(self: nn.Module, hidden_states: Tensor, *, after: Update, beside: Update, **kwargs: object) -> Tensor:
    x = self.input_layernorm(hidden_states)
    written = after(x, self.attention(x, **kwargs)[0])
    x = self.post_attention_layernorm(hidden_states)
    return hidden_states + written + beside(x, self.mlp(x))


def _bert_block(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: object,
    after: Update,
    beside: Update,
    **kwargs: object,
) -> Tensor:
    attended, _ = self.attention.self(hidden_states, attention_mask=attention_mask)
    output = self.attention.output
    x = output.LayerNorm(hidden_states + after(hidden_states, output.dense(attended)))
    return self.output.LayerNorm(x + beside(x, self.output.dense(self.intermediate(x))))


def _bloom_block(
    self: nn.Module, hidden_states: Tensor, *, after: Update, beside: Update, **kwargs: object
) -> tuple[Tensor, None]:
    x = self.input_layernorm(hidden_states)
    zero = torch.zeros_like(x)
    stream = hidden_states + after(x, self.self_attention(x, zero, **kwargs)[0])
    x = self.post_attention_layernorm(stream)
    return stream + beside(x, self.mlp(x, zero)), None


BLOCKS = {
    "llama": _llama_block,
    "qwen2": _llama_block,
    "qwen3": _llama_block,
    "mixtral": _llama_block,
    "gpt2": _gpt2_block,
    "gpt-neox": _neox_block,
    "bloom": _bloom_block,
    "bert": _bert_block,
}


def _mlp(adapter: nn.Module, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    return f(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias


def _kronecker(layer: nn.Module, x: Tensor) -> Tensor:
    terms = zip(layer.rule.factors, layer.left, layer.right)
    return x @ sum(torch.kron(a, left @ right) for a, left, right in terms) + layer.bias  # type: ignore[operator]


def _formulas(kind: str, block: nn.Module) -> tuple[Update, Update]:
    """What a method does behind attention and at the feed-forward, from the papers, with the block's own tensors."""
    kept: Update = lambda x, h: h  # noqa: E731
    if kind == "adapter":
        return (
            lambda x, h: h + _mlp(block.adapter_attention, h, gelu),
            lambda x, h: h + _mlp(block.adapter_feed_forward, h, gelu),
        )
    if kind == "pfeiffer":
        return kept, lambda x, h: h + _mlp(block.adapter_feed_forward, h, relu)
    if kind == "parallel":
        return kept, lambda x, h: h + 4.0 * _mlp(block.adapter_parallel, x, relu)
    if kind == "hadamard":
        return lambda x, h: block.hadamard.scale * h + block.hadamard.shift, kept

    def compacted(adapter: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        return h + _kronecker(adapter.up, gelu(_kronecker(adapter.down, h)))

    return partial(compacted, block.adapter_attention), partial(compacted, block.adapter_feed_forward)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", BLOCKS)
def test_it_computes_the_published_formula(family: str, kind: str) -> None:
    make = (lambda: _classifier("bert")) if family == "bert" else (lambda: build(family))
    model, plain = make(), make()
    ADAPTERS[kind].prepare(model)
    _scatter(model)
    plain.load_state_dict(model.state_dict(), strict=False)  # the trained norms and head
    for adapted, block in zip(block_sublayers(model), block_sublayers(plain)):
        after, beside = _formulas(kind, adapted.module)
        written = partial(BLOCKS[family], after=after, beside=beside)
        block.module.forward = types.MethodType(lambda self, *a, _f=written, **k: _f(self, *a, **k), block.module)
    model.eval()
    torch.testing.assert_close(_logits(model), _logits(plain), rtol=1e-4, atol=1e-4)
    assert (_logits(model) - _logits(make())).abs().max() > 1e-2


@pytest.mark.parametrize("name", [*FAMILIES, "bert"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_family_starts_at_the_base_model_and_is_moved_by_what_is_trained(kind: str, name: str) -> None:
    model = _classifier("bert") if name == "bert" else build(name)
    before = _logits(model)
    counted = ADAPTERS[kind].count(model)
    ADAPTERS[kind].apply(model)
    assert sum(p.numel() for p in trainable(model).values()) == counted
    assert torch.equal(_logits(model), before)
    model(input_ids=TOKENS).logits.square().mean().backward()
    assert all(p.grad is not None for p in trainable(model).values())
    _scatter(model)
    assert (_logits(model) - before).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "function"), [("gelu", gelu), ("relu", relu), ("silu", silu)])
def test_the_activation_is_the_one_asked_for(name: str, function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    adapter = Bottleneck(8, 3, name, scale=2.0)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(5, 8)
    torch.testing.assert_close(adapter(x), 2.0 * _mlp(adapter, x, function))


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    adapter = Bottleneck(8, 64, "gelu", dropout=0.5)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(5, 8)
    assert not torch.equal(adapter(x), adapter(x))
    adapter.eval()
    assert torch.equal(adapter(x), adapter(x))


# ------------------------------------------------------------------------------------------------- compacter's matrices


@pytest.mark.parametrize(("terms", "inputs", "outputs", "rank"), [(4, 32, 8, 1), (2, 6, 10, 3), (1, 5, 4, 2)])
def test_a_compacted_matrix_is_the_sum_of_kronecker_products(terms: int, inputs: int, outputs: int, rank: int) -> None:
    torch.manual_seed(0)
    rule = SharedRule(terms)
    layer = KroneckerLinear(rule, inputs, outputs, rank, zero=False)
    expected = torch.zeros(inputs, outputs)
    for term in range(terms):
        expected += torch.kron(rule.factors[term], layer.left[term] @ layer.right[term])
    torch.testing.assert_close(layer.matrix(), expected)


def test_all_compacters_share_one_rule_which_learns_from_each_of_them() -> None:
    model = build("llama")
    Compacter(bottleneck=8).apply(model)
    rules = [n for n in trainable(model) if n.endswith("rule.factors")]
    assert rules == ["model.layers.0.adapter_attention.down.rule.factors"]
    layers = [m for m in model.modules() if isinstance(m, KroneckerLinear)]
    assert len(layers) == 8
    assert len({id(layer.rule) for layer in layers}) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Compacter(bottleneck=30), "use 32"),
        (Compacter(phm_dim=5, bottleneck=30), "choose one of: 2, 3, 4, 6"),
        (Adapter(blocks=(0,), drop_first=1), "both choose the blocks"),
        (Pfeiffer(blocks=(12,)), "no block 12"),
        (Parallel(drop_first=12), "none of 12 blocks is left"),
        (Hadamard(blocks=(-13,)), "no block -13"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said_before_the_model_is_loaded(method: Component, expected: str) -> None:
    facts = StageFacts(method, Sft(), model_config={"hidden_size": 768, "num_hidden_layers": 12})
    (problem,) = method.problems(facts)
    assert expected in str(problem)


def test_a_width_that_does_not_divide_is_refused_when_only_the_model_tells_it() -> None:
    with pytest.raises(ModelError, match="width 32 is no multiple of phm_dim 5"):
        Compacter(phm_dim=5, bottleneck=10).apply(build("llama"))


# ------------------------------------------------------------------------------------------------- the published counts


def _meta(model_config: RobertaConfig | BertConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForMaskedLM.from_config(model_config)


_ROBERTA_BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@pytest.mark.parametrize(
    ("method", "published"),
    [
        # AdapterHub's table for roberta-base (release notes of adapter-transformers 3.1): reduction factor 16 is r 48,
        # 2 is r 384, 32 is r 24; their Compacters train no norms.
        (Pfeiffer(bottleneck=48), 894_528),
        (Adapter(bottleneck=48), 1_789_056),
        (HAdapter(bottleneck=48), 1_789_056),
        (Parallel(bottleneck=384), 7_091_712),
        (Compacter(bottleneck=24, norms=False), 57_088),
        (Compacter(bottleneck=24, norms=False, feed_forward_only=True), 28_576),
        (Ia3(targets=("k", "v")), 18_432),
        # (IA)³, section 3.3: l_k + l_v + l_ff in each block.
        (Ia3(), 12 * (768 + 768 + 3072)),
    ],
    ids=str,
)
def test_the_counts_published_for_roberta_base_come_out_exactly(method: Method, published: int) -> None:
    assert method.count(_meta(RobertaConfig(**_ROBERTA_BASE))) == published


def test_houlsbys_share_of_bert_large_is_the_published_one() -> None:
    # Table 1: adapters of size 64 train 2.1 % for each task, of the blocks' weights; the closed form is 2md + d + m.
    large = _meta(BertConfig(**_BERT_LARGE))
    counted = Adapter(bottleneck=64).count(large)
    assert counted == 24 * 2 * (2 * 1024 * 64 + 64 + 1024)
    blocks = sum(p.numel() for n, p in large.named_parameters() if ".layer." in n)
    assert round(100 * counted / blocks, 1) == 2.1
    # Section 2.1: "new layer normalization parameters", 2d for each of two norms in a block.
    assert Adapter(bottleneck=64, norms=True).count(large) == counted + 24 * 2 * 2 * 1024


def test_the_hadamard_adapters_share_of_bert_base_is_the_published_one() -> None:
    # Abstract: 0.033 %, and 0.022 % without the redundant third of the blocks, of BERT-base's 110 M.
    base = _meta(BertConfig())
    full, fewer = Hadamard().count(base), Hadamard(drop_first=4).count(base)
    assert full == 12 * 4 * 768
    assert 0.033 <= 100 * full / 110e6 < 0.034
    assert 0.022 <= 100 * fewer / 110e6 < 0.023


@pytest.mark.parametrize(("places", "published"), [(2, 0.073), (1, 0.047)])
def test_compacters_share_of_t5_base_is_the_published_one(places: int, published: float) -> None:
    # Table 1: Compacter 0.073 %, Compacter++ 0.047 % of T5-base's weights; n = 4, r = 768 / 32, norms trained.
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12))
    norms = sum(p.numel() for n, p in model.named_parameters() if "layer_norm" in n)
    counted = 24 * places * kronecker_size(768, 24, rank=1) + 4**3 + norms
    assert round(100 * counted / sum(p.numel() for p in model.parameters()), 3) == published


# ---------------------------------------------------------------------------------------------- which blocks, and norms


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_drop_trains_exactly_the_upper_blocks_and_needs_no_gradient_below(kind: str) -> None:
    model = build("llama", num_hidden_layers=5)
    method = ADAPTERS[kind].model_copy(update={"drop_first": 3})
    method.apply(model)
    blocks = {n.split(".")[2] for n in trainable(model) if n.startswith("model.layers.")}
    assert blocks == {"3", "4"}
    seen: dict[int, bool] = {}
    for index, block in enumerate(block_sublayers(model)):
        block.module.register_forward_hook(lambda m, a, out, i=index: seen.update({i: out.requires_grad}))
    model(input_ids=TOKENS)
    assert seen == {0: False, 1: False, 2: False, 3: True, 4: True}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_blocks_are_chosen_one_by_one(kind: str) -> None:
    model = build("gpt2", n_layer=4)
    method = ADAPTERS[kind].model_copy(update={"blocks": (0, -1)})
    counted = method.count(model)
    method.apply(model)
    assert {n.split(".")[2] for n in trainable(model) if n.startswith("transformer.h.")} == {"0", "3"}
    assert sum(p.numel() for p in trainable(model).values()) == counted


def test_compacter_plus_plus_leaves_attention_alone() -> None:
    model = build("llama")
    Compacter(bottleneck=8, feed_forward_only=True, norms=False).apply(model)
    assert all(".adapter_feed_forward." in n for n in trainable(model))


# ---------------------------------------------------------------------------------------- in training and in generation


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(
    kind: str, family: str, family_folder: Callable[[str], Path]
) -> None:
    found = []
    for checkpointing in (False, True):
        model = load_model(str(family_folder(family)))
        running = engine(model, KINDS[kind], gradient_checkpointing=checkpointing)
        _scatter(model.module)
        sums = running.forward_backward(examples([9, 14, 5], seed=1))
        found.append((sums.loss, {n: p.grad for n, p in trainable(model.module).items()}))
    (loss, grads), (loss_again, grads_again) = found
    torch.testing.assert_close(loss, loss_again)
    for name, grad in grads.items():
        assert grad is not None
        torch.testing.assert_close(grad, grads_again[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt-neox", "bloom"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_from_a_left_padded_batch_equals_whole_passes_row_by_row(kind: str, family: str) -> None:
    model = build(family)
    KINDS[kind].apply(model)
    _scatter(model)
    model.eval()
    prompts = [TOKENS[0, :9], TOKENS[1, :4]]
    batch = torch.stack([torch.cat([torch.zeros(9 - len(p), dtype=torch.long), p]) for p in prompts])
    mask = torch.stack([(torch.arange(9) >= 9 - len(p)).long() for p in prompts])
    wanted = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "suppress_tokens": [2]}
    written = model.generate(input_ids=batch, attention_mask=mask, **wanted)[:, 9:]
    for row, prompt in zip(written, prompts):
        tokens = prompt
        for _ in range(5):
            logits = model(input_ids=tokens[None], use_cache=False).logits[0, -1]
            logits[2] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax()[None]])
        assert torch.equal(row, tokens[len(prompt) :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_base_gets_float32_updates_and_trains(kind: str) -> None:
    module = build("llama").to(torch.bfloat16)
    KINDS[kind].prepare(module)
    assert {p.dtype for p in trainable(module).values()} == {torch.float32}
    model = CausalModel(module, tokenizer(), "llama", "", autocast=torch.bfloat16)
    batch = collate(examples([9, 14], seed=1), torch.device("cpu"), packed=False, pad_id=0)
    optimizer = torch.optim.AdamW(trainable(module).values(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.nll_sum(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_copy_of_the_model_has_adapters_of_its_own(kind: str) -> None:
    model = build("gpt2")
    ADAPTERS[kind].apply(model)
    _scatter(model)
    copied = copy.deepcopy(model)
    before = _logits(model)
    assert torch.equal(_logits(copied), before)
    _scatter(copied)
    assert torch.equal(_logits(model), before)
    assert not torch.allclose(_logits(copied), before, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_learns_with_it_and_opens_again(kind: str, name: str, tmp_path: Path) -> None:
    method, model = KINDS[kind], _classifier(name)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    heads = set(head_parameters(model))
    counted = method.count(model) + sum(p.numel() for n, p in model.named_parameters() if n in heads)
    method.prepare(model)
    assert sum(p.numel() for p in trainable(model).values()) == counted
    assert heads <= trainable(model).keys()
    labels = torch.tensor([0, 2])
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = cross_entropy(model(input_ids=TOKENS).logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = trainable(model)
    for n, p in model.named_parameters():
        if n not in trained:
            assert torch.equal(p, frozen[n.replace(".base_layer.", ".")])
    method.save(model, tmp_path, base="base")
    again = _classifier(name)
    method.prepare(again)
    method.load(again, tmp_path)
    assert torch.equal(_logits(again.eval()), _logits(model.eval()))


# ------------------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize(
    ("method", "name"),
    [(Hadamard(), "gpt2"), (Hadamard(), "bert"), (Hadamard(), "gpt-neox"), (Hadamard(), "bloom")]
    + [(Hadamard(shift=False, blocks=(1,)), n) for n in ("llama", "qwen2", "mixtral", "gemma2", "gpt2")],
    ids=str,
)
def test_the_hadamard_adapter_merges_where_a_bias_takes_the_shift_or_there_is_none(method: Hadamard, name: str) -> None:
    model = _classifier("bert") if name == "bert" else build(name)
    names = [n for n, _ in model.named_parameters()]
    method.apply(model)
    _scatter(model)
    model.eval()
    before = _logits(model)
    merged = method.merge(model)
    torch.testing.assert_close(_logits(merged), before, rtol=1e-5, atol=1e-5)
    assert [n for n, _ in merged.named_parameters()] == names
    assert not any("luthier" in type(m).__module__ for m in merged.modules())
    assert not any("luthier" in type(h).__module__ for m in merged.modules() for h in m._forward_hooks.values())


def test_a_shift_without_a_bias_to_take_it_is_refused_with_the_remedy() -> None:
    model = build("llama")
    Hadamard().apply(model)
    with pytest.raises(RunError, match=r"o_proj of this model has no bias.*shift: false"):
        Hadamard().merge(model)


@pytest.mark.parametrize("kind", ["adapter", "pfeiffer", "parallel", "compacter"])
def test_a_nonlinear_adapter_says_why_it_cannot_be_merged(kind: str) -> None:
    model = build("llama")
    ADAPTERS[kind].apply(model)
    with pytest.raises(RunError, match="nonlinearity"):
        ADAPTERS[kind].merge(model)


def test_the_alias_differs_from_houlsbys_adapter_in_its_name_alone() -> None:
    assert HAdapter.model_fields.keys() == Adapter.model_fields.keys()
    same = {k: v for k, v in HAdapter().model_dump().items() if k != "kind"}
    assert same == {k: v for k, v in Adapter().model_dump().items() if k != "kind"}
