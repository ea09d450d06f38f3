"""Models built from their configs alone: sizes to the unit, and refusals that say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from families import FAMILIES, NAMES, build, config
from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import ModelError
from luthier.methods.base import Method, head_parameters, trainable
from luthier.models.shapes import count_parameters, is_encoder, meta_model
from luthier.objectives.classify import Classify
from luthier.objectives.sft import Sft
from luthier.run.parameters import count_trained

# As the configs on the hub have them, and the totals that their model cards (safetensors metadata) give.
REAL: list[tuple[str, PreTrainedConfig, int]] = [
    ("Llama-2-7B", LlamaConfig(hidden_size=4096, intermediate_size=11008, vocab_size=32000), 6_738_415_616),
    (
        "Llama-3-8B",
        LlamaConfig(hidden_size=4096, intermediate_size=14336, num_key_value_heads=8, vocab_size=128256),
        8_030_261_248,
    ),
    (
        "Qwen2.5-0.5B",  # tied
        Qwen2Config(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
        494_032_768,
    ),
    (
        "Qwen3-0.6B",  # tied; the file holds the shared matrix twice, which makes 751,632,384
        Qwen3Config(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
        596_049_920,
    ),
    ("Mistral-7B", MistralConfig(intermediate_size=14336, num_key_value_heads=8, vocab_size=32000), 7_241_732_096),
    ("Mixtral-8x7B", MixtralConfig(intermediate_size=14336, num_key_value_heads=8, vocab_size=32000), 46_702_792_704),
    ("GPT-2", GPT2Config(), 124_439_808),
]
BERT = BertConfig()
HYBRID: dict[str, object] = {"parts": [{"kind": "layers", "blocks": [-1]}, {"kind": "lora", "targets": ["*.0.*"]}]}
"""Its example is for models of more blocks than the tiny ones have."""
ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)


@pytest.mark.parametrize(("name", "sizes", "total"), REAL, ids=lambda part: part if isinstance(part, str) else "")
def test_a_real_model_has_as_many_parameters_as_its_card_says(name: str, sizes: PreTrainedConfig, total: int):
    assert count_parameters(meta_model(sizes)) == total


def test_an_encoder_is_built_as_a_classifier_whose_head_comes_on_top():
    bert = meta_model(BERT, classes=2)
    head = 768 * 2 + 2
    assert count_parameters(bert) - head == 109_482_240  # BertModel with its pooler
    roberta = meta_model(ROBERTA, classes=3)
    head = (768 * 768 + 768) + (768 * 3 + 3)
    # RobertaModel with the pooler has 124,645,632; the classifier has a dense layer of the same size instead.
    assert count_parameters(roberta) - head == 124_645_632 - (768 * 768 + 768)
    assert len(head_parameters(bert)) == 2
    assert len(head_parameters(roberta)) == 4


def test_encoders_are_told_from_models_that_write():
    assert is_encoder(BERT)
    assert is_encoder(ROBERTA)
    assert not is_encoder(BertConfig(is_decoder=True))
    assert not any(is_encoder(config(name)) for name in NAMES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_without_memory_has_the_parameters_of_the_built_one(name: str, tmp_path: Path):
    built = build(name)
    built.config.save_pretrained(tmp_path)
    empty = meta_model(str(tmp_path))
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in built.named_parameters()}
    assert all(p.is_meta for p in empty.parameters())
    assert count_parameters(empty) == sum(p.numel() for p in built.parameters())


def test_sizes_that_do_not_fit_together_are_told(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 30}))
    with pytest.raises(ModelError, match=r"hidden size \(30\)"):
        meta_model(str(tmp_path))


def test_an_architecture_that_writes_nothing_is_told(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="No language model can be built"):
        meta_model(str(tmp_path))


def test_numbers_packed_into_a_byte_count_one_by_one():
    class State:
        shape = (6, 10)

    module = torch.nn.Linear(4, 2)
    packed = torch.nn.Parameter(torch.zeros(30, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = State()  # type: ignore[attr-defined]
    module.register_parameter("packed", packed)
    assert count_parameters(module) == 4 * 2 + 2 + 60
    assert count_parameters(module, only_trained=True) == 10


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral", "gpt-neox", "phi", "gemma2", "cohere"])
@pytest.mark.parametrize("kind", kinds("method"))
def test_a_method_applied_without_memory_trains_and_adds_what_the_built_one_does(kind: str, family: str):
    table = component_class("method", kind)
    assert issubclass(table, Method)
    for settings in ({}, HYBRID if kind == "hybrid" else table.example):
        method = table.model_validate({"kind": kind, **settings})
        facts = StageFacts(method=method, objective=Sft(), model_config=config(family).to_dict())
        if not [p for p in method.problems(facts) if p.severity == "error"]:
            break
    else:
        pytest.skip(f"{kind} refuses {family}")
    built, empty = build(family), meta_model(config(family))
    counted = method.count(empty)
    method.prepare(built)
    with torch.device("meta"):
        method.prepare(empty)
    assert counted == count_parameters(empty, only_trained=True)
    assert counted == sum(p.numel() for p in trainable(built).values())
    assert count_parameters(empty) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", kinds("method"))
def test_a_classifier_without_memory_trains_and_adds_what_the_built_one_does(kind: str, family: str):
    table = component_class("method", kind)
    assert issubclass(table, Method)
    method = table.model_validate({"kind": kind, **(HYBRID if kind == "hybrid" else table.example)})
    facts = StageFacts(method=method, objective=Classify(), model_config=config(family).to_dict())
    if [p for p in method.problems(facts) if p.severity == "error"]:
        pytest.skip(f"{kind} refuses {family}")
    sizes = config(family)
    sizes.num_labels = 3
    built = AutoModelForSequenceClassification.from_config(sizes, dtype=torch.float32)
    empty = meta_model(config(family), classes=3)
    counted = count_trained(method, empty)
    method.prepare(built)
    with torch.device("meta"):
        method.prepare(empty)
    assert counted == count_parameters(empty, only_trained=True)
    assert counted == sum(p.numel() for p in trainable(built).values())
    assert count_parameters(empty) == sum(p.numel() for p in built.parameters())
