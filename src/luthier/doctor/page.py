"""The doctor's findings as one page without external parts: numbers, plots, and every finding with its place."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from luthier.doctor.examine import Diagnosis

SHOWN = 1000
BARS = 40
LIMITS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
"""Values of max_length that are usual."""


def page(found: Diagnosis, title: str) -> str:
    """Return the page of a diagnosis."""
    from jinja2 import Environment

    template = (files("luthier.doctor") / "page.html").read_text(encoding="utf-8")
    tokens = np.asarray(found.tokens, dtype=np.int64)
    most = max(found.counts.values(), default=1)
    scripts = found.scripts.total()
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            rows=f"{found.rows:,}",
            format=found.format,
            tokens=f"{int(tokens.sum()):,}" if len(tokens) else "–",
            median=f"{int(np.median(tokens)):,}" if len(tokens) else "–",
            longest=f"{int(tokens.max()):,}" if len(tokens) else "–",
            touched=f"{len({f.row for f in found.findings if f.row >= 0}):,}",
            looked_for=found.looked_for,
            kinds=[(kind.replace("_", " "), count, 100 * count / most) for kind, count in found.counts.most_common()],
            scripts=[(name, f"{count:,}", 100 * count / scripts) for name, count in found.scripts.most_common(6)],
            bars=_bars(tokens),
            budget=_budget(tokens),
            duplicates=_duplicates(found),
            notes=found.notes,
            counted_by=f"of {found.counted_by}" if found.counted_by else "estimated",
            findings=found.findings[:SHOWN],
            more=max(0, found.counts.total() - SHOWN),
        )
    )


def _budget(tokens: np.ndarray) -> list[tuple[str, str, float]]:
    """Return for usual values of max_length what share of the rows fits, and of all tokens what share is kept."""
    if not len(tokens):
        return []
    longest = int(tokens.max())
    limits = [limit for limit in LIMITS if limit < longest] or [LIMITS[0]]
    limits = [*limits[-6:], next((limit for limit in LIMITS if limit >= longest), longest)]
    found = []
    for limit in dict.fromkeys(limits):
        fits = 100 * float((tokens <= limit).mean())
        kept = 100 * float(np.minimum(tokens, limit).sum() / tokens.sum())
        found.append((f"{limit:,}", f"{fits:.4g} % of rows, {kept:.4g} % of tokens", fits))
    return found


def _duplicates(found: Diagnosis) -> list[tuple[str, str, float]]:
    """Return how many rows stand once, again to the letter, and nearly, by how alike they are."""
    if not found.rows or "duplicates" not in found.looked_for:
        return []
    near = np.asarray(found.near, dtype=np.float64)
    exact = sum(found.copies) - len(found.copies)
    counts = [("once", found.rows - exact - len(near)), ("to the letter", exact)]
    for low, high in ((0.9, 1.01), (0.8, 0.9), (0.7, 0.8), (0.6, 0.7)):
        counts.append((f"{low:.0%} to {min(high, 1):.0%} alike", int(((near >= low) & (near < high)).sum())))
    return [(name, f"{count:,}", 100 * count / found.rows) for name, count in counts]


def _bars(tokens: np.ndarray) -> list[dict[str, object]]:
    """Return a histogram of lengths on a logarithmic axis, as places in a drawing 400 wide and 100 high."""
    if not len(tokens):
        return []
    low, high = max(int(tokens.min()), 1), int(tokens.max()) + 1
    edges = np.unique(np.geomspace(low, max(high, low + 2), BARS + 1).astype(int))
    counts, edges = np.histogram(tokens, bins=edges)
    width = 400 / len(counts)
    return [
        {
            "x": round(i * width, 2),
            "y": round(100 - 100 * count / counts.max(), 2),
            "width": round(max(width - 1, 1), 2),
            "height": round(100 * count / counts.max(), 2),
            "label": f"{int(edges[i]):,} to {int(edges[i + 1]) - 1:,} tokens: {int(count):,} rows",
        }
        for i, count in enumerate(counts)
    ]
