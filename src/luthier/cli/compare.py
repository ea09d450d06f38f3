"""`luthier compare FILE | RUN RUN …`: variants of a recipe, or runs that exist, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.layout import Cell, print_table
from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import Failure, Problem, UserError
from luthier.run.experiments.carry_out import carry_out, compare_runs, write_table
from luthier.run.experiments.contest import read_contest

if TYPE_CHECKING:
    from luthier.run.experiments.table import Table

_ENDINGS = (".yaml", ".yml", ".json")


def run(words: Sequence[str], out: Path | None = None, json: bool = False, workers: int | None = None) -> None:
    """Carry out a comparison, or lay existing runs side by side.

    Raises:
        UserError: the file, one of its variants, or one of the runs is wrong.
        Failure: a variant broke; the table has the others.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    targets = [Path(word) for word in words if word not in overrides]
    if any(target.suffix in _ENDINGS for target in targets):
        if len(targets) > 1:
            remedy = "compare one file, or several runs"
            raise UserError(Problem("A file of variants is compared alone.", str(targets[1]), remedy))
        contest = read_contest(targets[0], overrides)
        place = out or Path("runs") / targets[0].stem
        console = stderr()
        table = carry_out(contest, place, console.print, workers)
    else:
        if not targets or overrides:
            remedy = "name runs, or a file with variants such as examples/all-methods.yaml"
            raise UserError(Problem("There is nothing to compare.", " ".join(words) or "luthier compare", remedy))
        table, place = compare_runs(targets), out
        if out is not None:
            write_table(table, out)
    _show(table, place, json)
    broken = [row.name for row in table.rows if row.failures]
    if broken and not json:
        raise Failure(f"{len(broken)} of {len(table.rows)} variants failed: {', '.join(broken)}.")


def _show(table: Table, place: Path | None, as_json: bool) -> None:
    if as_json:
        print_json({**table.as_dict(), "out": str(place) if place else None})
        return
    console = stdout()
    header = table.header()
    rows: list[list[Cell]] = [list(table.cells(row)) for row in table.rows]
    print_table(console, header, rows, right=tuple(range(1, len(header))))
    for said in table.differences:
        console.print(f"not equal: {said}")
    if place is not None:
        console.print()
        console.print(str(place / "comparison.md"))
        console.print(str(place / "comparison.html"))
