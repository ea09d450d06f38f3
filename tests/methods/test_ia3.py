"""(IA)³: its formula, its size, its targets, PEFT's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from families import NAMES, build, config, enlarge
from luthier.core.errors import ModelError
from luthier.methods.base import trainable
from luthier.methods.ia3 import Ia3
from luthier.models.targets import linear_roles

TOKENS = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(2))


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def _scatter(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def test_keys_values_and_feed_forward_units_are_multiplied_as_in_the_paper() -> None:
    model, plain = build("llama"), build("llama")
    Ia3().apply(model)
    _scatter(model)
    vectors = {n: p.flatten() for n, p in trainable(model).items()}

    def vector(index: int, place: str) -> Tensor:
        return vectors[f"model.layers.{index}.{place}.ia3_l.default"]

    for index, block in enumerate(plain.model.layers):
        for name in ("k_proj", "v_proj"):
            scaled = vector(index, f"self_attn.{name}")
            projection = block.self_attn.get_submodule(name)
            projection.forward = lambda x, w=projection.weight, s=scaled: s * (x @ w.T)

        inner = vector(index, "mlp.down_proj")

        def feed_forward(x: Tensor, m: nn.Module = block.mlp, s: Tensor = inner) -> Tensor:
            return (s * (silu(x @ m.gate_proj.weight.T) * (x @ m.up_proj.weight.T))) @ m.down_proj.weight.T

        block.mlp.forward = feed_forward
    assert len(vectors) == 6
    torch.testing.assert_close(_logits(model), _logits(plain), rtol=1e-5, atol=1e-5)
    assert (_logits(model) - _logits(build("llama"))).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_every_family_starts_at_the_base_model_counts_and_merges(name: str) -> None:
    model = build(name)
    names = [n for n, _ in model.named_parameters()]
    before, counted = _logits(model), Ia3().count(model)
    Ia3().apply(model)
    assert torch.equal(_logits(model), before)
    assert sum(p.numel() for p in trainable(model).values()) == counted > 0
    _scatter(model)
    trained = _logits(model)
    assert (trained - before).abs().max() > 1e-2
    merged = Ia3().merge(model)
    torch.testing.assert_close(_logits(merged), trained, rtol=1e-4, atol=1e-4)
    assert [n for n, _ in merged.named_parameters()] == names


@pytest.mark.parametrize("name", NAMES)
def test_only_the_way_down_is_scaled_at_its_input(name: str) -> None:
    model = build(name)
    roles = linear_roles(model)
    Ia3().apply(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, IA3Layer)}
    assert {n for n, m in layers.items() if m.is_feedforward} == {n for n, r in roles.items() if r == "down"}
    assert {n for n, m in layers.items() if not m.is_feedforward} == {
        n for n, r in roles.items() if r in ("k", "v", "qkv")
    }


@pytest.mark.parametrize(("name", "model_type"), [("llama", "llama"), ("gpt2", "gpt2"), ("gpt-neox", "gpt_neox")])
def test_the_targets_left_out_are_those_of_pefts_own_table(name: str, model_type: str, tmp_path: Path) -> None:
    model = build(name)
    Ia3().apply(model)
    Ia3().save(model, tmp_path, base="base")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "IA3"
    assert set(written["target_modules"]) == set(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type])
    expected = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
    assert set(written["feedforward_modules"]) == set(expected)


def test_targets_are_chosen_by_role_name_and_pattern() -> None:
    for targets, expected in (
        ("v", {"v_proj"}),
        (("q", "gate"), {"q_proj", "gate_proj"}),
        ("model.layers.1.*.down_proj", {"down_proj"}),
    ):
        model = build("llama")
        counted = Ia3(targets=targets).count(model)
        Ia3(targets=targets).apply(model)
        assert {n.split(".")[-3] for n in trainable(model)} == expected
        assert sum(p.numel() for p in trainable(model).values()) == counted
        if "layers.1" in targets:
            assert all(".layers.1." in n for n in trainable(model))


def test_fused_experts_are_left_alone_and_said_to_be_missing_when_asked_for() -> None:
    model = build("mixtral")
    Ia3().apply(model)
    assert {n.split(".")[-3] for n in trainable(model)} == {"k_proj", "v_proj"}
    with pytest.raises(ModelError, match='"down" matches no linear module'):
        Ia3(targets="down").apply(build("mixtral"))


def test_the_counts_published_for_mt0_and_t0_come_out_exactly() -> None:
    with torch.device("meta"):
        # PEFT's guide to IA3 on bigscience/mt0-large: "trainable params: 282,624", targets k, v, wi_1.
        sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
        mt0 = MT5ForConditionalGeneration(MT5Config(**sizes))
        # T-Few (table 1): (IA)³ trains 0.01 % of T0-11B; k, v and the inner units, in T5's names.
        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
        t0 = T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    assert Ia3(targets=("*.k", "*.v", "*.wi_1")).count(mt0) == 282_624
    counted = Ia3(targets=("*.k", "*.v", "*.wi_1")).count(t0)
    assert counted == 24 * (2 * 4096 + 10240) + 24 * (4 * 4096 + 10240)
    assert round(100 * counted / sum(p.numel() for p in t0.parameters()), 2) == 0.01


def test_the_count_of_a_7b_llama_is_the_papers_sum() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # the defaults are those of Llama 7B
    assert Ia3().count(model) == 32 * (4096 + 4096 + 11008) == 614_400


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_peft_opens_a_classifiers_folder_with_its_head(name: str, tmp_path: Path) -> None:
    def classifier() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        chosen = BertConfig(**sizes, vocab_size=64) if name == "bert" else config(name)
        chosen.num_labels = 3
        return enlarge(AutoModelForSequenceClassification.from_config(chosen))

    model = classifier()
    Ia3().prepare(model)
    _scatter(model)
    Ia3().save(model, tmp_path, base="base")
    assert any("ia3_l" not in n for n in load_file(tmp_path / "adapter_model.safetensors"))
    opened = PeftModel.from_pretrained(classifier(), str(tmp_path))
    torch.testing.assert_close(_logits(opened), _logits(model), rtol=0, atol=1e-5)
