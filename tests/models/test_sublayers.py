"""Attention and feed-forward of each block, and the place before the residual addition, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MambaConfig,
    MambaForCausalLM,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from families import NAMES, build, enlarge
from luthier.core.errors import ModelError
from luthier.models.sublayers import Sublayer, block_sublayers, chosen_blocks, missing_blocks, norms_of
from luthier.models.targets import match_linear

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_MODERN = {k: v for k, v in _SIZES.items() if "dropout" not in k} | _IDS
_DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "dropout": 0.0}
ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_SIZES),
    "roberta": RobertaConfig(**_SIZES),
    "electra": ElectraConfig(**_SIZES, embedding_size=32),
    "distilbert": DistilBertConfig(**_DISTILBERT, attention_dropout=0.0, seq_classif_dropout=0.0),
    "modernbert": ModernBertConfig(**_MODERN),
}
TOKENS = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(3))
EVERY = [*NAMES, *ENCODERS]


def make(name: str) -> PreTrainedModel:
    """Return a tiny language model, or a tiny classifier where the family is an encoder."""
    if name not in ENCODERS:
        return build(name)
    torch.manual_seed(0)
    return enlarge(AutoModelForSequenceClassification.from_config(ENCODERS[name], attn_implementation="eager"))


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", EVERY)
def test_every_block_has_its_two_sublayers(name: str) -> None:
    model = make(name)
    blocks = block_sublayers(model)
    assert len(blocks) == 2
    assert [b.module for b in blocks] == [model.get_submodule(b.name) for b in blocks]
    inside = {id(m) for b in blocks for m in b.module.modules()}
    ends = [id(s.end) for b in blocks for s in (b.attention, b.feed_forward)]
    assert len(set(ends)) == 4
    assert set(ends) <= inside


@pytest.mark.parametrize("name", EVERY)
def test_attention_ends_with_its_last_matrix_and_the_norm_after_it_is_a_norm(name: str) -> None:
    model = make(name)
    for block in block_sublayers(model):
        assert block.attention.projection in match_linear(model, "o")
        assert block.attention.projection.startswith(block.name)
        assert "norm" in type(model.get_submodule(block.norm)).__name__.lower()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("which", ["attention", "feed_forward"])
def test_all_that_a_sublayer_computes_leaves_it_by_its_end(name: str, which: str) -> None:
    model = make(name)

    def zero(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return output * 0 if isinstance(output, Tensor) else (output[0] * 0, *output[1:])

    block = block_sublayers(model)[1]
    sublayer: Sublayer = getattr(block, which)
    sublayer.end.register_forward_hook(zero)
    matrix = model.get_submodule(sublayer.projection) if sublayer.projection else sublayer.end
    before = _logits(model)
    with torch.no_grad():
        for parameter in matrix.parameters():
            parameter.add_(1.0)  # nothing that the sublayer computes may still arrive
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("name", EVERY)
def test_norms_of_some_blocks_are_theirs_and_the_final_one(name: str) -> None:
    model = make(name)
    blocks = block_sublayers(model)
    upper = norms_of(model, [1])
    assert any(n.startswith(f"{blocks[1].name}.") for n in upper)
    assert not any(n.startswith((f"{blocks[0].name}.", "head.", "classifier.")) for n in upper)
    assert not any("embed" in n for n in norms_of(model, [0, 1]))
    assert set(upper) < set(norms_of(model, [0, 1]))


def test_a_choice_of_blocks_names_them_from_either_end() -> None:
    assert chosen_blocks(5, (), 0) == [0, 1, 2, 3, 4]
    assert chosen_blocks(5, (), 2) == [2, 3, 4]
    assert chosen_blocks(5, (-1, 0, 4), 0) == [0, 4]
    assert missing_blocks(5, (-5, 4), 4) == []
    with pytest.raises(ModelError, match="no block 5"):
        chosen_blocks(5, (5,), 0)
    with pytest.raises(ModelError, match="none of 5 blocks is left"):
        chosen_blocks(5, (), 5)


def test_an_architecture_without_such_blocks_is_refused_with_what_was_found() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4))
    with pytest.raises(ModelError, match="mixer"):
        block_sublayers(model)
