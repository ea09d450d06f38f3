"""Text to tokens with their places in the text, cut so that a prompt's tokens are exactly those that chat would send."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Tokens:
    """(L,) ids and the characters [start, end) that each stands for."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


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


def encode_with_cuts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cuts: Sequence[Sequence[int]]
) -> list[Tokens]:
    """Return the tokens of each text such that a token begins at each of its cuts.

    A cut that falls inside a token, or whose left side alone would be tokenised otherwise, is made by force: the sides are
    encoded apart. So the tokens up to a cut are those of the text up to it.
    """
    whole = encode(tokenizer, texts)
    suspects = [i for i, text in enumerate(texts) if any(_may_differ(whole[i], text, cut) for cut in cuts[i])]
    lefts = encode(tokenizer, [texts[i][:cut] for i in suspects for cut in cuts[i]])
    taken = 0
    for i in suspects:
        sides, taken = lefts[taken : taken + len(cuts[i])], taken + len(cuts[i])
        forced = [cut for cut, side in zip(cuts[i], sides) if not _begins_with(whole[i], side)]
        if forced:
            whole[i] = _encode_apart(tokenizer, texts[i], forced)
    return whole


def _may_differ(tokens: Tokens, text: str, cut: int) -> bool:
    """Say whether the text left of the cut might be tokenised otherwise when it stands alone.

    Byte-level tokenizers may report offsets without the leading space, so next to white space nothing can be concluded.
    """
    if cut <= 0 or cut >= len(text):
        return False
    if text[cut - 1] == " " or text[cut].isspace():
        return True
    first = int(np.searchsorted(tokens.ends, cut, side="right"))
    return first < len(tokens) and tokens.starts[first] < cut


def _begins_with(tokens: Tokens, left: Tokens) -> bool:
    return len(left) <= len(tokens) and bool(np.array_equal(tokens.ids[: len(left)], left.ids))


def _encode_apart(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> Tokens:
    borders = [0, *cuts, len(text)]
    parts = []
    for left, right in zip(borders, borders[1:]):
        piece = text[left:right]
        if piece:
            part = encode(tokenizer, [piece])[0] if left == 0 else _continuation(tokenizer, piece)
            parts.append(Tokens(part.ids, part.starts + left, part.ends + left))
    return Tokens(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "starts", "ends")))


def _continuation(tokenizer: PreTrainedTokenizerBase, piece: str) -> Tokens:
    for anchor in ANCHORS:
        alone, both = encode(tokenizer, [anchor, anchor + piece])
        if (
            len(alone)
            and _begins_with(both, alone)
            and both.starts[len(alone) :].min(initial=len(anchor)) >= len(anchor)
        ):
            n = len(alone)
            return Tokens(both.ids[n:], both.starts[n:] - len(anchor), both.ends[n:] - len(anchor))
    return encode(tokenizer, [piece])[0]
