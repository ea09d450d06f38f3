"""A page that shows, token by token, what a model is trained on: the quickest way to see a wrong mask or template."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from luthier.data.labelled import several
from luthier.data.vocabulary import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.core.batch import Example

SHOWN_TOKENS = 800
MAX_TOKENS_PER_CHARACTER = 8
LABELS = {
    "rows": "rows read",
    "examples": "examples",
    "tokens": "tokens",
    "trained_tokens": "trained tokens",
    "end_tokens_trained": "rows with a trained end token",
    "longest": "longest example",
    "median_length": "median length",
    "dropped": "rows left out",
    "truncated": "rows cut short",
    "windows": "windows of long documents",
    "unknown_tokens": "unknown tokens",
    "lost_characters": "characters the tokenizer lost",
}
ALWAYS_SHOWN = ("rows", "examples", "tokens", "trained_tokens", "end_tokens_trained", "longest", "median_length")


@dataclass(frozen=True)
class _Shown:
    """One example, ready for the page. `tokens` is HTML."""

    number: int
    source: str
    length: str
    trained: str
    share: str
    tokens: str


def _said(example: Example, classes: Sequence[str]) -> str:
    """Return the class of an example, or all that apply."""
    if "label" in example.extras:
        return classes[int(np.asarray(example.extras["label"]))]
    return ", ".join(name for c, name in enumerate(classes) if example.extras[several(c)]) or "none"


def preview_html(
    store: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    counts: Mapping[str, object],
    limit: int = 20,
    classes: Sequence[str] = (),
    endings: Sequence[str] = (),
) -> str:
    """Return one page without external parts that shows `limit` examples, spread evenly over the store.

    Args:
        classes: the names of the classes, where the examples are labelled texts.
        endings: what the endings are called, where examples branch.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    chosen = sorted({int(i) for i in np.linspace(0, len(store) - 1, min(limit, len(store)))}) if len(store) else []
    pieces = _Pieces(tokenizer)
    examples = []
    for index in chosen:
        example = store[index]
        share = 100 * example.trained_tokens / max(len(example), 1)
        body = Markup("".join(_example_html(example, pieces, endings)))  # its texts are escaped where they are made
        trained = f"{example.trained_tokens:,}"
        source = example.source
        if classes:
            source += f" → {_said(example, classes)}"
        elif "scale" in example.extras:
            source += f" → {float(np.asarray(example.extras['label'])):g}"
        examples.append(_Shown(index + 1, source, f"{len(example):,}", trained, f"{share:.0f}", body))
    template = (files("luthier.data") / "preview.html").read_text(encoding="utf-8")
    notes = counts.get("notes")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            facts=_facts(counts),
            notes=notes if isinstance(notes, list) else [],
            examples=examples,
            total=f"{len(store):,}",
        )
    )


def _facts(counts: Mapping[str, object]) -> list[tuple[str, str]]:
    facts = []
    for key, label in LABELS.items():
        value = counts.get(key)
        if not isinstance(value, int | float) or not (value or key in ALWAYS_SHOWN):
            continue
        text = f"{value:.0%}" if key == "end_tokens_trained" else f"{value:,.0f}"
        tokens = counts.get("tokens")
        if key == "trained_tokens" and isinstance(tokens, int | float) and tokens:
            text += f" ({value / tokens:.0%})"
        facts.append((label, text))
    return facts


class _Pieces:
    """The text of tokens in their place: blanks before words kept, characters of several tokens put together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.special = special_tokens(tokenizer)
        # Decoders take a blank off the first token of a text, so every piece is decoded behind another token.
        self._anchor: list[int] = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._anchor_text = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _text(self, ids: Sequence[int]) -> str:
        if len(ids) == 1 and ids[0] in self._known:
            return self._known[ids[0]]
        whole = self._decode([*self._anchor, *ids])
        text = whole[len(self._anchor_text) :] if whole.startswith(self._anchor_text) else self._decode(ids)
        if len(ids) == 1:
            self._known[ids[0]] = text
        return text

    def groups(self, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yield (number of tokens, their text); more than one token only where a character needs them."""
        at = 0
        while at < len(ids):
            if ids[at] in self.special:
                yield 1, self.special[ids[at]]
                at += 1
                continue
            size, text = 1, self._text(ids[at : at + 1])
            while "\ufffd" in text and size < MAX_TOKENS_PER_CHARACTER and at + size < len(ids):
                size += 1
                text = self._text(ids[at : at + size])
            if "\ufffd" in text:  # not UTF-8 in any grouping: show the token by itself
                size, text = 1, str(self._tokenizer.convert_ids_to_tokens(ids[at]))
            yield size, text
            at += size


def _example_html(example: Example, pieces: _Pieces, names: Sequence[str]) -> Iterator[str]:
    """Yield the tokens of an example; of one that branches the beginning, and each ending under its name."""
    start, prompt = 0, example.prompt_length
    for name, length in zip(("", *names), (prompt, *example.branches)) if example.branches else (("", len(example)),):
        if name:
            yield f'<div class="gap">{html.escape(name)}</div>'
        here = slice(start, start + length)
        yield from _tokens_html(example.tokens[here], example.weights[here], pieces)
        start += length


def _tokens_html(tokens: np.ndarray, weights: np.ndarray, pieces: _Pieces) -> Iterator[str]:
    ids = [int(i) for i in tokens]
    head = tail = len(ids)
    if len(ids) > SHOWN_TOKENS:
        head, tail = SHOWN_TOKENS // 2, len(ids) - SHOWN_TOKENS // 2
    yield from _run_html(ids, weights, 0, head, pieces)
    if head < tail:
        yield f'<span class="gap">… {tail - head:,} tokens not shown …</span>'
        yield from _run_html(ids, weights, tail, len(ids), pieces)


def _run_html(ids: list[int], weights: np.ndarray, start: int, stop: int, pieces: _Pieces) -> Iterator[str]:
    at = start
    for size, text in pieces.groups(ids[start:stop]):
        for place in range(at, at + size):
            yield _token_html(ids[place], float(weights[place]), _visible(text) if place == at else "<i>◂</i>", pieces)
        at += size


def _token_html(token: int, weight: float, body: str, pieces: _Pieces) -> str:
    kind, style = "t", ""
    if weight == 1.0:
        kind = "t y"
    elif weight > 0:
        kind, style = "t w", f' style="--weight:{min(100, round(100 * weight))}%"'
    if token in pieces.special:
        kind += " s"
    return f'<span class="{kind}"{style} title="token {token}, weight {weight:g}">{body}</span>'


def _visible(text: str) -> str:
    """Escape text and show white space; a line break is shown and made."""
    marked = html.escape(text).replace(" ", "<i>·</i>").replace("\t", "<i>⇥</i>\t")
    return marked.replace("\r", "<i>␍</i>").replace("\n", "<i>⏎</i>\n") or "<i>∅</i>"
