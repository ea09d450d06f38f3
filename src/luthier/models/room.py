"""Whether a model has room for virtual tokens, as far as its config.json says it. Known before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.core.errors import Problem

NAME = "virtual_tokens"
"""The child of the backbone that holds them."""
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
_BY_POSITION = {"full_attention", "sliding_attention"}
"""Kinds of layers in which every token attends by key and place."""
BY_CACHE = ("bloom",)
"""Families with an attention of their own, which is given a prefix as if it had been computed before."""


def room_problems(size: int, config: Mapping[str, object]) -> list[Problem]:
    """Return what is wrong with so many virtual tokens in a model with this config.json."""
    lengths = [length for k in _CONTEXT_KEYS if isinstance(length := config.get(k), int)]
    problem = no_room(size, lengths[0] if lengths else None)
    return [] if problem is None else [problem]


def without_prefixes(config: Mapping[str, object]) -> Problem | None:
    """Return why a model can have no keys and values before those of its tokens, as far as its config says it."""
    kinds = config.get("layer_types")
    others = sorted(set(kinds) - _BY_POSITION) if isinstance(kinds, Sequence) else []
    if others:
        return unseen(f"it has layers of the kind {others[0]}")
    if config.get("model_type") == "gpt_oss":
        return unseen("its attention has sinks")
    return None


def cache_problems(config: Mapping[str, object], gradient_checkpointing: bool) -> list[Problem]:
    """Return what forbids a prefix in a family that takes it by its cache."""
    if config.get("model_type") in BY_CACHE and gradient_checkpointing:
        return [not_checkpointed(str(config["model_type"]))]
    return []


def not_checkpointed(family: str) -> Problem:
    """Say that a family would lose its prefix."""
    return Problem(
        f"Models of the family {family} get a prefix by their cache, which gradient checkpointing takes away.",
        where="gradient_checkpointing",
        remedy="leave gradient_checkpointing out, or use a soft prompt (prompt or p_tuning)",
    )


def no_room(size: int, context: int | None) -> Problem | None:
    """Return what is wrong with so many virtual tokens in so long a context, if anything is."""
    if context is None or size < context:
        return None
    return Problem(
        f"{size} virtual tokens leave no room in a context of {context} positions.",
        where="method.tokens",
        remedy=f"choose fewer than {context}; 5 to 100 are usual",
    )


def unseen(reason: str) -> Problem:
    """Say that a model can have no keys and values before those of its tokens."""
    return Problem(
        f"This architecture cannot be given trained keys and values ({reason}).",
        where="method",
        remedy="use a soft prompt (prompt or p_tuning), or LoRA",
    )
