"""Sizes from config.json alone, against published totals and against the models that transformers builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig

from luthier.advise.reach import _METHODS, reach_of
from luthier.advise.shape import _FAMILIES, has_closed_form, read_shape, shape_of
from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import ModelError, RecipeError
from luthier.methods.base import Method
from luthier.models.heads import head_parameters
from luthier.models.shapes import count_parameters, is_encoder, meta_model
from luthier.objectives.classify import Classify
from luthier.objectives.sft import Sft
from models.test_shapes import BERT, REAL, ROBERTA

SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "pad_token_id": 0,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "num_experts": 6,
}


def _small(family: str) -> PreTrainedConfig:
    config = AutoConfig.for_model(family)
    for key, value in SMALL.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


@pytest.mark.parametrize(("name", "sizes", "total"), REAL, ids=lambda part: part if isinstance(part, str) else "")
def test_a_published_model_has_its_published_total(name: str, sizes: PreTrainedConfig, total: int):
    assert shape_of(sizes.to_dict()).total_parameters == total


def test_encoders_have_their_published_totals():
    assert shape_of(BERT.to_dict()).total_parameters == 109_482_240
    # RobertaModel with a pooler has 124,645,632; a classifier's is in its head.
    assert shape_of(ROBERTA.to_dict()).total_parameters == 124_645_632 - (768 * 768 + 768)


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_closed_form_counts_what_transformers_builds(family: str):
    config = _small(family)
    shape = shape_of(config.to_dict())
    built = meta_model(config, 2 if shape.is_encoder else None)
    assert shape.is_encoder == is_encoder(config)
    head = sum(dict(built.named_parameters())[name].numel() for name in head_parameters(built))
    assert shape.total_parameters == count_parameters(built) - head


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral", "gemma2", "bert"])
@pytest.mark.parametrize("kind", [k for k in kinds("method") if k in _METHODS and k not in ("moe", "ulmfit", "hybrid")])
def test_a_method_trains_as_many_parameters_as_its_closed_form_says(kind: str, family: str):
    config = _small(family)
    shape = shape_of(config.to_dict())
    table = component_class("method", kind)
    assert issubclass(table, Method)
    goal = Classify() if shape.is_encoder else Sft()
    for settings in ({}, table.example):
        method = table.model_validate({"kind": kind, **settings})
        facts = StageFacts(method=method, objective=goal, model_config=config.to_dict())
        if not [p for p in method.problems(facts) if p.severity == "error"]:
            break
    else:
        pytest.skip(f"{kind} refuses {family}")
    built = meta_model(config, 2 if shape.is_encoder else None)
    counted = method.count(built)
    if kind in ("dense_head", "feature_extraction"):
        assert reach_of(kind, method.model_dump(), shape).first_block == shape.layers
        return
    assert reach_of(kind, method.model_dump(), shape).parameters == counted


def test_an_unknown_family_is_told_with_those_that_are_known(tmp_path: Path):
    config = {"model_type": "mamba", "hidden_size": 8}
    assert not has_closed_form(config)
    with pytest.raises(ModelError, match="closed forms are there for: bert, gemma"):
        shape_of(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ModelError, match="lacks num_attention_heads"):
        read_shape(tmp_path)
    with pytest.raises(RecipeError, match="no closed form for the method mine"):
        reach_of("mine", {}, shape_of(BERT.to_dict()))
