"""Modules by role: the same word means the same part in every family, and a word that means nothing is an error."""

from __future__ import annotations

import pytest
from torch import nn

from families import NAMES, build
from luthier.core.errors import ModelError
from luthier.models.targets import is_linear, linear_roles, match_linear, match_parameters

ATTENTION = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gpt2": {"attn.c_attn", "attn.c_proj"},
    "gpt-neox": {"attention.query_key_value", "attention.dense"},
    "phi": {"q_proj", "k_proj", "v_proj", "self_attn.dense"},
    "bloom": {"self_attention.query_key_value", "self_attention.dense"},
}
FEED_FORWARD = {
    "llama": {"gate_proj", "up_proj", "down_proj"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
    "gpt-neox": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "phi": {"mlp.fc1", "mlp.fc2"},
    "bloom": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
}


def _ends(names: list[str], endings: set[str]) -> bool:
    """Whether these are exactly the modules of two blocks with these endings."""
    return len(names) == 2 * len(endings) and all(sum(n.endswith("." + e) for n in names) == 2 for e in endings)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_and_mlp_mean_the_same_parts_in_every_naming(name: str) -> None:
    model = build(name)
    assert _ends(match_linear(model, "attention"), ATTENTION[name])
    assert _ends(match_linear(model, "mlp"), FEED_FORWARD[name])
    both = {*match_linear(model, "attention"), *match_linear(model, "mlp")}
    assert set(match_linear(model, "all-linear")) == both


@pytest.mark.parametrize("name", NAMES)
def test_all_linear_is_every_matrix_but_the_head_in_model_order(name: str) -> None:
    model = build(name)
    names = match_linear(model, "all-linear")
    head = model.get_output_embeddings()
    assert names == [n for n, m in model.named_modules() if is_linear(m) and m is not head]
    assert len(names) == len(set(names)) > 0
    assert all(role != "other" for role in linear_roles(model).values()) or name == "qwen2-moe"


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "bloom"])
def test_q_k_and_v_mean_the_fused_projection_where_they_are_one_matrix(name: str) -> None:
    model = build(name)
    assert (
        match_linear(model, "q") == match_linear(model, "k") == match_linear(model, "v") == match_linear(model, "qkv")
    )
    assert len(match_linear(model, "q")) == 2


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("q", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ("q_proj", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ("self_attn.q_proj", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ("model.layers.1.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
        ("model.layers.0.*.[kv]_proj", ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"]),
        (("o", "model.layers.0.mlp.down_proj", "o_proj"),
         ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_target_is_a_role_a_name_or_a_pattern(target: str | tuple[str, ...], expected: list[str]) -> None:
    assert match_linear(build("llama"), target) == expected


@pytest.mark.parametrize("target", ["q_prj", "query_key_value", "norm", "embed_tokens", "lm_head", "*.nothing", ""])
def test_a_target_that_matches_nothing_lists_what_exists(target: str) -> None:
    with pytest.raises(ModelError) as caught:
        match_linear(build("llama"), target)
    message = str(caught.value)
    assert f'"{target}" matches no linear module' in message
    assert "method.targets" in message
    for word in ("attention", "mlp", "all-linear", "gate", "q_proj", "down_proj"):
        assert word in message


def test_a_near_miss_is_answered_with_its_neighbour_and_all_misses_come_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        match_linear(build("llama"), ("q_prj", "q", "atention"))
    assert 'Did you mean "q_proj"?' in str(caught.value)
    assert 'Did you mean "attention"?' in str(caught.value)
    assert len(caught.value.problems) == 2


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(ModelError, match=r"method\.targets"):
        match_linear(build("llama"), ())


def test_fused_experts_are_no_linear_modules_and_asking_for_them_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"attention"):
        match_linear(build("mixtral"), "mlp")


def test_a_transposed_matrix_counts_as_linear_and_an_embedding_does_not() -> None:
    from transformers.pytorch_utils import Conv1D

    assert is_linear(nn.Linear(2, 3))
    assert is_linear(Conv1D(2, 3))
    assert not is_linear(nn.Embedding(2, 3))


def test_patterns_of_parameters_take_names_stars_and_whole_modules() -> None:
    model = build("llama")
    assert match_parameters(model, ["*.layers.1.*norm.weight"], "x") == [
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    ]
    assert match_parameters(model, ["model.layers.0.self_attn"], "x") == [
        f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"
    ]
    assert match_parameters(model, ["model.norm.weight", "model.norm"], "x") == ["model.norm.weight"]
    assert match_parameters(model, [], "x") == []


def test_a_pattern_that_matches_nothing_shows_what_names_look_like() -> None:
    with pytest.raises(ModelError) as caught:
        match_parameters(build("llama"), ["model.layer.0", "model.norm", "*.bias"], "method.patterns")
    assert len(caught.value.problems) == 2
    assert "model.embed_tokens.weight" in str(caught.value)
    assert "method.patterns" in str(caught.value)


def test_a_name_that_begins_like_a_module_is_not_taken_for_it() -> None:
    model = build("llama", num_hidden_layers=12)
    names = match_parameters(model, ["model.layers.1"], "x")
    assert names
    assert all(n.startswith("model.layers.1.") for n in names)
