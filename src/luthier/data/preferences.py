"""Rows for learning from judgements: pairs of answers, answers found good or bad, and prompts to be answered.

How such rows are written is as varied as that of conversations: with a prompt of its own or one that both answers begin
with, as text, as a message or as a list of messages, in Anthropic's transcripts. What both answers share is the prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from luthier.core.errors import DataError, Problem
from luthier.data import turns
from luthier.data.formats import CHAT_COLUMNS, PAIRS, Format, Shape, columns_of, fit_shape, listed
from luthier.data.formats import recognise as recognise_plain
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Asked, Conversation, Message, Preference, PromptAnswer, Rated

JudgedForm = Literal["preference", "rated", "prompt"]
_PROMPTS = ("prompt", "question", "instruction", "query", "problem", *CHAT_COLUMNS, "input")
_AROUND = {"context": ("input", "context"), "system": ("system", "system_prompt")}
_ANSWERS = ("completion", "response", "answer", "output", "solution", "target")
SHAPES: Mapping[str, Shape] = {
    "preference": Shape(
        "preference",
        {
            "chosen": ("chosen", "chosen_response", "chosen_messages", "response_chosen", "preferred", "better"),
            "rejected": ("rejected", "rejected_response", "rejected_messages", "response_rejected", "worse"),
        },
        {"prompt": _PROMPTS, **_AROUND, "margin": ("margin",)},
        '{"prompt": "…", "chosen": "…", "rejected": "…"}',
    ),
    "rated": Shape(
        "rated",
        {"label": ("label", "kto_tag", "is_good", "good", "desirable", "thumbs_up")},
        {"prompt": _PROMPTS, "answer": _ANSWERS, **_AROUND},
        '{"prompt": "…", "completion": "…", "label": true}',
    ),
    "prompt": Shape("prompt", {"prompt": _PROMPTS}, {**_AROUND}, '{"prompt": "…"}'),
}
_SPEAKERS = re.compile(r"\n\n(Human|Assistant): ?")
_WORDS = {"true": True, "false": False, "good": True, "bad": False, "1": True, "0": False, "yes": True, "no": False}


def recognise(rows: Sequence[Row], mapping: Mapping[str, str | int], form: JudgedForm, where: str) -> Format:
    """Return how to read rows like these for an objective that wants `form`.

    Raises:
        DataError: the columns do not fit, or `columns` names what is not there.
    """
    present = columns_of(rows)
    wanted = {field: str(column) for field, column in mapping.items()}
    for name in (form, "preference") if form == "rated" else (form,):  # a pair is a good answer and a bad one
        shape = SHAPES[name]
        columns = fit_shape(shape, present, wanted, where) if set(wanted) <= shape.parts else None
        if columns is None:
            continue
        if columns.get("context") == columns.get("prompt"):
            columns.pop("context", None)
        if form == "prompt" and "context" in columns and "input" in present and _is_answered(present, columns):
            columns.pop("context", None)
        if name == "rated" and not _has_answers(columns, rows):
            continue
        used = ", ".join(f'{f} = "{c}"' if f != c else f'"{c}"' for f, c in columns.items())
        return Format(name, columns, tuple(c for c in present if c not in columns.values()), f"columns {used}")
    needs = {
        "preference": "Preferences need a better and a worse answer",
        "rated": "Rated answers need a prompt, an answer and a label that is true or false",
        "prompt": "Rollouts need prompts",
    }[form]
    what = f"{needs}, like {SHAPES[form].example}. Columns found: {listed(rows, present)}."
    fields = ", ".join(f"{field}: COLUMN" for field in SHAPES[form].fields)
    remedy = f"say which column is which: columns: {{{fields}}}"
    raise DataError(Problem(what, where, f"{remedy}{_other_objective(rows, mapping, form)}"))


def _other_objective(rows: Sequence[Row], mapping: Mapping[str, str | int], form: JudgedForm) -> str:
    """Return for whom the rows are made, when they are whole but of another kind."""
    if mapping or form == "prompt":
        return ""
    if form == "preference" and _fits(rows, "rated"):
        return "; or learn from single ratings: objective: kto"
    try:
        found = recognise_plain(rows, {}, "auto", "")
    except DataError:
        return ""
    return f"; or train on rows like these ({found.name}): objective: {'lm' if found.name == 'text' else 'sft'}"


def _fits(rows: Sequence[Row], form: JudgedForm) -> bool:
    columns = fit_shape(SHAPES[form], columns_of(rows), {}, "")
    return columns is not None and (form != "rated" or _has_answers(columns, rows))


def _is_answered(present: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Say whether `input` is the first of a pair of prompt and answer, and not the context of an instruction."""
    return columns["prompt"] == "input" and any(pair[0] == "input" and pair[1] in present for pair in PAIRS)


def _has_answers(columns: Mapping[str, str], rows: Sequence[Row]) -> bool:
    if "prompt" not in columns:
        return False
    return "answer" in columns or any(isinstance(row.value.get(columns["prompt"]), list) for row in rows)


def convert(row: Row, form: Format, wanted: JudgedForm, log: ProblemLog) -> list[Preference | Rated | Asked]:
    """Return the row's records, or nothing after logging what is wrong with it."""
    if form.name == "preference":
        pair = _preference(row, form, log)
        if pair is None or wanted == "preference":
            return [] if pair is None else [pair]
        return [Rated(pair.chosen, True, row.source), Rated(pair.rejected, False, row.source)]
    made = _rated(row, form, log) if form.name == "rated" else _asked(row, form, log)
    return [] if made is None else [made]


# ---------------------------------------------------------------------- pairs


def _preference(row: Row, form: Format, log: ProblemLog) -> Preference | None:
    margin = _margin(row, form, log)
    before = log.total
    chosen, rejected = _both(row, form, log)
    if log.total > before or margin is None or chosen is None or rejected is None:
        return None
    if isinstance(chosen, Conversation) and isinstance(rejected, Conversation):
        chosen, rejected = _without_shared(chosen, rejected)
        same = chosen.messages == rejected.messages
    else:
        same = chosen == rejected
    if same:
        what = "Both answers are the same, so there is nothing to learn: the row is left out."
        log.warn("same answers", what, row.source)
        return None
    return Preference(chosen, rejected, None if math.isnan(margin) else margin, row.source)


def _both(
    row: Row, form: Format, log: ProblemLog
) -> tuple[Conversation | PromptAnswer | None, Conversation | PromptAnswer | None]:
    """Return the prompt with the better and with the worse answer."""
    names = (form.columns["chosen"], form.columns["rejected"])
    values = [[v] if isinstance(v := row.value.get(name), dict) else v for name in names]
    for name, value in zip(names, values):
        if not isinstance(value, str | list):
            remedy = "give both answers, as text or as messages, or remove the row"
            log.add("answer", f'"{name}" {_state(value)}.', row.source, remedy)
    if not all(isinstance(v, str | list) for v in values):
        return None, None
    if any(_is_silent(value) for value in values):
        log.warn("empty answer", "One of the answers is empty, so the row is left out.", row.source)
        return None, None
    if isinstance(values[0], str) != isinstance(values[1], str):
        what = f'"{names[0]}" is {turns.kind_of(values[0])} and "{names[1]}" is {turns.kind_of(values[1])}.'
        log.add("answers differ", what, row.source, "write both as text, or both as messages")
        return None, None
    if isinstance(values[0], str) and "prompt" not in form.columns:
        if not all(_SPEAKERS.match(str(value)) for value in values):
            return _implicit(row, str(values[0]), str(values[1]), log)
        values = [_dialogue(str(value)) for value in values]
        if any(_is_silent(value) for value in values):
            log.warn("empty answer", "One of the answers is empty, so the row is left out.", row.source)
            return None, None
    before = log.total
    chosen = _answered(row, form, values[0], names[0], log)
    if chosen is None and log.total > before and isinstance(values[0], str):
        return None, None  # what is wrong with the prompt is told once
    return chosen, _answered(row, form, values[1], names[1], log)


def _state(value: object) -> str:
    """Say what a value is that should have been text or messages."""
    if value is None:
        return "is missing"
    return "is empty" if isinstance(value, str | list) else f"is {turns.kind_of(value)}"


def _answered(
    row: Row, form: Format, answer: object, column: str, log: ProblemLog
) -> Conversation | PromptAnswer | None:
    """Return the row's prompt followed by an answer, or None after logging."""
    system, context = (_text(row, form, name, log) for name in ("system", "context"))
    asked = row.value.get(form.columns.get("prompt", ""))
    if system is None or context is None:
        return None
    if isinstance(answer, list):
        begins = answer[0].get("role", answer[0].get("from")) if isinstance(answer[0], dict) else None
        is_whole = begins in ("system", "user", "human")
        before = asked if isinstance(asked, list) else [{"role": "user", "content": asked}] if asked else []
        return turns.read([*([] if is_whole else before), *answer], system, row.source, log, column, needs_answer=True)
    if isinstance(asked, list):
        said = [*asked, {"role": "assistant", "content": answer}]
        return turns.read(said, system, row.source, log, form.columns["prompt"], needs_answer=True)
    if not isinstance(asked, str) or not (asked.strip() or context.strip()):
        name = form.columns.get("prompt", "prompt")
        log.add("prompt", f'"{name}" {_state(asked)}.', row.source, "fill it in or remove the row")
        return None
    is_instruction = form.columns["prompt"].lower() == "instruction"
    return PromptAnswer(asked, str(answer), context, system, (), is_instruction, row.source)


def _is_silent(answer: object) -> bool:
    """Say whether an answer holds no text; published preference data have such rows."""
    if isinstance(answer, list):
        last = answer[-1] if answer else {"content": ""}
        said = last.get("content", last.get("value")) if isinstance(last, dict) else None
        return isinstance(said, str) and not said.strip()
    return isinstance(answer, str) and not answer.strip()


def _implicit(
    row: Row, chosen: str, rejected: str, log: ProblemLog
) -> tuple[Conversation | PromptAnswer | None, Conversation | PromptAnswer | None]:
    """Return two texts without a prompt: what both begin with is taken for it."""
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    prompt = chosen[:alike]
    prompt = prompt[: max(prompt.rfind(" "), prompt.rfind("\n")) + 1]
    if not prompt.strip() or len(prompt) in (len(chosen), len(rejected)):
        what = "The row has no prompt, and its answers do not begin alike."
        log.add("prompt", what, row.source, 'add a column "prompt"')
        return None, None
    log.warn("implicit prompt", "There is no prompt: what both answers begin with is taken for it.", row.source)
    first, second = (
        PromptAnswer(prompt, text[len(prompt) :], "", "", (), False, row.source) for text in (chosen, rejected)
    )
    return first, second


def _dialogue(text: str) -> list[dict[str, str]]:
    """Return the turns of one of Anthropic's transcripts."""
    parts = _SPEAKERS.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2])]


def _without_shared(chosen: Conversation, rejected: Conversation) -> tuple[Conversation, Conversation]:
    """Return both conversations with the weight 0 on what they share: it is the prompt, and no answer."""
    shared = 0
    for ours, theirs in zip(chosen.messages, rejected.messages):
        if ours != theirs:
            break
        shared += 1
    first, second = (
        Conversation(
            tuple(replace(m, weight=0.0) if i < shared else m for i, m in enumerate(c.messages)),
            c.source,
        )
        for c in (chosen, rejected)
    )
    return first, second


def _margin(row: Row, form: Format, log: ProblemLog) -> float | None:
    """Return the margin, NaN where the row names none; None after logging."""
    value = row.value.get(form.columns.get("margin", ""))
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    log.add(
        "margin", f"The margin should be a number, got {turns.shown(value)}.", row.source, "mend it or leave it out"
    )
    return None


# ---------------------------------------------------------------------- single answers and prompts


def _rated(row: Row, form: Format, log: ProblemLog) -> Rated | None:
    column = form.columns["label"]
    label = row.value.get(column)
    is_good = _WORDS.get(str(label).strip().lower()) if isinstance(label, bool | int | float | str) else None
    if isinstance(label, float) and label in (0.0, 1.0):
        is_good = bool(label)
    if is_good is None:
        what = f'"{column}" should be true or false, got {turns.shown(label)}.'
        log.add("label", what, row.source, "say whether the answer is good")
        return None
    asked = row.value.get(form.columns["prompt"])
    if "answer" in form.columns:
        answer = row.value.get(form.columns["answer"])
        answer = [answer] if isinstance(answer, dict) else answer
        if not isinstance(answer, str | list):
            what = f'"{form.columns["answer"]}" {_state(answer)}.'
            log.add("answer", what, row.source, "fill it in or remove the row")
            return None
        if _is_silent(answer):
            log.warn("empty answer", "The answer is empty, so the row is left out.", row.source)
            return None
        record = _answered(row, form, answer, form.columns["answer"], log)
    elif isinstance(asked, list):
        system = _text(row, form, "system", log)
        read = turns.read(asked, system or "", row.source, log, form.columns["prompt"], needs_answer=True)
        record = None if read is None or system is None else _last_only(read)
    else:
        what = f'"{form.columns["prompt"]}" should be a list of messages, got {turns.kind_of(asked)}.'
        log.add("messages", what, row.source, f"write {SHAPES['rated'].example}")
        return None
    return None if record is None else Rated(record, is_good, row.source)


def _last_only(talk: Conversation) -> Conversation:
    """Return a conversation whose last answer alone was rated."""
    *before, last = talk.messages
    return Conversation((*(replace(m, weight=0.0) for m in before), last), talk.source)


def _asked(row: Row, form: Format, log: ProblemLog) -> Asked | None:
    system, context = (_text(row, form, name, log) for name in ("system", "context"))
    asked = row.value.get(form.columns["prompt"])
    if system is None or context is None:
        return None
    if isinstance(asked, list):
        talk = turns.read(asked, system, row.source, log, form.columns["prompt"], needs_answer=False)
        if talk is None:
            return None
        said: tuple[Message, ...] = talk.messages
        if said[-1].role == "assistant":
            said = said[:-1]
        if not said:
            log.add("prompt", "The conversation asks nothing.", row.source, "add a user message or remove the row")
            return None
        return Asked(Conversation(said, row.source), row.value, row.source)
    if not isinstance(asked, str) or not (asked.strip() or context.strip()):
        what = f'"{form.columns["prompt"]}" {_state(asked)}.'
        log.add("prompt", what, row.source, "fill it in or remove the row")
        return None
    is_instruction = form.columns["prompt"].lower() == "instruction"
    return Asked(PromptAnswer(asked, "", context, system, (), is_instruction, row.source), row.value, row.source)


def _text(row: Row, form: Format, field: str, log: ProblemLog) -> str | None:
    """Return an optional column's text, or None after logging."""
    value = row.value.get(form.columns.get(field, ""))
    if value is None or isinstance(value, str):
        return value or ""
    what = f'"{form.columns[field]}" should be a string, got {turns.kind_of(value)}: {turns.shown(value)}.'
    log.add("not a string", what, row.source, "put it in quotes, or leave it out")
    return None
