"""What a method is set to in a situation: the fields that a recipe should say, and no others."""

from __future__ import annotations

from luthier.advise.situation import SOME, Situation

_WIDE_ROWS = 20_000


def method_settings(s: Situation, kind: str) -> dict[str, object]:
    """Return the fields of a method's long form that differ from its defaults in this situation."""
    make = {
        "lora": _low_rank,
        "lora_plus": _low_rank,
        "qlora": _low_rank,
        "layers": _layers,
        "moe": _moe,
        "prefix": _virtual,
        "p_tuning": _virtual,
        "prompt": _virtual,
        "feature_extraction": _features,
        "dense_head": _features,
        "hybrid": _hybrid,
    }.get(kind)
    return make(s) if make is not None else {}


def rank_for(s: Situation) -> int:
    """Return the rank of a low-rank update: more rows, or more that is new, need more room."""
    is_corpus = s.main is not None and s.main.form == "text"
    if is_corpus or (s.rows > _WIDE_ROWS and (s.wishes.quality == "best" or s.wants("tasks", "domains", "languages"))):
        return 64
    if s.rows > _WIDE_ROWS or s.wants("domain", "languages"):
        return 32
    return 8 if s.rows <= SOME else 16


def depth(s: Situation) -> int:
    """Return how many blocks the model has, as far as its config says."""
    known = (s.model.config.get(key) for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    return next((value for value in known if isinstance(value, int)), 12)


def _low_rank(s: Situation) -> dict[str, object]:
    rank = rank_for(s)
    settings: dict[str, object] = {} if rank == 8 else {"rank": rank, "alpha": 2 * rank}
    if s.model.is_mixture:  # fused experts are no linear modules, and hold most of the model
        settings["target_parameters"] = ["experts"]
    return settings


def _layers(s: Situation) -> dict[str, object]:
    return {"last": max(1, depth(s) // 4)}


def _moe(s: Situation) -> dict[str, object]:
    return {"train": "experts", "update": "lora"} if s.model.is_mixture else {"upcycle": {"experts": 4, "top_k": 2}}


def _virtual(s: Situation) -> dict[str, object]:
    room = (s.model.context or 2048) // 8
    return {"tokens": max(4, min(20, room))} if room < 20 else {}


def _features(_: Situation) -> dict[str, object]:
    return {"pooling": "mean"}


def _hybrid(s: Situation) -> dict[str, object]:
    last = depth(s) - 1
    parts = [{"kind": "layers", "blocks": [last]}, {"kind": "lora", "exclude": [f"*.{last}.*"]}]
    return {"parts": parts}
