"""Tables and headed paragraphs: wrapped and coloured on a terminal, plain lines that are never wrapped elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | tuple[str, str]
"""A text, or a text and its rich style."""


def print_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int] = (), indent: int = 0
) -> None:
    """Print rows under a header; `right` names the columns that are aligned to the right."""
    if console.is_terminal:
        _print_rich_table(console, header, rows, right, indent)
        return
    from rich.cells import cell_len

    texts = (
        [list(header), *([_text(cell) for cell in row] for row in rows)]
        if any(header)
        else [[_text(cell) for cell in row] for row in rows]
    )
    widths = [max(cell_len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        padded = []
        for i, (text, width) in enumerate(zip(row, widths)):
            space = " " * (width - cell_len(text))
            padded.append(space + text if i in right else text + space)
        console.print(" " * indent + "  ".join(padded).rstrip())


def print_facts(console: Console, facts: Sequence[tuple[str, Cell]], indent: int = 0) -> None:
    """Print labels and values, the labels in one column."""
    print_table(console, ["", ""], [((label, "dim"), value) for label, value in facts], indent=indent)


def print_heading(console: Console, text: str) -> None:
    """Print a heading with an empty line above."""
    console.print()
    console.print(text, style="bold")


def _print_rich_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int], indent: int
) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(header), header_style="dim")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(cell[0], style=cell[1]) for cell in row))
    console.print(Padding(table, (0, 0, 0, indent)))


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]
