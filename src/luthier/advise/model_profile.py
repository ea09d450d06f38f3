"""What a model is, from its config.json; where that cannot be had, from its name, and then it is said.

No weights are read. A hub model that is not on this machine is asked for its config.json alone, once and shortly.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from luthier.advise.shape import ModelShape, has_closed_form, shape_of
from luthier.advise.situation import ModelProfile
from luthier.core.errors import ModelError, Problem
from luthier.models.files import ModelFacts, find_folder, inspect_model

_ENCODERS = ("bert", "roberta", "electra", "deberta", "camembert", "xlm", "albert", "mpnet", "ernie", "esm", "nomic")
_NO_ENCODER = ("bart", "bigbird_pegasus", "blenderbot")
_BIASED = ("gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "bloom", "phi", "qwen2", "qwen2_moe", "falcon", "starcoder2")
_NOT_GATED = ("mpt", "t5", "codegen", "xglm")
_BIAS_KEYS = ("attention_bias", "mlp_bias", "use_bias", "bias", "qkv_bias")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TALKS = re.compile(r"(instruct|chat|(^|[-_.])it([-_.]|$)|sft|dpo|rlhf|zephyr|vicuna|alpaca|assistant)", re.IGNORECASE)
_EXPERT_NAME = re.compile(r"(\d+)x(\d+(?:\.\d+)?)b", re.IGNORECASE)
_ACTIVE_NAME = re.compile(r"(?:^|[-_])a(\d+(?:\.\d+)?)b", re.IGNORECASE)
_SIZE_NAME = re.compile(r"(?:^|[-_./])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
_BY_NAME = {  # models whose names say no size, in millions of parameters
    "gpt2-xl": 1558,
    "gpt2-large": 774,
    "gpt2-medium": 355,
    "distilgpt2": 82,
    "gpt2": 124,
    "phi-2": 2780,
    "xlm-roberta-large": 560,
    "xlm-roberta": 278,
    "roberta-large": 355,
    "distilroberta": 82,
    "roberta": 125,
    "deberta-v3-large": 435,
    "deberta": 184,
    "distilbert": 66,
    "bert-large": 335,
    "bert-base-chinese": 102,
    "bert": 110,
}


def profile_model(name: str) -> ModelProfile:
    """Return what is known of a model: a folder, a hub id, or starter.

    Raises:
        ModelError: there is no such folder, or neither config.json nor the name says how large it is.
    """
    facts, problems = inspect_model(name, from_scratch=True)
    if facts.folder is None and find_folder(name) is None:
        config = _from_hub(name)
        if config is None:
            return _by_name(name)
        facts = ModelFacts(None, config)
    if not facts.config:
        raise ModelError(*problems[:1])
    stored, _ = inspect_model(name) if facts.folder is not None else (facts, [])
    return _by_config(name, facts, stored.parameters)


def _by_config(name: str, facts: ModelFacts, stored: int | None) -> ModelProfile:
    config = facts.config
    shape = sizes_of(config, name)
    total = stored or shape.total_parameters
    is_mixture = _experts(config) > 1
    kind = str(config.get("model_type", "")).lower()
    return ModelProfile(
        name=name,
        config=config,
        parameters=total,
        active=min(shape.active_parameters, total) if is_mixture else total,
        known_by="config.json",
        is_encoder=_is_encoder(config),
        is_mixture=is_mixture,
        has_biases=kind in _BIASED or _is_encoder(config) or any(config.get(key) for key in _BIAS_KEYS),
        talks=facts.has_template or bool(_TALKS.search(Path(name).name)),
        has_template=facts.has_template or bool(facts.folder is None and _TALKS.search(Path(name).name)),
        context=facts.context_length,
    )


def _by_name(name: str) -> ModelProfile:
    """Return a model of usual proportions and the size that the name says.

    Raises:
        ModelError: the name says none.
    """
    short = name.lower().rpartition("/")[2]
    total, active = _size_in(short)
    if total is None:
        what = "The model is not on this machine, its config.json cannot be fetched, and its name says no size."
        remedy = "give a folder with its config.json, or a name with a size in it, such as llama-7b"
        raise ModelError(Problem(what, name, remedy))
    config = _usual_config(short, total) if active is None else _usual_mixture(total, active)
    return ModelProfile(
        name=name,
        config=config,
        parameters=total,
        active=active or total,
        known_by="name",
        is_encoder=_is_encoder(config),
        is_mixture=active is not None,
        has_biases=str(config["model_type"]) in _BIASED or _is_encoder(config),
        talks=bool(_TALKS.search(short)),
        has_template=bool(_TALKS.search(short)),
        context=512 if _is_encoder(config) else None,
    )


def _size_in(name: str) -> tuple[int | None, int | None]:
    """Return all parameters and, of a mixture, those that a token passes, as a name tells them."""
    experts = _EXPERT_NAME.search(name)
    if experts:  # attention and embeddings are shared: Mixtral 8x7B has 46.7 B, 12.9 B of them active
        count, each = int(experts[1]), float(experts[2]) * 1e9
        return int(each * (0.17 + 0.83 * count) * 0.98), int(each * 1.84)
    rest = _ACTIVE_NAME.sub("", name)
    size = _SIZE_NAME.search(rest)
    active = _ACTIVE_NAME.search(name)
    if size:
        total = int(float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6))
        return total, int(float(active[1]) * 1e9) if active else None
    known = next((millions for part, millions in _BY_NAME.items() if part in name), None)
    return (known * 1_000_000 if known else None), None


def _usual_config(name: str, total: int) -> dict[str, object]:
    """Return a config of usual proportions: a width of 128 for each block, and 12 h² numbers in a block."""
    family = "llama"
    if any(part in name for part in ("bert", "electra", "deberta")):
        family = "roberta" if "roberta" in name else "bert"
    elif "gpt2" in name:
        family = "gpt2"
    elif re.search(r"qwen1\.5|qwen2", name):
        family = "qwen2"
    elif "pythia" in name or "neox" in name:
        family = "gpt_neox"
    elif "phi-2" in name:
        family = "phi"
    hidden = max(128, round((total * 128 / 12) ** (1 / 3) / 128) * 128)
    layers = max(2, round(total / (12 * hidden**2)))
    return {
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 128),
        "intermediate_size": round(hidden * 8 / 3) if family in ("llama", "qwen2") else 4 * hidden,
        "vocab_size": 32000,
    }


def _usual_mixture(total: int, active: int) -> dict[str, object]:
    """Return the config of a mixture of so many parameters, with what tokens share as in a dense model."""
    dense = _usual_config("", active)
    hidden, layers = int(str(dense["hidden_size"])), int(str(dense["num_hidden_layers"]))
    shared = layers * 4 * hidden**2 + 2 * 32000 * hidden
    experts = 8 if total < 4 * active else 64
    used = max(1, round(experts * max(active - shared, 1) / max(total - shared, 1)))
    return {
        **dense,
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        "intermediate_size": max(64, (total - shared) // (3 * hidden * layers * experts)),
    }


def sizes_of(config: Mapping[str, object], name: str) -> ModelShape:
    """Return the planner's sizes of a config; of a family without closed forms those of a known one of its measures.

    Raises:
        ModelError: config.json lacks a size.
    """
    return shape_of(config if has_closed_form(config) else _like_a_known_one(config), name)


def _like_a_known_one(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config of a family with closed forms, as wide, deep and many-headed."""
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    hidden = _number(config, "hidden_size", "n_embd", "d_model", "dim")
    width = _number(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "hidden_dim")
    kind = str(config.get("model_type", "")).lower()
    measures: dict[str, object | None] = {
        "hidden_size": hidden,
        "num_hidden_layers": _number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "num_attention_heads": _number(config, "num_attention_heads", "n_head", "n_heads", "num_heads"),
        "num_key_value_heads": _number(config, "num_key_value_heads"),
        "intermediate_size": width or (4 * hidden if hidden else None),
        "vocab_size": _number(config, "vocab_size"),
        "max_position_embeddings": _number(config, "max_position_embeddings", "n_positions", "max_seq_len"),
        "tie_word_embeddings": config.get("tie_word_embeddings"),
    }
    known = {key: value for key, value in measures.items() if value is not None}
    if _is_encoder(config):
        return {**known, "model_type": "bert"}
    if _experts(config) > 1:
        each = _number(config, "moe_intermediate_size") or width or 0
        used = _number(config, "num_experts_per_tok", "num_experts_per_token") or 1
        experts = {"num_local_experts": _experts(config), "num_experts_per_tok": used, "intermediate_size": each}
        return {**known, **experts, "model_type": "mixtral"}
    return {**known, "model_type": "gpt_neox" if kind in _BIASED or kind in _NOT_GATED else "llama"}


def _experts(config: Mapping[str, object]) -> int:
    return _number(config, *_EXPERTS) or 0


def _number(config: Mapping[str, object], *keys: str) -> int | None:
    return next((value for key in keys if isinstance(value := config.get(key), int) and value > 0), None)


def _is_encoder(config: Mapping[str, object]) -> bool:
    """Return whether a config describes an encoder; light enough for `luthier check`."""
    kind = str(config.get("model_type", "")).lower()
    if config.get("is_decoder") or config.get("is_encoder_decoder") or kind.startswith(_NO_ENCODER):
        return False
    return any(part in kind for part in _ENCODERS)


def _from_hub(name: str) -> dict[str, object] | None:
    """Return the config.json of a hub model, or None where it cannot be had in three seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        return None
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{host}/{name}/resolve/main/config.json", timeout=3) as answer:
            config = json.loads(answer.read(2**20))
    except (OSError, ValueError, urllib.error.URLError):
        return None
    return config if isinstance(config, dict) and config.get("model_type") else None
