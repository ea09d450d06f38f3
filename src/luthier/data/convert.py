"""Turn a row of a recognised format into a record, or name what is wrong with it and how to mend it."""

from __future__ import annotations

import math

from luthier.data import turns
from luthier.data.formats import EXAMPLES, FLAG, Format, is_flag
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.reasoning import with_rationale
from luthier.data.records import Conversation, Labelled, PromptAnswer, Record, Text

REMOVE = "fill it in or remove the row"


def convert(row: Row, form: Format, log: ProblemLog, needs_answer: bool = True) -> Record | None:
    """Return the row's record, or None after logging what is wrong with it.

    `needs_answer`: a conversation must end with the assistant (sft); language modelling takes any.
    """
    if form.name in ("messages", "sharegpt"):
        return _conversation(row, form, log, needs_answer)
    return _MAKE[form.name](row, form, log)


def _string(row: Row, form: Format, field: str, log: ProblemLog, required: bool = True) -> str | None:
    """Return a column's text; None after logging. An optional column may be absent or null."""
    column = form.columns.get(field)
    value = row.value.get(column) if column is not None else None
    if isinstance(value, str):
        if required and not value.strip():
            log.add("empty field", f'"{column}" is empty.', row.source, REMOVE)
            return None
        return value
    if value is None and not required:
        return ""
    if value is None:
        state = "is null" if column in row.value else "is missing"
        log.add("missing field", f'"{column}" {state}; the row has {_named(row)}.', row.source, REMOVE)
    else:
        what = f'"{column}" should be a string, got {turns.kind_of(value)}: {turns.shown(value)}.'
        log.add(
            "not a string", what, row.source, f"put it in quotes, or map another column: columns: {{{field}: COLUMN}}"
        )
    return None


def _named(row: Row) -> str:
    return ", ".join(f'"{c}"' for c in row.value) or "no columns"


def _instruction(row: Row, form: Format, log: ProblemLog) -> Record | None:
    is_dolly = form.name == "dolly"
    context = _string(row, form, "context" if is_dolly else "input", log, required=False)
    prompt = _string(row, form, "instruction", log, required=not context)
    answer = _string(row, form, "response" if is_dolly else "output", log)
    system = _string(row, form, "system", log, required=False)
    history = turns.history(row.value.get(form.columns.get("history", "")), row.source, log)
    rationale = _string(row, form, "rationale", log, required=False)
    if prompt is None or context is None or answer is None or system is None or history is None or rationale is None:
        return None
    thought, answer = with_rationale(rationale, answer)
    return PromptAnswer(prompt, answer, context, system, history, True, row.source, thought)


def _pair(row: Row, form: Format, log: ProblemLog) -> Record | None:
    question, reply = (row.value.get(form.columns[f]) for f in ("prompt", "answer"))
    if isinstance(question, list) and isinstance(reply, list):
        # TRL's conversational prompt-completion rows: two lists of messages.
        return turns.read([*question, *reply], "", row.source, log, form.columns["prompt"], needs_answer=True)
    prompt = _string(row, form, "prompt", log)
    answer = _string(row, form, "answer", log)
    rationale = _string(row, form, "rationale", log, required=False)
    system = _string(row, form, "system", log, required=False)
    if prompt is None or answer is None or rationale is None or system is None:
        return None
    thought, answer = with_rationale(rationale, answer)
    return PromptAnswer(prompt, answer, "", system, (), False, row.source, thought)


def _text(row: Row, form: Format, log: ProblemLog) -> Record | None:
    value = row.value.get(form.columns["text"])
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return Text("\n".join(value), row.source)
    if isinstance(value, str) and not value.strip():
        # Corpora such as WikiText have a blank row between articles: nothing to mend.
        log.warn("empty text", f'"{form.columns["text"]}" is empty, so the row is left out.', row.source)
        return None
    text = _string(row, form, "text", log)
    return None if text is None else Text(text, row.source)


def _labelled(row: Row, form: Format, log: ProblemLog) -> Record | None:
    text = _string(row, form, "text", log)
    pair = _string(row, form, "pair", log, required="pair" in form.columns)
    if "label" not in form.columns:
        labels = _flags(row, form, log)
    elif isinstance(row.value.get(form.columns["label"]), list):
        labels = _labels(row, form.columns["label"], log)
    else:
        label = _label(row, form.columns["label"], log)
        return None if text is None or pair is None or label is None else Labelled(text, pair, label, row.source)
    if text is None or pair is None or labels is None:
        return None
    return Labelled(text, pair, ", ".join(labels), row.source, labels=labels)


def _labels(row: Row, column: str, log: ProblemLog) -> tuple[str, ...] | None:
    """Return the classes of a row with a list of them, each once; None after logging."""
    found = [_label(Row({column: value}, row.source), column, log) for value in row.value[column]]  # type: ignore[union-attr]
    return None if None in found else tuple(dict.fromkeys(str(label) for label in found))


def _flags(row: Row, form: Format, log: ProblemLog) -> tuple[str, ...] | None:
    """Return the classes whose columns say yes; None after logging."""
    columns = [column for field, column in form.columns.items() if field.startswith(FLAG)]
    wrong = next((column for column in columns if not is_flag(row.value.get(column))), None)
    if wrong is not None:
        what = (
            f'The label "{wrong}" should be 0 or 1, as in the rows before it, got {turns.shown(row.value.get(wrong))}.'
        )
        log.add("label", what, row.source, REMOVE)
        return None
    return tuple(c for c in columns if str(row.value.get(c)).strip().lower() in ("1", "1.0", "true"))


def _scored(row: Row, form: Format, log: ProblemLog) -> Record | None:
    text = _string(row, form, "text", log)
    pair = _string(row, form, "pair", log, required="pair" in form.columns)
    value = _number(row, form.columns["score"], log)
    if text is None or pair is None or value is None:
        return None
    return Labelled(text, pair, f"{value:g}", row.source, value=value)


def _number(row: Row, column: str, log: ProblemLog) -> float | None:
    """Return a finite number, also one that is written as text (as in CSV); None after logging."""
    value = row.value.get(column)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    state = "is missing" if column not in row.value else f"should be a number, got {turns.shown(value)}"
    log.add("score", f'"{column}" {state}.', row.source, "mend or remove the row; words are for objective: classify")
    return None


def _label(row: Row, column: str, log: ProblemLog) -> str | None:
    """Return a class as a word: a string, a whole number or true/false; None after logging."""
    value = row.value.get(column)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if value is None or value == "":
        state = "is missing" if column not in row.value else "is null" if value is None else "is empty"
        log.add("label", f'The label "{column}" {state}.', row.source, REMOVE)
    else:
        what = f'The label "{column}" should be a word or a whole number, got {turns.shown(value)}.'
        log.add("label", what, row.source, "classes are told apart by name; a measured quantity is none")
    return None


def _conversation(row: Row, form: Format, log: ProblemLog, needs_answer: bool) -> Conversation | None:
    system = _string(row, form, "system", log, required=False)
    column = form.columns["messages"]
    value = row.value.get(column)
    if system is None:
        return None
    if not isinstance(value, list):
        state = "is missing" if column not in row.value else f"should be a list of messages, got {turns.kind_of(value)}"
        log.add(
            "messages",
            f'"{column}" {state}; the row has {_named(row)}.',
            row.source,
            f"write {EXAMPLES['messages']}",
        )
        return None
    return turns.read(value, system, row.source, log, column, needs_answer)


_MAKE = {
    "alpaca": _instruction,
    "dolly": _instruction,
    "flan": _pair,
    "text": _text,
    "labelled": _labelled,
    "scored": _scored,
}
