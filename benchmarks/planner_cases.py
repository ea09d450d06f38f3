"""Random models of several shapes, rows of known length, and the cases of the planner's benchmark."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

STARTER = Path(__file__).parents[1] / "src/luthier/starter"
TEXT = "the dog ran to a big red ball and then she said that it was very happy in the park with her friend"
_LLAMA = {"max_position_embeddings": 1024, "rms_norm_eps": 1e-5}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama-1m": (
        "llama",
        {
            **_LLAMA,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-narrow": (
        "qwen3",
        {
            **_LLAMA,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "tie_word_embeddings": True,
        },
    ),
    "llama-8m": (
        "llama",
        {
            **_LLAMA,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama-43m": (
        "llama",
        {
            **_LLAMA,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    "llama-120m": (
        "llama",
        {
            **_LLAMA,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-60m-wide": (
        "qwen3",
        {
            **_LLAMA,
            "vocab_size": 98304,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-30m": (
        "qwen2",
        {
            **_LLAMA,
            "hidden_size": 448,
            "intermediate_size": 1792,
            "num_hidden_layers": 8,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2-29m": (
        "gpt2",
        {
            "n_embd": 512,
            "n_layer": 8,
            "n_head": 8,
            "n_positions": 1024,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """One run: a model, a recipe's keys beside the ordinary ones, and rows of a length."""

    name: str
    model: str
    recipe: dict[str, object] = field(default_factory=dict)
    tokens: int = 128
    fits: bool = False


def write_model(name: str, folder: Path) -> None:
    """Write a random model with the starter's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    family, sizes = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        family, **{"vocab_size": len(tokenizer), **ids, "pad_token_id": tokenizer.pad_token_id, **sizes}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, tokens: int, count: int) -> None:
    """Write one long text that is cut into at least so many pieces of so many tokens."""
    draw, words = random.Random(tokens), TEXT.split()
    text = " ".join(draw.choice(words) for _ in range(tokens * count))
    file.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")


def cases() -> list[Case]:
    """Return the cases: those to fit the overhead on, and those that are only predicted.

    Half of the models, and half of the methods, appear among the latter alone.
    """
    rows = [
        # model, method, rows in a micro-batch, tokens of a row, checkpointing, fitted on
        ("llama-8m", "full", 4, 128, False, True),
        ("llama-8m", "lora", 8, 256, False, True),
        ("llama-8m", "lora", 2, 512, True, True),
        ("llama-8m", "full", 8, 256, True, True),
        ("llama-43m", "full", 4, 128, False, True),
        ("llama-43m", "full", 8, 128, False, True),
        ("llama-43m", "lora", 4, 128, False, True),
        ("llama-43m", "lora", 8, 256, False, True),
        ("llama-43m", "lora", 4, 512, True, True),
        ("llama-43m", "qlora", 4, 128, False, True),
        ("llama-43m", "qlora", 8, 256, True, True),
        ("gpt2-29m", "full", 4, 128, False, True),
        ("gpt2-29m", "lora", 8, 128, False, True),
        ("gpt2-29m", "full", 8, 256, True, True),
        ("llama-1m", "full", 8, 256, False, True),
        ("llama-1m", "lora", 8, 512, False, True),
        ("llama-1m", "lora", 4, 64, False, True),
        ("llama-8m", "dora", 4, 128, False, True),
        ("llama-43m", "dropout", 2, 256, False, False),
        ("llama-43m", "ia3", 4, 128, False, False),
        ("llama-43m", "prefix", 4, 128, False, False),
        ("qwen2-30m", "adalora", 4, 128, False, False),
        ("qwen2-30m", "pfeiffer", 4, 256, False, False),
        ("llama-8m", "hadamard", 8, 128, False, False),
        ("qwen3-narrow", "full", 16, 128, False, False),
        ("qwen3-narrow", "lora", 8, 256, False, False),
        ("qwen3-narrow", "lora", 8, 256, True, False),
        ("llama-8m", "full", 1, 64, False, False),
        ("llama-8m", "lora", 1, 512, False, True),
        ("llama-8m", "qlora8", 4, 256, False, False),
        ("llama-8m", "bitfit", 4, 256, False, False),
        ("llama-8m", "last2", 8, 128, False, False),
        ("llama-8m", "adapter", 4, 256, False, False),
        ("llama-43m", "full", 2, 512, True, False),
        ("llama-43m", "full", 1, 512, False, False),
        ("llama-43m", "lora", 1, 1000, False, False),
        ("llama-43m", "attention", 8, 128, False, False),
        ("llama-43m", "last2", 4, 256, False, False),
        ("llama-43m", "prompt", 4, 128, False, False),
        ("llama-43m", "adapter", 4, 128, True, False),
        ("llama-43m", "qlora8", 4, 128, True, False),
        ("gpt2-29m", "lora", 4, 256, True, False),
        ("gpt2-29m", "last2", 8, 128, False, False),
        ("gpt2-29m", "qlora", 4, 128, False, False),
        ("gpt2-29m", "bitfit", 4, 128, False, False),
        ("qwen2-30m", "full", 4, 128, False, False),
        ("qwen2-30m", "full", 4, 256, True, False),
        ("qwen2-30m", "lora", 8, 128, False, False),
        ("qwen2-30m", "qlora", 4, 256, False, False),
        ("qwen2-30m", "bitfit", 2, 256, False, False),
        ("qwen3-60m-wide", "full", 2, 128, False, False),
        ("qwen3-60m-wide", "lora", 8, 128, False, False),
        ("qwen3-60m-wide", "lora", 4, 256, True, False),
        ("qwen3-60m-wide", "qlora", 8, 128, False, False),
        ("llama-120m", "full", 1, 128, False, False),
        ("llama-120m", "lora", 2, 256, False, False),
        ("llama-120m", "lora", 4, 256, True, False),
        ("llama-120m", "qlora", 2, 256, False, False),
        ("llama-120m", "qlora8", 2, 256, True, False),
    ]
    methods: dict[str, object] = {
        "qlora8": {"kind": "qlora", "bits": 8},
        "dora": {"kind": "lora", "dora": True},
        "dropout": {"kind": "lora", "dropout": 0.1},
        "bitfit": {"kind": "bitfit", "norms": True},
        "last2": {"kind": "layers", "last": 2},
        "attention": {"kind": "lora", "targets": ["attention"], "rank": 16},
    }
    found = []
    for model, method, size, tokens, checkpointing, fitted in rows:
        name = f"{model} {method} {size}x{tokens}{' checkpointed' if checkpointing else ''}"
        keys = {
            "method": methods.get(method, method),
            "batch_size": 2 * size if tokens < 512 else size,
            "micro_batch_size": size,
            "gradient_checkpointing": checkpointing,
        }
        found.append(Case(name, model, keys, tokens, fitted))
    return found
