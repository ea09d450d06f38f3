"""The parameters of the LoRA family that papers print come out exactly from the published sizes of the models."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from luthier.methods.adalora import AdaLora
from luthier.methods.lora import Lora
from luthier.methods.lora_plus import LoraPlus
from luthier.methods.qlora import QLora

# Sizes from the models' config.json on the hub.
LLAMA_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
ROBERTA_BASE = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
ROBERTA_LARGE = RobertaConfig(
    vocab_size=50265,
    max_position_embeddings=514,
    type_vocab_size=1,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
)
DEBERTA_XXL = DebertaV2Config(hidden_size=1536, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=24)
DEBERTA_V3_BASE = DebertaV2Config(
    vocab_size=128100, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)


def _meta(config: PreTrainedConfig) -> PreTrainedModel:
    kind = AutoModelForCausalLM if isinstance(config, LlamaConfig | GPT2Config | MixtralConfig) else None
    with torch.device("meta"):
        return (kind or AutoModelForSequenceClassification).from_config(config)


@pytest.mark.parametrize(
    ("config", "method", "expected", "printed"),
    [
        # Hu et al. 2021, table 2 (rank 8 on q and v; 0.3 M and 0.8 M) and DeBERTa XXL (rank 16; 4.7 M)
        (ROBERTA_BASE, Lora(rank=8, targets=("q", "v")), 294_912, "0.3 M"),
        (ROBERTA_LARGE, Lora(rank=8, targets=("q", "v")), 786_432, "0.8 M"),
        (DEBERTA_XXL, Lora(rank=16, targets=("q", "v")), 4_718_592, "4.7 M"),
        # Liu et al. 2024 (DoRA), table 1 and appendix: LLaMA-7B, rank 32 on q, k, v, up, down
        (LLAMA_7B, Lora(rank=32, targets=("q", "k", "v", "up", "down")), 56_098_816, "0.83 %"),
        (LLAMA_7B, Lora(rank=32, targets=("q", "k", "v", "up", "down"), dora=True), 56_975_360, "0.84 %"),
        # Zhang et al. 2023 (AdaLoRA), table 1: LoRA on all matrices of DeBERTaV3-base, rank 2 (0.33 M) and 8 (1.33 M)
        (DEBERTA_V3_BASE, Lora(rank=2, targets=("attention", "mlp")), 331_776, "0.33 M"),
        (DEBERTA_V3_BASE, Lora(rank=8, targets=("attention", "mlp")), 1_327_104, "1.33 M"),
        # The same matrices in AdaLoRA's form before pruning: one singular value more for each rank and matrix.
        (DEBERTA_V3_BASE, AdaLora(initial_rank=12, targets=("attention", "mlp")), 12 * (13_824 + 6) * 12, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_published_counts_come_out(
    config: PreTrainedConfig, method: Lora | AdaLora, expected: int, printed: str
) -> None:
    assert method.count(_meta(config)) == expected
    if printed.endswith("%"):
        share = 100 * expected / (6_738_415_616 + expected)
        assert f"{share:.2f} %" == printed
    elif printed:
        assert f"{expected / 1e6:.{len(printed.split('.')[1]) - 2}f} M" == printed


def test_gpt_3_comes_out_layer_by_layer() -> None:
    # Hu et al. 2021, table 4: q and v of 96 layers of width 12288; 4.7 M at rank 1 and 37.7 M at rank 8.
    layer = _meta(LlamaConfig(hidden_size=12288, intermediate_size=49152, num_hidden_layers=1, num_attention_heads=96))
    counts = [96 * Lora(rank=rank, targets=("q", "v")).count(layer) for rank in (1, 8)]
    assert counts == [4_718_592, 37_748_736]


def test_the_experts_of_mixtral_are_counted_one_by_one() -> None:
    # Mixtral 8x7B: 32 layers, 8 experts of three 4096 × 14336 matrices; gate and up are one tensor of 28672 rows.
    config = MixtralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
    )
    model = _meta(config)
    attention = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert Lora(rank=16, targets="attention").count(model) == attention == 13_631_488
    experts = 32 * 8 * 16 * ((4096 + 28672) + (14336 + 4096))
    assert Lora(rank=16, targets=(), target_parameters=("experts",)).count(model) == experts


def test_the_kin_of_lora_count_like_lora() -> None:
    model = _meta(LLAMA_7B)
    counts = {kind.model_fields["kind"].default: kind(rank=16).count(model) for kind in (Lora, LoraPlus, QLora)}
    assert set(counts.values()) == {39_976_960}  # 0.6 % of 7 B: rank 16 on every linear layer
