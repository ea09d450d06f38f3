"""What is counted while rows are rendered, and what the user is told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.core.errors import Problem
from luthier.data.overlong import Overlong
from luthier.data.problems import ProblemLog
from luthier.data.records import Conversation, PromptAnswer, Record, Text
from luthier.data.spans import Chat, TemplateRefusal, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS_LOOKED_AT = 20


@dataclass
class Tally:
    """Numbers gathered over the rows."""

    log: ProblemLog = field(default_factory=ProblemLog)
    overlong: Overlong = field(default_factory=Overlong)
    untrained: int = 0
    with_end: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    windows: int = 0
    lost_end: int = 0
    unknown: int = 0
    lost: int = 0
    trained: int = 0
    plain: int = 0
    alpaca: int = 0
    prompts_seen: int = 0
    hidden_rows: int = 0
    hidden_tokens: int = 0


def notes(tally: Tally, tokens: int, limit: int | None) -> list[str]:
    """Return the sentences for the screen about what was left out, cut, unknown or decided."""
    lines = [str(warning) for warning in tally.log.all_warnings()]
    if tally.alpaca:
        lines.append("the model has no chat template: rows are written with Alpaca's prompt (### Instruction: …)")
    if tally.plain:
        lines.append("the model has no chat template: a row is its prompt followed by its answer, nothing in between")
    if tally.windows:
        lines.append(f"long documents were cut into {tally.windows:,} windows of up to {limit} tokens; nothing is lost")
    if tally.dropped:
        lines.append(f"{tally.dropped:,} rows longer than {limit} tokens were left out")
    if tally.truncated:
        lost = f"{tally.lost_end:,} of them lost their end token"
        lines.append(f"{tally.truncated:,} rows were cut to {limit} tokens; {lost}")
    if tally.with_end < tally.kept:
        share = tally.with_end / max(tally.kept, 1)
        lines.append(f"only {share:.0%} of the rows end with a trained end token: the model may not learn to stop")
    if tally.hidden_rows:
        what = f"{tally.hidden_tokens:,} tokens of reasoning are there to be read and not learnt"
        lines.append(f"in {tally.hidden_rows:,} rows {what} (reasoning: hidden)")
    if tally.unknown:
        lines.append(f"{tally.unknown:,} tokens ({tally.unknown / tokens:.1%}) are unknown to the tokenizer")
    if tally.lost:
        lines.append(f"the tokenizer has no token for {tally.lost:,} characters and leaves them out in silence")
    return lines


def warn_of_another_prompt(chat: Chat, turns: Sequence[Turn], text: str, source: str, tally: Tally) -> None:
    """Say so when chat's prompt ends with something that a finished conversation does not hold, such as `<think>`.

    Looked at in the first rows alone: it is a matter of the template.
    """
    if tally.prompts_seen >= PROMPTS_LOOKED_AT or turns[-1]["role"] != "assistant":
        return
    tally.prompts_seen += 1
    try:
        prompt = chat.text(turns[:-1], add_generation_prompt=True)
    except TemplateRefusal:
        return
    if not text.startswith(prompt):
        what = f"Chat's prompt for an answer ends with {prompt[-20:]!r}, but the template writes this row otherwise."
        remedy = "rows with their thinking in <think>…</think> may fit; or choose another template: model.chat_template"
        tally.log.warn("another prompt", what, source, remedy)


def warn_of_unused_weights(record: Conversation | PromptAnswer, tally: Tally) -> None:
    """Say so when a row gives weights to messages although every token is trained on."""
    if isinstance(record, Conversation) and any(m.weight is not None for m in record.messages):
        what = "The weights of single messages have no effect, because every token is trained on."
        tally.log.warn("weights", what, record.source, "train_on: assistant uses them")


def text_under_sft(record: Text) -> Problem:
    """Return the problem of a document where an answer is needed."""
    return Problem(
        "The row is plain text: it has no answer to train on, which the objective sft needs.",
        record.source,
        "train on the whole text with objective=lm",
    )


def double_bos(source: str, tokenizer: PreTrainedTokenizerBase) -> Problem:
    """Return the problem of a sequence that begins twice."""
    return Problem(
        f"The sequence begins with two {tokenizer.bos_token}: the template writes one and the text another.",
        source,
        f"remove {tokenizer.bos_token} from the data, or one of the two from the chat template",
    )


def nothing_left(records: Sequence[Record], tally: Tally, train_on: str) -> Problem:
    """Return the problem of rendering that ends without a single example."""
    first = records[0].source if records else ""
    if tally.untrained:
        return Problem(
            f"Not one token is trained on in any of the {tally.untrained:,} rows (train_on: {train_on}).",
            first,
            "give assistant messages a weight above 0, or set train_on: all",
        )
    return Problem(
        f"No row is left: all {len(records):,} are too long.", first, "raise max_length, or shorten the rows"
    )
