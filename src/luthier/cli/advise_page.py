"""How advice looks in the terminal: what was seen, the choice with its reasons, the stages, the others, what to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.advise.advice import Advice, machine_words, model_words
from luthier.advise.facts import count, hours, size
from luthier.advise.notes import runs_today
from luthier.advise.rank import Ranked
from luthier.advise.rules.base import Reason
from luthier.cli.layout import print_facts, print_heading, print_table
from luthier.cli.messages import stdout
from luthier.core.language import Language

if TYPE_CHECKING:
    from rich.console import Console

_MOST_REASONS = 5
_WORDS = {
    "seen": ("What was seen", "看到的情况"),
    "model": ("model", "模型"),
    "data": ("data", "数据"),
    "machine": ("machine", "机器"),
    "assumed": ("assumed", "假定"),
    "choice": ("First choice", "首选"),
    "none": ("Nothing fits", "都放不下"),
    "stages": ("Stages", "阶段"),
    "others": ("The others with their points, and why not", "其他方法（附分数）及未选的理由"),
    "mind": ("To keep in mind", "注意事项"),
    "next": ("Next", "下一步"),
    "needed": ("first needed", "还缺"),
    "tie": (
        "As many points as {0}: the simpler and better known stands first.",
        "与 {0} 分数相同：更简单、更常用的排在前面。",
    ),
    "federated": ("federated", "联邦"),
    "device": ("on the users' devices", "在用户设备上"),
    "here": ("here", "本机"),
    "where": ("where", "地点"),
    "notyet": ("not in Luthier yet; the recipe runs on this machine", "Luthier 尚不支持；配方在本机运行"),
    "write": ("write the recipes with --out DIR", "用 --out DIR 写出配方"),
}


def show(advice: Advice, language: Language, paths: Mapping[str, Path]) -> None:
    """Print advice for people."""
    say = 0 if language == "en" else 1
    console = stdout()
    _seen(console, advice, say)
    _choice(console, advice, say)
    if advice.steps:
        print_heading(console, _WORDS["stages"][say])
        for number, step in enumerate(advice.steps, start=1):
            _line(console, f"{number}. {step.objective}", f"{step.why[say]} ({step.source})")
            if step.missing is not None:
                _line(console, "", f"{_WORDS['needed'][say]}: {step.missing[say]}", "yellow")
    _others(console, advice, say)
    print_heading(console, _WORDS["mind"][say])
    for note in advice.notes:
        _line(console, "·", f"{note.text[say]} ({note.source[say]})")
    _next(console, advice, say, paths)


def _seen(console: Console, advice: Advice, say: int) -> None:
    s = advice.situation
    print_heading(console, _WORDS["seen"][say])
    facts = [(_WORDS["model"][say], model_words(s))]
    for data in s.data:
        languages = ", ".join(f"{name} {share:.0%}" for name, share in list(data.languages.items())[:3])
        words = f"{data.path}: {data.rows:,} × {data.format}, ~{data.median_tokens} ({data.longest_tokens:,}) tokens"
        words += f", {languages}" if languages else ""
        words += f", {data.duplicates:.0%} duplicates" if data.duplicates >= 0.005 else ""
        facts.append((_WORDS["data"][say], words))
    facts.append((_WORDS["machine"][say], machine_words(s)))
    facts += [(_WORDS["assumed"][say], words[say]) for words in s.assumed]
    print_facts(console, facts, indent=2)


def _choice(console: Console, advice: Advice, say: int) -> None:
    s, first = advice.situation, advice.methods[0]
    if advice.choice is None:
        print_heading(console, _WORDS["none"][say])
        _line(console, first.method, _said(first.decisive, say))
        return
    stages = " → ".join(step.objective for step in advice.steps)
    print_heading(console, f"{_WORDS['choice'][say]}: {first.method}" + (f" ({stages})" if stages else ""))
    need = s.needs[first.method]
    _line(
        console,
        "",
        f"{size(need.peak_bytes)}, {count(need.trained)} parameters, {size(need.file_bytes)}, ~{hours(need.hours)}",
    )
    for reason in _weightiest(first):
        _line(console, f"{reason.points:+g}", _said(reason, say), "green" if reason.points > 0 else "yellow")
    if first.tied_with:
        _line(console, "=", _WORDS["tie"][say].format(", ".join(first.tied_with)))
    if advice.where != "here":
        words = _WORDS[advice.where][say]
        words += "" if runs_today(advice.where) else f" ({_WORDS['notyet'][say]})"
        _line(console, _WORDS["where"][say], words)


def _others(console: Console, advice: Advice, say: int) -> None:
    """Print the others, those together that one reason decides about; what is out of the question has no points."""
    print_heading(console, _WORDS["others"][say])
    together: dict[str, list[Ranked]] = {}
    for ranked in advice.methods[1:]:
        together.setdefault(_said(ranked.decisive, say), []).append(ranked)
    for reason, methods in together.items():
        named = [m.method if m.forbidden else f"{m.method} {m.points:g}" for m in methods]
        near = any(m.verdict == "possible" for m in methods)
        print_table(console, [""], [((", ".join(named), "bold cyan" if near else "bold dim"),)], indent=2)
        print_table(console, [""], [(reason,)], indent=6)


def _next(console: Console, advice: Advice, say: int, paths: Mapping[str, Path]) -> None:
    if not advice.recipes:
        return
    print_heading(console, _WORDS["next"][say])
    if not paths:
        _line(console, "·", _WORDS["write"][say])
    for written in advice.recipes:
        if written.name in paths:
            _line(console, "$", f"luthier train {paths[written.name]}    # {written.why[say]}")


def _weightiest(ranked: Ranked) -> list[Reason]:
    return [reason for reason in ranked.reasons if reason.points][:_MOST_REASONS]


def _said(reason: Reason, say: int) -> str:
    return f"{reason.text[say]} ({reason.source[say]})"


def _line(console: Console, mark: str, text: str, style: str = "bold") -> None:
    """Print a mark and a text beside it; on a terminal the text is wrapped in its own column."""
    print_table(console, ["", ""], [((f"{mark:<5}", style), text)], indent=2)
