"""`luthier methods [KIND]`: the methods there are, or one of them explained.

`python -m luthier.cli.methods --write FOLDER` writes the same as the pages of the manual.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.cards import COMMAND, Card, cards, find_card, pages
from luthier.cli.layout import print_facts, print_heading, print_table
from luthier.cli.messages import print_json, stdout
from luthier.run.numbers import setting

if TYPE_CHECKING:
    from rich.console import Console


def run(kind: str | None = None, json: bool = False) -> None:
    """Print the list of methods and objectives, or the card of one.

    Raises:
        RecipeError: there is none of that name.
    """
    if kind is not None:
        card = find_card(kind)
        print_json(card.as_dict()) if json else _print_card(stdout(), card)
        return
    methods, objectives = cards("method"), cards("objective")
    if json:
        print_json({"methods": [c.as_dict() for c in methods], "objectives": [c.as_dict() for c in objectives]})
        return
    console = stdout()
    print_heading(console, "Methods: what is trained")
    rows = [((c.kind, "bold cyan"), c.summary, c.typical_share, setting(c.learning_rate or 0)) for c in methods]
    print_table(console, ["method", "", "share of the parameters", "learning rate"], rows, right=(3,))
    print_heading(console, "Objectives: towards what")
    print_table(console, ["objective", ""], [((c.kind, "bold cyan"), c.summary) for c in objectives])
    console.print("\nluthier methods KIND explains one.", style="dim")


def _print_card(console: Console, card: Card) -> None:
    console.print()
    console.print(f"{card.title}  ({card.family}: {card.kind})", style="bold")
    console.print(card.summary)
    rate = setting(card.learning_rate) if card.learning_rate is not None else ""
    facts = [
        ("what moves", card.moves),
        ("typical share", f"{card.typical_share} of the parameters" if card.typical_share else ""),
        ("memory", card.cost),
        ("learning rate", f"{rate} unless you say otherwise" if rate else ""),
        ("paper", card.paper),
        ("when", (card.when, "green")),
        ("when not", (card.when_not, "yellow")),
    ]
    console.print()
    print_facts(console, [fact for fact in facts if fact[1] and fact[1][0]])
    if card.principle:
        print_heading(console, "Principle")
        console.print(card.principle)
        console.print(f"\n  {card.equation}", style="cyan")
    if card.fields:
        print_heading(console, "Hyper-parameters")
        rows = [((f.name, "bold cyan"), f.default, f.values, f.advice) for f in card.fields]
        print_table(console, ["key", "default", "values", "what it does"], rows)
    print_heading(console, "A recipe")
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
