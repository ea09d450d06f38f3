"""Recognise how rows are written, without being told, and turn each into a record or into a problem that can be mended.

A shape is a set of fields with the column names they usually have. Recognition looks at the columns of the first rows;
every row is then checked against what was recognised. Columns that play no part are named in the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data import turns
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Conversation, PromptAnswer, Record, Text

REMOVE = "fill it in or remove the row"


@dataclass(frozen=True)
class Shape:
    """One way to write rows.

    Attributes:
        fields: required field → usual column names, the first that is present wins.
        optional: the same for fields that may be missing.
        example: a minimal row, for messages.
    """

    name: str
    fields: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    example: str


CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog")
SHAPES = (
    Shape(
        "messages",
        {"messages": CHAT_COLUMNS},
        {"system": ("system", "system_prompt")},
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    ),
    Shape(
        "dolly",
        {"instruction": ("instruction",), "response": ("response",)},
        {"context": ("context", "input"), "system": ("system", "system_prompt")},
        '{"instruction": "…", "context": "…", "response": "…"}',
    ),
    Shape(
        "alpaca",
        {"instruction": ("instruction",), "output": ("output",)},
        {"input": ("input",), "system": ("system", "system_prompt"), "history": ("history",)},
        '{"instruction": "…", "input": "…", "output": "…"}',
    ),
    Shape(
        "flan",
        {"prompt": (), "answer": ()},  # column names come in pairs, below
        {"rationale": ("rationale",), "system": ("system", "system_prompt")},
        '{"prompt": "…", "answer": "…"}',
    ),
    Shape("text", {"text": ("text", "content")}, {}, '{"text": "…"}'),
)
PAIRS = (
    ("inputs", "targets"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("problem", "solution"),
)
LABELS = ("label", "labels", "class", "sentiment")
LABELLED_TEXTS = ("text", "sentence", "review", "message", "content", "messages", "prompt")
BY_NAME = {shape.name: shape for shape in SHAPES}


@dataclass(frozen=True)
class Format:
    """How the rows of one file are read.

    Attributes:
        name: messages, sharegpt, alpaca, dolly, flan or text.
        columns: field → column.
        unused: columns that play no part.
        why: one sentence for the screen.
    """

    name: str
    columns: Mapping[str, str]
    unused: tuple[str, ...]
    why: str


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return all column names in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.value))


def recognise(rows: Sequence[Row], mapping: Mapping[str, str | int], forced: str, where: str) -> Format:
    """Return how to read rows like these.

    Raises:
        DataError: no shape fits, the rows serve another objective, or `columns` names what is not there.
    """
    present = columns_of(rows)
    wanted = {field: str(column) for field, column in mapping.items()}
    _check_mapping(wanted, present, forced, where)
    if not wanted and forced == "auto":
        _refuse_other_objectives(present, where)
    if forced != "auto":
        shapes = [BY_NAME["messages" if forced == "sharegpt" else forced]]
    else:
        shapes = [s for s in SHAPES if set(wanted) <= {*s.fields, *s.optional}]
    for shape in shapes:
        columns = _fit(shape, present, wanted)
        if columns is not None and (forced != "auto" or wanted or _looks_right(shape, columns, rows)):
            return _format(shape, columns, present, rows)
    raise DataError(_unrecognised(present, rows, forced, wanted, where))


def _fit(shape: Shape, present: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str] | None:
    usual = dict(shape.fields) | dict(shape.optional)
    if shape.name == "flan" and not {"prompt", "answer"} <= set(wanted):
        pair = next((p for p in PAIRS if _pair_fits(p, present, wanted)), None)
        if pair is None:
            return None
        usual |= {"prompt": (pair[0],), "answer": (pair[1],)}
    columns = {}
    for field, names in usual.items():
        column = wanted.get(field) or next((n for n in names if n in present and n not in wanted.values()), None)
        if column is not None:
            columns[field] = column
    return columns if set(shape.fields) <= set(columns) else None


def _pair_fits(pair: tuple[str, str], present: Sequence[str], wanted: Mapping[str, str]) -> bool:
    return all(field in wanted or column in present for field, column in zip(("prompt", "answer"), pair))


def _looks_right(shape: Shape, columns: Mapping[str, str], rows: Sequence[Row]) -> bool:
    """Keep a column called "messages" that holds text from being taken for a conversation, and the reverse."""
    if shape.name not in ("messages", "text"):
        return True
    values = [row.value.get(columns[next(iter(shape.fields))]) for row in rows]
    kinds = {type(v) for v in values if v is not None}
    return str not in kinds if shape.name == "messages" else bool(kinds & {str}) or not kinds


def _format(shape: Shape, columns: dict[str, str], present: Sequence[str], rows: Sequence[Row]) -> Format:
    name = shape.name
    if name == "messages" and turns.is_sharegpt(row.value.get(columns["messages"]) for row in rows):
        name = "sharegpt"
    used = ", ".join(f'{field} = "{column}"' if field != column else f'"{column}"' for field, column in columns.items())
    why = f"columns {used}"
    if "rationale" in columns:
        why += '; an answer reads "RATIONALE⏎The answer is ANSWER."'
    return Format(name, columns, tuple(c for c in present if c not in columns.values()), why)


def _check_mapping(wanted: Mapping[str, str], present: Sequence[str], forced: str, where: str) -> None:
    shapes = SHAPES if forced == "auto" else [BY_NAME["messages" if forced == "sharegpt" else forced]]
    known = sorted({f for s in shapes for f in (*s.fields, *s.optional)})
    problems = []
    for field, column in wanted.items():
        if field not in known:
            remedy = f"choose among: {', '.join(known)}"
            problems.append(
                Problem(
                    f'"columns" maps an unknown part "{field}".{did_you_mean(field, known)}', "data.columns", remedy
                )
            )
        if column not in present:
            near = did_you_mean(column, present)
            problems.append(
                Problem(
                    f'There is no column "{column}" for "{field}".{near}', where, f"columns found: {', '.join(present)}"
                )
            )
    if not problems and not any(set(wanted) <= {*s.fields, *s.optional} for s in shapes):
        parts = "; ".join(f"{s.name}: {', '.join([*s.fields, *s.optional])}" for s in shapes)
        what = f'"columns" mixes parts that do not belong together: {", ".join(wanted)}.'
        problems.append(Problem(what, "data.columns", f"take the parts of one format: {parts}"))
    if problems:
        raise DataError(*problems)


def _refuse_other_objectives(present: Sequence[str], where: str) -> None:
    """Refuse rows made for preference learning or classification, which sft and lm cannot use as they are."""
    for good, bad in (("chosen", "rejected"), ("chosen_messages", "rejected_messages")):
        if good in present and bad in present:
            raise DataError(
                Problem(
                    f'These are preference pairs (columns "{good}" and "{bad}"), which the objectives sft and lm cannot use.',
                    where,
                    f'to train on the better answers only, make rows of prompt and answer from "{good}"'
                    + (f": columns: {{prompt: prompt, answer: {good}}}" if "prompt" in present else ""),
                )
            )
    label = next((c for c in LABELS if c in present), None)
    text = next((c for c in LABELLED_TEXTS if c in present), None)
    has_answer = any(set(pair) <= set(present) for pair in PAIRS)
    if label and text and not has_answer and "instruction" not in present:
        as_chat = text in CHAT_COLUMNS
        remedy = (
            f"to train on the conversations whatever their label: format: messages"
            if as_chat
            else (
                f"to learn to write the label: columns: {{prompt: {text}, answer: {label}}}; to learn the texts: columns: {{text: {text}}}"
            )
        )
        raise DataError(
            Problem(
                f'These are labelled rows (columns "{text}" and "{label}"), which the objectives sft and lm cannot use.',
                where,
                remedy,
            )
        )


def _unrecognised(
    present: Sequence[str], rows: Sequence[Row], forced: str, wanted: Mapping[str, str], where: str
) -> Problem:
    kinds = {c: next((turns.kind_of(r.value[c]) for r in rows if r.value.get(c) is not None), "null") for c in present}
    listed = ", ".join(f'"{c[:40]}{"…" if len(c) > 40 else ""}" ({kinds[c]})' for c in present[:20]) or "none"
    shape = BY_NAME.get("messages" if forced == "sharegpt" else forced)
    if shape is not None:
        need = [f for f in shape.fields if f not in wanted]
        expected = f"Format {forced} needs {', '.join(shape.fields)}: {shape.example}. Columns found: {listed}."
        missing = ", ".join(f"{f}: COLUMN" for f in need)
        return Problem(expected, where, f"say which column is which: columns: {{{missing}}}; or leave format out")
    texts = [c for c in present if kinds[c] == "a string"]
    if present and texts and all(" " in c or c == "column 1" or len(c) > 30 or c.isdigit() for c in present):
        positions = "{prompt: 1, answer: 2}" if len(present) > 1 else "{text: 1}"
        remedy = f"the first line looks like data; without a header line, give positions: columns: {positions}"
    elif len(texts) > 1:
        remedy = f"say which column is which, for example columns: {{prompt: {texts[0]}, answer: {texts[1]}}} or columns: {{text: {texts[0]}}}"
    elif texts or present:
        remedy = f"say which column holds the text: columns: {{text: {(texts or list(present))[0]}}}"
    else:
        remedy = "give every row named columns"
    known = "; ".join(s.example for s in SHAPES)
    return Problem(
        f"The rows fit no known format. Columns found: {listed}.", where, f"{remedy}. Known formats: {known}"
    )


# ---- one row --------------------------------------------------------------------------------------------------------


def convert(row: Row, form: Format, log: ProblemLog, needs_answer: bool = True) -> Record | None:
    """Return the row's record, or None after logging what is wrong with it.

    `needs_answer`: a conversation must end with the assistant (sft); language modelling takes any.
    """
    make: Mapping[str, Callable[[Row, Format, ProblemLog], Record | None]] = {
        "alpaca": _instruction,
        "dolly": _instruction,
        "flan": _pair,
        "text": _text,
    }
    if form.name in ("messages", "sharegpt"):
        return _conversation(row, form, log, needs_answer)
    return make[form.name](row, form, log)


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
    if prompt is None or context is None or answer is None or system is None or history is None:
        return None
    return PromptAnswer(prompt, answer, context, system, history, is_instruction=True, source=row.source)


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
    if rationale.strip():
        answer = f"{rationale}\nThe answer is {answer}."
    return PromptAnswer(prompt, answer, "", system, (), is_instruction=False, source=row.source)


def _text(row: Row, form: Format, log: ProblemLog) -> Record | None:
    value = row.value.get(form.columns["text"])
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return Text("\n".join(value), row.source)
    text = _string(row, form, "text", log)
    return None if text is None else Text(text, row.source)


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
            f"write {BY_NAME['messages'].example}",
        )
        return None
    return turns.read(value, system, row.source, log, column, needs_answer)
