"""What letters alone tell of a text: its script, and about how many tokens it has."""

from __future__ import annotations

import re

SCRIPTS = {
    "Chinese": re.compile(r"[\u4e00-\u9fff]"),
    "Japanese": re.compile(r"[\u3040-\u30ff]"),
    "Korean": re.compile(r"[\uac00-\ud7af]"),
    "Cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
    "Latin": re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]"),
}
CHARACTERS_PER_TOKEN = 4.0
WIDE_PER_TOKEN = 1.2


def script_of(text: str) -> str:
    """Return the script that most letters of a text are in; empty where there are too few to say."""
    sample = text[:2000]
    if sample.isascii():
        return "Latin" if len(SCRIPTS["Latin"].findall(sample[:200])) >= 5 else ""
    counts = {name: len(pattern.findall(sample)) for name, pattern in SCRIPTS.items()}
    if counts["Japanese"] >= 0.1 * max(counts["Chinese"], 1) and counts["Japanese"] >= 3:
        counts["Japanese"] += counts.pop("Chinese")
    total = sum(counts.values())
    name, most = max(counts.items(), key=lambda item: item[1])
    # A Chinese character says as much as a few Latin letters.
    if name == "Latin" and counts.get("Chinese", 0) * 3 > counts["Latin"]:
        name, most = "Chinese", counts["Chinese"] * 3
    return name if most >= 5 and most >= 0.6 * total else ""


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: four letters each, or little more than one Chinese character."""
    wide = sum("\u2e80" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7af" for c in text) if not text.isascii() else 0
    return int((len(text) - wide) / CHARACTERS_PER_TOKEN + wide / WIDE_PER_TOKEN) + 1
