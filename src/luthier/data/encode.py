"""Text to tokens with their places in it, cut so that a prompt's tokens are exactly those that chat would send."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A continuation is encoded behind one of these and the anchor's own tokens are taken off again: tokenizers of the
# SentencePiece kind would otherwise put a space before it.
ANCHORS = ("\n", "a", ".", "。", "0", "\t", "é", "<")
Bounds = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Tokens:
    """(L,) ids and the characters [start, end) that each stands for."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def between(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens [first, stop) that hold any of the characters [start, end)."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        return first, max(first, int(np.searchsorted(self.starts, end, side="left")))

    def text(self, whole: str, position: int) -> str:
        """Return the characters of one token."""
        return whole[self.starts[position] : self.ends[position]]


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tokenizers that cannot say which characters a token stands for.

    Raises:
        ModelError: it is a slow one, without tokenizer.json.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                f"The tokenizer {type(tokenizer).__name__} cannot say which characters a token stands for.",
                tokenizer.name_or_path,
                "convert it once with transformers' convert_slow_tokenizer, so that the folder holds a tokenizer.json",
            )
        )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, without special tokens added."""
    if not texts:
        return []
    batch = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    return [_tokens(ids, offsets) for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"])]


def _tokens(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
    table = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return Tokens(np.array(ids, dtype=np.int32), table[:, 0], table[:, 1])


def known_characters(tokenizer: PreTrainedTokenizerBase) -> frozenset[str] | None:
    """Return the characters that a tokenizer knows if it leaves out all others in silence; None if it never does.

    Most spell unknown characters in bytes or write an unknown token. Those that drop them also report offsets that are
    wrong behind the loss.
    """
    rare = "\U000f1234"
    alone, both = encode(tokenizer, ["a", f"{rare}a"])
    # One that splits at white space alone makes a single unknown word of both, which is no silence.
    written = [token.lstrip("\u2581") for token in tokenizer.convert_ids_to_tokens(both.ids.tolist())]
    if len(both) > len(alone) or "a" not in written:
        return None
    return frozenset("".join(tokenizer.get_vocab()).replace("\u2581", " "))


def lost_characters(text: str, known: frozenset[str] | None) -> int:
    """Return how many characters of a text a tokenizer leaves out."""
    if known is None or known.issuperset(text):
        return 0
    return sum(character not in known for character in text)


def encode_with_cuts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    bounds: Sequence[Bounds],
    known: frozenset[str] | None = None,
) -> list[Tokens]:
    """Return the tokens of each text such that a token begins where each of its spans begins.

    A cut that falls inside a token, or whose left side alone would be tokenised otherwise, is made by force: the sides
    are encoded apart. So the tokens up to a span are those of the text up to it. Where the tokenizer loses characters
    (`known`), its offsets are wrong behind the loss, and both ends of every span are cut.
    """
    whole = encode(tokenizer, texts)
    suspects = [i for i, text in enumerate(texts) if any(_may_differ(whole[i], text, start) for start, _ in bounds[i])]
    lefts = iter(encode(tokenizer, [texts[i][:start] for i in suspects for start, _ in bounds[i]]))
    forced = {i: {start for start, _ in bounds[i] if not _is_cut(whole[i], next(lefts), start)} for i in suspects}
    for i, text in enumerate(texts):
        cuts = forced.get(i, set())
        if bounds[i] and lost_characters(text, known):
            cuts = {place for span in bounds[i] for place in span}
        if cuts:
            whole[i] = _encode_apart(tokenizer, text, sorted(cuts))
    return whole


def _may_differ(tokens: Tokens, text: str, cut: int) -> bool:
    """Say whether the text left of the cut might be tokenised otherwise when it stands alone.

    Runs of white space depend on what follows them in GPT-2's and Llama 3's splitting; and byte-level tokenizers may
    report offsets without the leading blank. So next to those nothing can be concluded.
    """
    if cut <= 0 or cut >= len(text):
        return False
    if text[cut - 1] == " " or text[cut].isspace() or (cut > 1 and text[cut - 2 : cut].isspace()):
        return True
    first = int(np.searchsorted(tokens.ends, cut, side="right"))
    return first < len(tokens) and tokens.starts[first] < cut


def _is_cut(tokens: Tokens, left: Tokens, cut: int) -> bool:
    """Say whether the tokens begin with those of the left side, and none of these reaches over the cut."""
    return _begins_with(tokens, left) and (not len(left) or int(tokens.ends[len(left) - 1]) <= cut)


def _begins_with(tokens: Tokens, left: Tokens) -> bool:
    return len(left) <= len(tokens) and bool(np.array_equal(tokens.ids[: len(left)], left.ids))


def _encode_apart(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> Tokens:
    parts = []
    for left, right in itertools.pairwise(sorted({0, *cuts, len(text)})):
        part = encode(tokenizer, [text[left:right]])[0] if left == 0 else _continuation(tokenizer, text[left:right])
        parts.append(Tokens(part.ids, part.starts + left, part.ends + left))
    return Tokens(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "starts", "ends")))


def _continuation(tokenizer: PreTrainedTokenizerBase, piece: str) -> Tokens:
    """Encode a piece as it stands in the middle of a text."""
    for anchor in ANCHORS:
        alone, both = encode(tokenizer, [anchor, anchor + piece])
        size = len(anchor)
        # Where words are whole, `apiece` is one unknown word as `a` is one: then the anchor's token reaches over.
        stands_apart = len(alone) and _begins_with(both, alone) and int(both.ends[len(alone) - 1]) <= size
        if stands_apart and both.starts[len(alone) :].min(initial=size) >= size:
            rest = slice(len(alone), None)
            return Tokens(both.ids[rest], both.starts[rest] - size, both.ends[rest] - size)
    return encode(tokenizer, [piece])[0]
