"""What `luthier advise` asks in a terminal when it was not told: four questions; Enter gives the usual answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.advise.situation import PURPOSES, Purpose
from luthier.cli.messages import stdout
from luthier.core.errors import Problem, UserError, did_you_mean
from luthier.core.language import Language

PURPOSE_WORDS: dict[Purpose, tuple[str, str]] = {
    "style": ("style or tone of answers", "回答的风格或语气"),
    "domain": ("knowledge of a domain", "领域知识"),
    "task": ("a new task", "新任务"),
    "classification": ("classes or numbers for texts", "文本分类或打分"),
    "alignment": ("alignment with preferences", "与偏好对齐"),
    "tasks": ("several tasks in one model", "一个模型做多个任务"),
    "domains": ("several domains in one model", "一个模型覆盖多个领域"),
    "languages": ("several languages", "多种语言"),
    "verifiable": ("answers that a program can check", "可由程序验证的答案"),
    "prototype": ("a quick prototype", "快速原型"),
    "production": ("a model for production", "生产环境"),
}
_ALSO: dict[str, Purpose] = {
    "domain_knowledge": "domain",
    "knowledge": "domain",
    "new_task": "task",
    "classify": "classification",
    "align": "alignment",
    "preference": "alignment",
    "preferences": "alignment",
    "several_tasks": "tasks",
    "multi_task": "tasks",
    "multitask": "tasks",
    "several_domains": "domains",
    "several_languages": "languages",
    "multilingual": "languages",
    "reasoning": "verifiable",
    "rewards": "verifiable",
    "quick_prototype": "prototype",
}


@dataclass
class Told:
    """What the command line said, and what the questions may fill in."""

    model: str | None
    data: list[str]
    purposes: frozenset[Purpose]
    private: bool | None


def purposes_of(texts: Sequence[str]) -> frozenset[Purpose]:
    """Return the purposes that words such as `style,alignment` name.

    Raises:
        UserError: with every word that names none.
    """
    found: set[Purpose] = set()
    problems = []
    for word in (
        part.strip().lower().replace("-", "_").replace(" ", "_") for text in texts for part in text.split(",")
    ):
        if word in PURPOSES:
            found.add(word)
        elif word in _ALSO:
            found.add(_ALSO[word])
        elif word:
            near = did_you_mean(word, (*PURPOSES, *_ALSO))
            what = f'There is no purpose "{word}".{near}'
            problems.append(Problem(what, "luthier advise --purpose", f"choose among: {', '.join(PURPOSES)}"))
    if problems:
        raise UserError(*problems)
    return frozenset(found)


def may_ask(as_json: bool) -> bool:
    """Return whether there is a person at a terminal to be asked."""
    return not as_json and sys.stdin.isatty() and sys.stdout.isatty()


def ask(told: Told, language: Language) -> None:
    """Ask for what is missing, and fill it in."""
    say = 0 if language == "en" else 1
    if told.model is None:
        words = ("Which model? A folder, a hub id, or starter", "哪个模型？文件夹、hub 名称或 starter")
        told.model = _line(words[say], "starter")
    while not told.data:
        words = (
            "Which data? A file, a folder, starter:NAME, or Enter for none yet",
            "哪些数据？文件、文件夹、starter:NAME；还没有就直接回车",
        )
        answer = _line(words[say], "")
        if not answer:
            break
        missing = [name for name in answer.split() if not name.startswith("starter:") and not Path(name).exists()]
        if missing:
            words = (f"There is no {missing[0]}.", f"没有 {missing[0]}。")
            stdout().print(words[say], style="yellow")
            continue
        told.data = answer.split()
    if not told.purposes:
        told.purposes = _ask_purposes(say)
    if told.private is None:
        words = ("Must the data stay with those who hold them? y or n", "数据必须留在持有者手中吗？y 或 n")
        told.private = _line(words[say], "n").lower().startswith(("y", "是"))


def _ask_purposes(say: int) -> frozenset[Purpose]:
    console = stdout()
    for number, (purpose, words) in enumerate(PURPOSE_WORDS.items(), start=1):
        console.print(f"  {number:>2}  {purpose:15} {words[say]}", markup=False, highlight=False)
    words = ("What is it for? Numbers or words, with commas", "用途是什么？编号或单词，用逗号分隔")
    while True:
        answer = _line(words[say], "task").replace("，", ",").replace(" ", ",")
        names = [
            list(PURPOSES)[int(w) - 1] if w.isdigit() and 0 < int(w) <= len(PURPOSES) else w for w in answer.split(",")
        ]
        try:
            return purposes_of(names)
        except UserError as error:
            console.print(str(error.problems[0].what), style="yellow")


def _line(question: str, usual: str) -> str:
    console = stdout()
    shown = f"{question} [{usual}]: " if usual else f"{question}: "
    return console.input(shown, markup=False).strip() or usual
