"""The numbers that reasons name, as people read them."""

from __future__ import annotations

from luthier.advise.situation import GIB, Situation

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k"))
_EXPERTS = 4


def facts_of(s: Situation, method: str) -> dict[str, str]:
    """Return the numbers that a rule's reason may name for a method in a situation."""
    need, lora, full, ia3 = (s.needs[kind] for kind in (method, "lora", "full", "ia3"))
    variants, main = s.wishes.variants, s.main
    return {
        "rows": f"{s.rows:,}",
        "tokens": count(s.corpus_tokens or sum(d.tokens for d in s.data)),
        "duplicates": f"{100 * main.duplicates:.0f} %" if main else "0 %",
        "parameters": count(s.model.parameters),
        "active": count(s.model.active),
        "family": str(s.model.config.get("model_type", "?")),
        "context": f"{s.model.context or '?'}",
        "upcycled": count(s.model.parameters * 0.35 + s.model.parameters * 0.65 * _EXPERTS),
        "need": size(need.peak_bytes),
        "sharded": size(need.sharded_bytes),
        "use": f"{100 * s.use(method):.0f} %",
        "device": size(s.machine.device_bytes),
        "devices": str(s.machine.devices),
        "room": size(s.room),
        "lora_need": size(lora.peak_bytes),
        "qlora_need": size(s.needs["qlora"].peak_bytes),
        "full_need": size(full.peak_bytes),
        "weights": size(2 * s.model.parameters),
        "prompt_trained": count(s.needs["prompt"].trained),
        "lora_trained": count(lora.trained),
        "lora_file": size(lora.file_bytes),
        "full_file": size(full.file_bytes),
        "ia3_file": size(ia3.file_bytes),
        "variants": f"{variants:,}",
        "lora_total": size(variants * lora.file_bytes),
        "full_total": size(variants * full.file_bytes),
        "ia3_total": size(variants * ia3.file_bytes),
        "time": hours(need.hours),
        "deadline": hours(s.wishes.hours or 0),
    }


def count(value: float) -> str:
    """Return a number of things: 7.0 B, 350 M, 12 k, 812."""
    for unit, letter in _COUNTS:
        if value >= unit:
            scaled = value / (1e3 if letter == "k" else unit)
            return f"{scaled:.1f} {letter}" if scaled < 99.5 else f"{scaled:.0f} {letter}"
    return f"{value:,.0f}"


def size(bytes_: float) -> str:
    """Return an amount of memory: 14.2 GiB, 38 MiB."""
    for unit, name in ((1024 * GIB, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if bytes_ >= 0.95 * unit:
            scaled = bytes_ / unit
            return f"{scaled:.1f} {name}" if scaled < 99.5 else f"{scaled:.0f} {name}"
    return f"{bytes_:.0f} B"


def hours(value: float) -> str:
    """Return a span of time: 3.5 h, 12 min, 40 s."""
    if value >= 48:
        return f"{value / 24:.0f} d"
    if value >= 1:
        return f"{value:.1f} h"
    return f"{value * 60:.0f} min" if value * 60 >= 1 else f"{value * 3600:.0f} s"
