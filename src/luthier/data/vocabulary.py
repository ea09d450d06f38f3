"""What a tokenizer says of its special tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the end token, where there is one."""
    found = tokenizer.eos_token_id
    return found if isinstance(found, int) else None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return id → text of the tokens that control rather than spell: declared special, or added as such.

    Words that were added to a vocabulary (`<think>`, runs of blanks) are ordinary text.
    """
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens))


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text (its BOS, or nothing)."""
    body = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = (i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body)
    return list(whole[: next(starts, 0)])
