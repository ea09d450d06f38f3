"""Questions with choices, as well-known files write them, and how each is put to a model."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier.data.spec import DataSpec
from luthier.evaluate.cases import CaseFault, Layout, Values, group_in, read_cases, text_in
from luthier.evaluate.tasks.base import Cases
from luthier.evaluate.texts import spaced

QUESTIONS = ("question", "prompt", "query", "context", "text")
GROUPS = ("group", "category", "subject", "task")
_FORMAT = re.compile(r"Answer format:\s*(\S+(?:/\S+)+)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Choices:
    """A question with its choices.

    Attributes:
        question: what is asked, alone, for a chat template.
        context: the plain text that a choice goes on from.
        choices: the choices, without the blank before them.
        gold: the number of the right one.
        group: subject or category.
        source: `file:line`.
        introduction: stands before everything, once.
        is_instruction: the row is written for a model that follows instructions.
    """

    question: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str
    source: str
    introduction: str = ""
    is_instruction: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        """The choices as they go on from the context: behind a blank, but for languages that write none."""
        return tuple(map(spaced, self.choices))


def read_choices(spec: DataSpec, letters: bool | None) -> Cases:
    """Return the questions of a file.

    Args:
        letters: list the choices in the question and ask for their letters; None goes by the file's layout.

    Raises:
        DataError: with everything that is wrong.
    """
    cases = read_cases(spec, LAYOUTS, "questions with choices")
    lists = letters if letters is not None else cases.layout == "MMLU"
    if not lists:
        return cases
    items = (item for item in cases.items if isinstance(item, Choices))
    return replace(cases, items=tuple(item if item.is_instruction else _lettered(item) for item in items))


def with_shots(items: Sequence[Choices], count: int) -> list[Choices]:
    """Return the questions with `count` solved ones of the same group before each: those that follow it in the file."""
    members: dict[str, list[Choices]] = {}
    place: list[int] = []
    for item in items:
        mine = members.setdefault(item.group, [])
        place.append(len(mine))
        mine.append(item)
    found = []
    for item, at in zip(items, place):
        mine = members[item.group]
        shots = [mine[(at + step) % len(mine)] for step in range(1, min(count, len(mine) - 1) + 1)]
        solved = "".join(f"{s.context}{s.endings[s.gold]}\n\n" for s in shots)
        found.append(replace(item, context=solved + item.context))
    return found


def _lettered(item: Choices) -> Choices:
    names = tuple(string.ascii_uppercase[: len(item.choices)])
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(names, item.choices))
    question = f"{item.question.strip()}\n{listed}"
    return replace(item, question=question, context=f"{question}\nAnswer:", choices=names)


# ---------------------------------------------------------------------- layouts


def _gold(value: object, choices: Sequence[str]) -> int:
    """Return the number of the right choice: written as a number from 0, a letter, or the choice itself."""
    if isinstance(value, bool) or value is None:
        raise CaseFault("The row does not say which choice is right.", 'write {"answer": 0}, a letter, or the choice')
    text = str(value).strip()
    if text.lstrip("-").isdecimal() and 0 <= int(text) < len(choices):
        return int(text)
    letters = string.ascii_uppercase[: len(choices)]
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    if text in choices:
        return list(choices).index(text)
    what = f'The answer "{text}" is none of the {len(choices)} choices.'
    raise CaseFault(what, "write its number from 0, its letter, or the choice itself")


def _listed(value: object) -> tuple[str, ...]:
    if (
        not isinstance(value, list | tuple)
        or len(value) < 2
        or not all(isinstance(c, str | int | float) for c in value)
    ):
        raise CaseFault("The choices are no list of two or more texts.", 'write {"choices": ["…", "…"]}')
    return tuple(str(c).strip() for c in value)


def _general(values: Values, source: str) -> Choices:
    column = next(n for n in ("choices", "options", "endings", "answers") if n in values)
    table, answer = (
        values[column],
        next((values[n] for n in ("answer", "label", "gold", "answerKey") if n in values), None),
    )
    if isinstance(table, Mapping):  # ARC: {"text": […], "label": ["A", …]}
        names = [str(name) for name in table.get("label") or ()]
        choices = _listed(table.get("text"))
        answer = names.index(str(answer)) if str(answer) in names else answer
    else:
        choices = _listed(table)
    question = text_in(values, *QUESTIONS, "ctx", "goal")
    gold = _gold(answer, choices)
    return Choices(question, question.rstrip(), choices, gold, group_in(values, *GROUPS), source)


def _mmlu(values: Values, source: str) -> Choices:
    subject = group_in(values, "subject")
    said = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return replace(_general(values, source), introduction=said)


def _lettered_columns(values: Values, source: str) -> Choices:
    choices = [text_in(values, name) for name in "ABCDEFGH" if values.get(name) not in (None, "")]
    return _general({**values, "choices": choices}, source)


def _truthfulqa(values: Values, source: str) -> Choices:
    question = text_in(values, "Question")
    wrong = [part.strip() for part in text_in(values, "Incorrect Answers").split(";") if part.strip()]
    choices = (text_in(values, "Best Answer").strip(), *wrong)
    if len(choices) < 2:
        raise CaseFault("There is no incorrect answer.", "add one, or remove the row")
    return Choices(question, f"Q: {question.strip()}\nA:", choices, 0, group_in(values, "Category"), source)


def _llm_adapters(values: Values, source: str) -> Choices:
    asked = "\n".join(part for part in (text_in(values, "instruction"), str(values.get("input") or "")) if part)
    answer, output = text_in(values, "answer").strip(), text_in(values, "output").strip()
    named = _FORMAT.search(asked)
    if named is None:
        raise CaseFault("The instruction does not end with the choices.", "write it as: … Answer format: a/b/c")
    begin = output[: -len(answer)] if output.endswith(answer) else "the correct answer is "
    names = tuple(named[1].split("/"))
    if answer not in names:
        raise CaseFault(f'The answer "{answer}" is none of {named[1]}.', "mend or remove the row")
    choices = tuple(begin + name for name in names)
    return Choices(asked, asked, choices, names.index(answer), "", source, is_instruction=True)


def _two_solutions(values: Values, source: str) -> Choices:
    choices = [text_in(values, "sol1"), text_in(values, "sol2")]
    return _general({**values, "choices": choices}, source)


LAYOUTS = (
    Layout(
        "TruthfulQA",
        (("Question",), ("Best Answer",), ("Incorrect Answers",)),
        _truthfulqa,
        '{"Question": "…", "Best Answer": "…", "Incorrect Answers": "…; …"}',
    ),
    Layout(
        "LLM-Adapters",
        (("instruction",), ("output",), ("answer",)),
        _llm_adapters,
        '{"instruction": "… Answer format: a/b", "output": "the correct answer is a", "answer": "a"}',
    ),
    Layout("PIQA", (("goal",), ("sol1",), ("sol2",), ("label",)), _two_solutions, '{"goal": "…", "sol1": "…", …}'),
    Layout(
        "lettered columns",
        (("question",), ("A",), ("B",), ("answer",)),
        _lettered_columns,
        '{"question": "…", "A": "…", "B": "…", "answer": "A"}',
    ),
    Layout(
        "MMLU",
        (("subject",), ("question",), ("choices",), ("answer",)),
        _mmlu,
        '{"subject": "…", "question": "…", "choices": […], "answer": 0}',
    ),
    Layout(
        "own",
        ((*QUESTIONS, "ctx"), ("choices", "options", "endings", "answers"), ("answer", "label", "gold", "answerKey")),
        _general,
        '{"question": "…", "choices": ["…", "…"], "answer": 0}',
    ),
)
"""From the particular to the general; the first that fits counts."""
