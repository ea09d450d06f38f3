"""Recognise how rows are written, without being told.

A shape is a set of fields with the column names they usually have. Recognition looks at the columns of the first rows;
every row is then checked against what was recognised (`convert`). Columns that play no part are named in the summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data import turns
from luthier.data.readers import Row


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

    @property
    def parts(self) -> set[str]:
        """The names that `columns` may map."""
        return {*self.fields, *self.optional}


CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog")
RATIONALES = ("rationale", "reasoning")
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
        {"context": ("context", "input"), "system": ("system", "system_prompt"), "rationale": RATIONALES},
        '{"instruction": "…", "context": "…", "response": "…"}',
    ),
    Shape(
        "alpaca",
        {"instruction": ("instruction",), "output": ("output",)},
        {
            "input": ("input",),
            "system": ("system", "system_prompt"),
            "history": ("history",),
            "rationale": RATIONALES,
        },
        '{"instruction": "…", "input": "…", "output": "…"}',
    ),
    Shape(
        "flan",
        {"prompt": (), "answer": ()},  # column names come in pairs, below
        {"rationale": RATIONALES, "system": ("system", "system_prompt")},
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
LABELLED = Shape(
    "labelled",
    {
        "text": (*LABELLED_TEXTS, "document", "question", "query", "input", "comment", "tweet", "headline"),
        "label": (*LABELS, "category", "intent", "topic", "stars", "rating", "target"),
    },
    {"pair": ()},  # a pair's column names come together, below
    '{"text": "…", "label": "…"}',
)
SCORED = Shape(
    "scored",
    {
        "text": LABELLED.fields["text"],
        "score": ("score", "label", "target", "value", "rating", "stars", "labels", "similarity", "grade", "y"),
    },
    {"pair": ()},
    '{"text": "…", "score": 3.5}',
)
"""Texts, or pairs of them, with a number each."""
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("question", "sentence"),
)
"""Usual column names of the two texts of a pair."""
BY_NAME = {shape.name: shape for shape in (*SHAPES, LABELLED, SCORED)} | {"sharegpt": SHAPES[0]}
EXAMPLES = {name: shape.example for name, shape in BY_NAME.items()}
LONG_NAME = 40
FLAG = "class "
"""Begins the name of the part that a column of 0 and 1 plays: whether the class that it is called after applies."""


@dataclass(frozen=True)
class Format:
    """How the rows of one file are read.

    Attributes:
        name: messages, sharegpt, alpaca, dolly, flan, text or labelled.
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


def recognise(
    rows: Sequence[Row],
    mapping: Mapping[str, str | int],
    forced: str,
    where: str,
    labelled: Literal["classes", "numbers"] | None = None,
) -> Format:
    """Return how to read rows like these. `labelled`: what they are labelled with, so that only that shape is tried.

    Raises:
        DataError: no shape fits, the rows serve another objective, or `columns` names what is not there.
    """
    present = columns_of(rows)
    wanted = {field: str(column) for field, column in mapping.items()}
    shapes = (SCORED if labelled == "numbers" else LABELLED,) if labelled else SHAPES
    shapes = shapes if forced == "auto" or labelled == "numbers" else (BY_NAME[forced],)
    _check_mapping(wanted, present, shapes, where)
    if not wanted and forced == "auto" and not labelled:
        _refuse_other_objectives(present, where)
    for shape in shapes:
        columns = _fit(shape, present, wanted) if set(wanted) <= shape.parts else None
        if columns is not None and (forced != "auto" or wanted or _looks_right(shape, columns, rows)):
            return _format(shape, columns, present, rows)
    flagged = _flagged(rows, present, wanted) if labelled == "classes" and "label" not in wanted else None
    if flagged is not None:
        return _format(LABELLED, flagged, present, rows)
    if forced != "auto":
        raise DataError(_does_not_fit(BY_NAME[forced], forced, listed(rows, present), wanted, where))
    raise DataError(_not_labelled(rows, present, shapes[0], where) if labelled else _unrecognised(rows, present, where))


def _flagged(rows: Sequence[Row], present: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str] | None:
    """Return the columns of rows that have one column of 0 and 1 for each class; None where they have not."""
    texts = _fit(replace(LABELLED, fields={"text": LABELLED.fields["text"]}), present, wanted)
    if texts is None:
        return None
    left = [column for column in present if column not in texts.values()]
    flags = [column for column in left if all(is_flag(row.value.get(column)) for row in rows)]
    return {**texts, **{f"{FLAG}{column}": column for column in flags}} if len(flags) > 1 else None


def is_flag(value: object) -> bool:
    """Return whether a value says yes or no: true and false, 0 and 1, also as text."""
    return str(value).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false")


def fit_shape(shape: Shape, present: Sequence[str], wanted: Mapping[str, str], where: str) -> dict[str, str] | None:
    """Return field → column of a shape, or None where a required field has no column.

    Raises:
        DataError: `wanted` names what is not there.
    """
    _check_mapping(wanted, present, (shape,), where)
    return _fit(shape, present, wanted)


def _fit(shape: Shape, present: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str] | None:
    """Return field → column when every required field has one. Capital letters do not matter."""
    usual = dict(shape.fields) | dict(shape.optional)
    actual = {name.lower(): name for name in reversed(present)}
    if shape.name == "flan" and not {"prompt", "answer"} <= set(wanted):
        pair = next((p for p in PAIRS if _pair_fits(p, actual, wanted)), None)
        if pair is None:
            return None
        usual |= {"prompt": (pair[0],), "answer": (pair[1],)}
    if shape.name in ("labelled", "scored") and not {"text", "pair"} & set(wanted):
        both = next((p for p in TEXT_PAIRS if set(p) <= set(actual)), None)
        if both is not None:
            usual |= {"text": (both[0],), "pair": (both[1],)}
    taken = set(wanted.values())
    columns = {}
    for field, names in usual.items():
        column = wanted.get(field) or next((actual[n] for n in names if n in actual and actual[n] not in taken), None)
        if column is not None:
            columns[field] = column
    return columns if set(shape.fields) <= set(columns) else None


def _pair_fits(pair: tuple[str, str], actual: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(field in wanted or column in actual for field, column in zip(("prompt", "answer"), pair))


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


def _check_mapping(wanted: Mapping[str, str], present: Sequence[str], shapes: Sequence[Shape], where: str) -> None:
    known = sorted({part for shape in shapes for part in shape.parts})
    problems = []
    for field, column in wanted.items():
        if field not in known:
            what = f'"columns" maps an unknown part "{field}".{did_you_mean(field, known)}'
            problems.append(Problem(what, "data.columns", f"choose among: {', '.join(known)}"))
        if column not in present:
            what = f'There is no column "{column}" for "{field}".{did_you_mean(column, present)}'
            problems.append(Problem(what, where, f"columns found: {', '.join(_short(c) for c in present)}"))
    if not problems and not any(set(wanted) <= shape.parts for shape in shapes):
        what = f'"columns" mixes parts that do not belong together: {", ".join(wanted)}.'
        parts = "; ".join(f"{s.name}: {', '.join([*s.fields, *s.optional])}" for s in shapes)
        problems.append(Problem(what, "data.columns", f"take the parts of one format: {parts}"))
    if problems:
        raise DataError(*problems)


def _refuse_other_objectives(present: Sequence[str], where: str) -> None:
    """Refuse rows made for preference learning or classification, which sft and lm cannot use as they are."""
    for good, bad in (("chosen", "rejected"), ("chosen_messages", "rejected_messages")):
        if good in present and bad in present:
            what = f'These are preference pairs (columns "{good}" and "{bad}"), which sft and lm cannot use.'
            remedy = "to learn which answer is better: objective: dpo; "
            only = f'to train on the better answers only, write rows of prompt and answer from "{good}"'
            if "prompt" in present:
                only = f"to train on the better answers only: columns: {{prompt: prompt, answer: {good}}}"
            remedy += only
            raise DataError(Problem(what, where, remedy))
    label = next((c for c in LABELS if c in present), None)
    text = next((c for c in LABELLED_TEXTS if c in present), None)
    has_answer = any(set(pair) <= set(present) for pair in PAIRS) or "instruction" in present
    if label and text and not has_answer:
        what = f'These are labelled rows (columns "{text}" and "{label}"), which sft and lm cannot use.'
        remedy = "to classify them: objective: classify; "
        remedy += f"to learn to write the label: columns: {{prompt: {text}, answer: {label}}}; "
        remedy += f"to learn the texts: columns: {{text: {text}}}"
        if text in CHAT_COLUMNS:
            remedy = "to train on the conversations whatever their label: format: messages"
        raise DataError(Problem(what, where, remedy))


def _short(name: str) -> str:
    return name if len(name) <= LONG_NAME else name[: LONG_NAME - 1] + "…"


def listed(rows: Sequence[Row], present: Sequence[str]) -> str:
    """Return the columns with what they hold."""
    kinds = {c: next((turns.kind_of(r.value[c]) for r in rows if r.value.get(c) is not None), "null") for c in present}
    more = f" and {len(present) - 20} more" if len(present) > 20 else ""
    return ", ".join(f'"{_short(c)}" ({kinds[c]})' for c in present[:20]) + more or "none"


def _does_not_fit(shape: Shape, forced: str, listed: str, wanted: Mapping[str, str], where: str) -> Problem:
    missing = ", ".join(f"{field}: COLUMN" for field in shape.fields if field not in wanted)
    what = f"Format {forced} needs {', '.join(shape.fields)}, like {shape.example}. Columns found: {listed}."
    return Problem(what, where, f"say which column is which: columns: {{{missing}}}; or leave format out")


def _unrecognised(rows: Sequence[Row], present: Sequence[str], where: str) -> Problem:
    longest = sorted((c for c in present if _text_length(rows, c)), key=lambda c: -_text_length(rows, c))[:2]
    pair = [c for c in present if c in longest]
    if any(len(c) > LONG_NAME or c.count(" ") > 2 for c in present):
        positions = "{prompt: 1, answer: 2}" if len(present) > 1 else "{text: 1}"
        remedy = f"the first line looks like data; without a header line, give positions: columns: {positions}"
    elif len(pair) == 2:
        remedy = f"say which column is which, for example columns: {{prompt: {pair[0]}, answer: {pair[1]}}}"
        remedy += f" or columns: {{text: {longest[0]}}}"
    elif pair:
        remedy = f"say which column holds the text: columns: {{text: {pair[0]}}}"
    else:
        remedy = "give every row a column of text"
    known = "; ".join(shape.example for shape in SHAPES)
    what = f"The rows fit no known format. Columns found: {listed(rows, present)}."
    return Problem(what, where, f"{remedy}. Known formats: {known}")


def _not_labelled(rows: Sequence[Row], present: Sequence[str], shape: Shape, where: str) -> Problem:
    longest = max(present, key=lambda c: _text_length(rows, c), default="COLUMN")
    others = [c for c in present if c != longest]
    part = "score" if shape is SCORED else "label"
    label = next((c for c in shape.fields[part] if c in others), others[0] if others else "COLUMN")
    remedy = f"say which column is which: columns: {{text: {longest}, {part}: {label}}}"
    if any(len(c) > LONG_NAME or c.count(" ") > 2 for c in present):
        remedy = (
            f"the first line looks like data; without a header line, give positions: columns: {{text: 1, {part}: 2}}"
        )
    needs = f"Classification needs a text and its label, like {LABELLED.example}."
    if shape is SCORED:
        needs = f"Regression needs a text and a number, like {SCORED.example}."
    what = f"{needs} Columns found: {listed(rows, present)}."
    return Problem(what, where, remedy)


def _text_length(rows: Sequence[Row], column: str) -> int:
    """Return how much text a column holds, in strings or in lists of strings."""
    values = [row.value.get(column) for row in rows]
    texts = [s for v in values for s in (v if isinstance(v, list) else [v]) if isinstance(s, str)]
    return sum(len(text) for text in texts)
