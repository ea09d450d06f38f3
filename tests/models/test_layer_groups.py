"""Ordered layer groups: every parameter in one group, and the same groups in every family."""

from __future__ import annotations

import pytest

from families import NAMES, build
from luthier.models.layers import layer_groups

DEPTH = 3


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    model = build(name)
    groups = layer_groups(model)
    listed = [*groups.embeddings, *(n for block in groups.blocks for n in block), *groups.final, *groups.head]
    assert sorted(listed) == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_in_order_alike_and_hold_neither_embedding_nor_head(name: str) -> None:
    sizes = {"n_layer": DEPTH} if name in ("gpt2", "bloom") else {"num_hidden_layers": DEPTH}
    if name in ("gemma2", "gpt-oss", "qwen2-moe", "qwen2", "qwen3"):
        sizes["layer_types"] = None  # derived from the number of layers
    groups = layer_groups(build(name, **sizes))
    assert len(groups.blocks) == DEPTH
    inner = [sorted(n.split(f".{i}.", 1)[1] for n in block) for i, block in enumerate(groups.blocks)]
    assert inner[0] == inner[1] == inner[2]
    assert len(inner[0]) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_its_own_group_unless_tied(name: str) -> None:
    model = build(name)
    groups = layer_groups(model)
    assert groups.is_tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    parameters = dict(model.named_parameters())
    heads = {id(p) for p in model.get_output_embeddings().parameters()}
    if not groups.is_tied:
        assert {id(parameters[n]) for n in groups.head} == heads
    else:
        assert groups.head == []
    assert id(model.get_input_embeddings().weight) in {id(parameters[n]) for n in groups.embeddings}


def test_phis_head_has_its_bias_and_gpt2s_embeddings_have_positions() -> None:
    assert layer_groups(build("phi")).head == ["lm_head.weight", "lm_head.bias"]
    assert layer_groups(build("phi", tie_word_embeddings=True)).head == ["lm_head.bias"]
    assert layer_groups(build("gpt2")).embeddings == ["transformer.wte.weight", "transformer.wpe.weight"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}),
        ("qwen3", {"model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
                   "q_norm.weight", "k_norm.weight"}),
        ("gpt2", {"ln_f.weight", "ln_f.bias", "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"}),
        ("gemma2", {"model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
                    "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"}),
    ],
)  # fmt: skip
def test_norms_are_all_normalisation_parameters_and_nothing_else(name: str, expected: set[str]) -> None:
    norms = layer_groups(build(name)).norms
    assert all(any(n.endswith(e) for e in expected) for n in norms)
    assert all(any(n.endswith(e) for n in norms) for e in expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_final_group_is_what_stands_outside_the_blocks_and_is_small(name: str) -> None:
    model = build(name)
    groups = layer_groups(model)
    parameters = dict(model.named_parameters())
    assert groups.final
    assert all(parameters[n].ndim == 1 for n in groups.final)
    assert set(groups.final) <= set(groups.norms)


def test_a_norm_of_the_embeddings_belongs_to_them_and_not_to_the_end() -> None:
    groups = layer_groups(build("bloom"))
    assert [n for n in groups.embeddings if "norm" in n] == [
        "transformer.word_embeddings_layernorm.weight",
        "transformer.word_embeddings_layernorm.bias",
    ]
    assert groups.final == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
