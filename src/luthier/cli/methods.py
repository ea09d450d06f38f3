"""`luthier methods [KIND]`: the methods there are, or one of them explained.

`python -m luthier.cli.methods --write FOLDER` writes the same as the pages of the manual.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from luthier.cli.cards import COMMAND, Card, cards, find_card, pages
from luthier.cli.layout import Cell, print_facts, print_heading, print_table
from luthier.cli.messages import print_json, stdout
from luthier.core.language import Language, language_of
from luthier.run.numbers import setting

if TYPE_CHECKING:
    from rich.console import Console


class _Words(TypedDict):
    """What stands around the cards, in one language."""

    methods: str
    objectives: str
    more: str
    moves: str
    share: str
    share_of: str
    cost: str
    rate: str
    rate_of: str
    paper: str
    when: str
    when_not: str
    principle: str
    fields: str
    columns: tuple[str, ...]
    recipe: str


_ENGLISH: _Words = {
    "methods": "Methods: what is trained",
    "objectives": "Objectives: towards what",
    "more": "luthier methods KIND explains one.",
    "moves": "what moves",
    "share": "typical share",
    "share_of": "{} of the parameters",
    "cost": "memory",
    "rate": "learning rate",
    "rate_of": "{} unless you say otherwise",
    "paper": "paper",
    "when": "when",
    "when_not": "when not",
    "principle": "Principle",
    "fields": "Hyper-parameters",
    "columns": ("key", "default", "values", "what it does"),
    "recipe": "A recipe",
}
_CHINESE: _Words = {
    "methods": "方法：训练什么",
    "objectives": "目标：朝什么方向训练",
    "more": "luthier methods KIND 解释其中一种。",
    "moves": "训练什么",
    "share": "参数占比",
    "share_of": "{}",
    "cost": "内存",
    "rate": "学习率",
    "rate_of": "默认 {}",
    "paper": "论文",
    "when": "何时使用",
    "when_not": "何时不用",
    "principle": "原理",
    "fields": "超参数",
    "columns": ("键", "默认值", "取值", "作用"),
    "recipe": "配方示例",
}


def run(kind: str | None = None, json: bool = False, lang: Language | None = None) -> None:
    """Print the list of methods and objectives, or the card of one.

    Raises:
        RecipeError: there is none of that name.
    """
    language = language_of(lang) if not json or lang else "en"
    words = _CHINESE if language == "zh" else _ENGLISH
    if kind is not None:
        card = find_card(kind, language)
        print_json(card.as_dict()) if json else _print_card(stdout(), card, words)
        return
    methods, objectives = cards("method", language), cards("objective", language)
    if json:
        print_json({"methods": [c.as_dict() for c in methods], "objectives": [c.as_dict() for c in objectives]})
        return
    console = stdout()
    print_heading(console, words["methods"])
    for card in methods:
        _print_entry(console, card, words, ("moves", "typical_share", "when", "cost", "paper"))
    print_heading(console, words["objectives"])
    for card in objectives:
        _print_entry(console, card, words, ("when", "paper"))
    console.print(f"\n{words['more']}", style="dim")


def _print_entry(console: Console, card: Card, words: _Words, keys: Sequence[str]) -> None:
    """Print the few lines that a card has in the list."""
    console.print()
    from rich.text import Text

    console.print(Text.assemble((card.kind, "bold cyan"), "  ", card.summary))
    print_facts(console, _facts(card, words, keys), indent=2)


def _facts(card: Card, words: _Words, keys: Sequence[str]) -> list[tuple[str, Cell]]:
    """Return the named facts of a card with their labels, without what the card does not say."""
    rate = setting(card.learning_rate) if card.learning_rate is not None else ""
    said: dict[str, tuple[str, str, str]] = {
        "moves": (words["moves"], card.moves, ""),
        "typical_share": (words["share"], card.typical_share and words["share_of"].format(card.typical_share), ""),
        "cost": (words["cost"], card.cost, ""),
        "learning_rate": (words["rate"], rate and words["rate_of"].format(rate), ""),
        "paper": (words["paper"], card.paper, ""),
        "when": (words["when"], card.when, "green"),
        "when_not": (words["when_not"], card.when_not, "yellow"),
    }
    return [(label, (text, style)) for label, text, style in (said[key] for key in keys) if text]


def _print_card(console: Console, card: Card, words: _Words) -> None:
    console.print()
    console.print(f"{card.title}  ({card.family}: {card.kind})", style="bold")
    console.print(card.summary)
    console.print()
    keys = ("moves", "typical_share", "cost", "learning_rate", "paper", "when", "when_not")
    print_facts(console, _facts(card, words, keys))
    if card.principle:
        print_heading(console, words["principle"])
        console.print(card.principle)
        console.print(f"\n  {card.equation}", style="cyan")
    if card.fields:
        print_heading(console, words["fields"])
        rows = [((f.name, "bold cyan"), f.default, f.values, f.advice) for f in card.fields]
        print_table(console, words["columns"], rows)
    print_heading(console, words["recipe"])
    console.print("".join(f"  {line}\n" for line in card.example.splitlines()), style="cyan", end="")


def laws_block(page: str) -> str:
    """Return the table that the test suite writes at the end of the index; empty where there is none."""
    start = page.find("<!-- laws -->")
    return page[start:] if start >= 0 else ""


def write_pages(folder: Path) -> list[Path]:
    """Write the pages of the manual and return their paths; pages of methods that are gone are deleted."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        page = folder / name
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        page.write_text(text + laws_block(before), encoding="utf-8")
        written.append(page)
    for page in set(folder.glob("*.md")) - set(written):
        if COMMAND in page.read_text(encoding="utf-8").partition("\n")[0]:
            page.unlink()
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m luthier.cli.methods", description="Write the pages of all methods."
    )
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER")
    for path in write_pages(parser.parse_args().write):
        print(path)
