"""Tiny seeded models of every family that Luthier promises to train.

Default initialisation (std 0.02) makes attention next to nothing, so that sequences could see each other and no test
would notice. Here every tensor is redrawn large enough for each part of the model to shape the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from luthier.core.batch import Example

VOCABULARY = 64
CONTEXT = 96
WINDOW = 5
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    **_IDS,
}
_GPT2: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    **_IDS,
}


@dataclass(frozen=True)
class Family:
    """A tiny model's config, and what must be true of it.

    Attributes:
        config: the config class.
        sizes: its arguments.
        packs: the loader has to find that sequences can be packed.
        has_biases: BitFit has something to train.
    """

    config: Callable[..., PreTrainedConfig]
    sizes: dict[str, object]
    packs: bool = True
    has_biases: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(LlamaConfig, {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "llama-tied": Family(LlamaConfig, {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen2": Family(Qwen2Config, {**_LLAMA_LIKE, "tie_word_embeddings": True}, has_biases=True),
    "qwen3": Family(Qwen3Config, {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "mistral": Family(MistralConfig, {**_LLAMA_LIKE, "sliding_window": WINDOW, "tie_word_embeddings": False}),
    "gpt2": Family(GPT2Config, {**_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, has_biases=True),
    "gpt2-dropout": Family(GPT2Config, _GPT2, has_biases=True),
    "gemma2": Family(
        Gemma2Config,
        {
            **_LLAMA_LIKE,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
            "sliding_window": WINDOW,
        },
    ),
    "gpt-neox": Family(
        GPTNeoXConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            **_IDS,
        },
        has_biases=True,
    ),
    "cohere": Family(CohereConfig, {**_LLAMA_LIKE, "logit_scale": 0.25}),
    "granite": Family(
        GraniteConfig,
        {
            **_LLAMA_LIKE,
            "logits_scaling": 4.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.7,
            "embedding_multiplier": 2.0,
        },
    ),
    "phi": Family(
        PhiConfig,
        {k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"} | {"tie_word_embeddings": False},
        has_biases=True,
    ),
    "mixtral": Family(
        MixtralConfig,
        {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "qwen2-moe": Family(  # its window is in the mask alone, which packed attention never sees
        Qwen2MoeConfig,
        {
            **{k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "use_sliding_window": True,
            "sliding_window": 3 * WINDOW,  # longer than what a loader would try
            "max_window_layers": 2,
        },
        packs=False,
        has_biases=True,
    ),
    "bloom": Family(
        BloomConfig,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_IDS},
        packs=False,
        has_biases=True,
    ),
    "gpt-oss": Family(
        GptOssConfig,
        {
            **_LLAMA_LIKE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
        },
        packs=False,
        has_biases=True,
    ),
}
NAMES = [name for name in FAMILIES if name != "gpt2-dropout"]
_BERT: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
}
ENCODERS: dict[str, Family] = {
    "bert": Family(
        BertConfig,
        {**_BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        packs=False,
        has_biases=True,
    ),
    "bert-dropout": Family(BertConfig, _BERT, packs=False, has_biases=True),
}
"""Models that attend to both sides: they classify, and write nothing."""
CLASSES = ("bad", "fair", "good")


def config(name: str, **changes: object) -> PreTrainedConfig:
    """Return the config of a family, with some sizes changed."""
    family = (FAMILIES | ENCODERS)[name]
    return family.config(**{**family.sizes, **changes})


def build(name: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a family's model with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    kind = AutoModelForPreTraining if name in ENCODERS else AutoModelForCausalLM
    model = kind.from_config(config(name, **changes), dtype=torch.float32)
    return enlarge(model, seed)


def build_classifier(name: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a family's model with a head for `CLASSES`."""
    torch.manual_seed(seed)
    names = dict(enumerate(CLASSES))
    settings = config(name, **{"id2label": names, "label2id": {n: i for i, n in names.items()}, **changes})
    return enlarge(AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32), seed)


def enlarge(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Redraw every tensor of a model from a seed: matrices with a gain near one, vectors with some scatter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim < 2:
                parameter.add_(0.2 * noise)  # norms stay around one (or around zero, where the model adds the one)
            else:
                parameter.copy_(noise * 1.3 * parameter.shape[-1] ** -0.5)
    return model.eval()


def tokenizer(size: int = VOCABULARY - 4) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of `size` entries (<pad>, <s>, </s>, w3, w4 …); models have a few rows to spare."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, size))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def bert_tokenizer(size: int = VOCABULARY - 4) -> PreTrainedTokenizerFast:
    """Return the same words with BERT's way of writing: [CLS] text [SEP], and [CLS] text [SEP] pair [SEP]."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(4, size))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **tokens)


def write(name: str, folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write a family's model and tokenizer to a folder, as the hub would hold them."""
    build(name, seed, **changes).save_pretrained(folder)
    (bert_tokenizer() if name in ENCODERS else tokenizer()).save_pretrained(folder)
    return folder


def examples(lengths: list[int], seed: int = 0, share: float = 0.7) -> list[Example]:
    """Return random sequences whose loss weights are 0, 1 or a fraction, the way a mixed data set's are."""
    draw = np.random.default_rng(seed)
    made = []
    for index, length in enumerate(lengths):
        weights = np.where(draw.random(length) < share, draw.choice([1.0, 0.5, 0.25], length), 0.0)
        weights[-1] = 1.0  # every example trains something
        tokens = draw.integers(3, VOCABULARY, length).astype(np.int32)
        made.append(Example(tokens, weights.astype(np.float32), source=f"data.jsonl:{index + 1}"))
    return made


def labelled_examples(lengths: list[int], seed: int = 0) -> list[Example]:
    """Return random sequences with a class each."""
    draw = np.random.default_rng(seed)
    return [
        Example(
            draw.integers(3, VOCABULARY, length).astype(np.int32),
            np.zeros(length, dtype=np.float32),
            source=f"data.jsonl:{index + 1}",
            extras={"label": float(draw.integers(len(CLASSES)))},
        )
        for index, length in enumerate(lengths)
    ]
