"""`luthier doctor DATA`: what is wrong with a data set, where, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.layout import Cell, print_facts, print_heading, print_table
from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import Problem, UserError
from luthier.core.rundir import write_atomic
from luthier.data.spec import DataSpec
from luthier.doctor.checks import all_checks
from luthier.doctor.checks.lengths import Lengths
from luthier.doctor.checks.toxic import read_words
from luthier.doctor.examine import Diagnosis, examine
from luthier.doctor.fix import Fixed, write_fixed
from luthier.doctor.page import page
from luthier.doctor.with_model import Reader, look_with_model

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_OF_A_KIND = 3
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class WithModel:
    """A model whose tokens, template and expectations the data are held against.

    Attributes:
        target: a run, a folder, a hub id, or starter.
        perplexity: rows that it runs on at most; 0 leaves it at tokens.
        chat_template: in place of its own.
    """

    target: str
    perplexity: int
    chat_template: str | None = None


def run(
    data: str,
    evaluation: str | None = None,
    fix: Path | None = None,
    html: Path | None = None,
    max_length: int | None = None,
    columns: str | None = None,
    words: Path | None = None,
    limit: int | None = None,
    model: WithModel | None = None,
    json: bool = False,
) -> None:
    """Examine a data set, print what was found, and write what was asked for.

    Raises:
        DataError: there are no such data, or they fit no known format.
        UserError: the place of the cleaned copy is that of the data.
    """
    parts = columns_of(columns)
    spec = DataSpec(path=data, columns=parts, limit=limit)
    if fix is not None and fix.exists() and Path(data).exists() and fix.samefile(data):
        raise UserError(Problem("The cleaned copy would overwrite the data.", str(fix), "give --fix another name"))
    checks = all_checks(max_length, read_words(words) if words is not None else ())
    if model is not None:  # whose tokens are counted, not estimated
        checks = [check for check in checks if not isinstance(check, Lengths)]
    console = stderr()
    with console.status("reading …") as status:
        reader = None if model is None else open_reader(model, max_length)
        found = examine(
            spec,
            DataSpec(path=evaluation, columns=parts) if evaluation is not None else None,
            checks=checks,
            progress=lambda rows: status.update(f"{rows:,} rows"),
        )
        if reader is not None:
            look_with_model(spec, reader, found, progress=status.update)
    fixed = write_fixed(spec, found, fix) if fix is not None else None
    if html is not None:
        write_atomic(html, page(found, data))
    if json:
        print_json({**found.as_dict(), **({"fixed": _fixed(fixed)} if fixed is not None else {})})
        return
    _show(stdout(), found, data, fixed, html)


def open_reader(wanted: WithModel, max_length: int | None = None) -> Reader:
    """Open a model for the doctor: its weights only where it is to run.

    Raises:
        ModelError, RunError: it is not there, or it is no model that writes text.
    """
    from luthier.run.examine import DEFAULT_MAX_LENGTH
    from luthier.run.opened import is_run, open_target, target_labels

    if target_labels(wanted.target) is not None:
        remedy = "give a language model: the base that it was trained from"
        raise UserError(Problem("A classifier finds no text likely or unlikely.", wanted.target, remedy))
    if wanted.perplexity or is_run(wanted.target):
        model, recipe = open_target(wanted.target)
        context = min(model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
        longest = max_length or (recipe.max_length if recipe is not None else None) or context
        kept = model if wanted.perplexity else None
        return Reader(
            wanted.target, model.tokenizer, longest, kept, wanted.perplexity, chat_template=wanted.chat_template
        )
    from luthier.models.files import inspect_model
    from luthier.models.load import check_folder, load_tokenizer

    tokenizer = load_tokenizer(check_folder(wanted.target))
    context = min(inspect_model(wanted.target)[0].context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    return Reader(wanted.target, tokenizer, max_length or context, chat_template=wanted.chat_template)


def columns_of(said: str | None) -> dict[str, str | int]:
    """Return which column plays which part: `text=1,label=2` or `prompt=Frage,answer=Antwort`.

    Raises:
        UserError: it is written otherwise.
    """
    parts = [part.strip().partition("=") for part in said.split(",")] if said else []
    if not all(field.strip() and column.strip() for field, _, column in parts):
        raise UserError(Problem(f'--columns "{said}" is not read.', "--columns", "write PART=COLUMN,PART=COLUMN"))
    return {field.strip(): int(column) if column.strip().isdecimal() else column.strip() for field, _, column in parts}


def _fixed(fixed: Fixed) -> dict[str, object]:
    return {"path": str(fixed.path), "log": str(fixed.log), "kept": fixed.kept, "left_out": dict(fixed.left_out)}


def _show(console: Console, found: Diagnosis, data: str, fixed: Fixed | None, html: Path | None) -> None:
    facts: list[tuple[str, Cell]] = [
        ("data", f"{found.rows:,} rows of {data}, read as {found.format}"),
        ("looked for", ", ".join(found.looked_for)),
        *(("note", note) for note in found.notes),
    ]
    if found.scripts:
        total = found.scripts.total()
        facts.append(("written in", ", ".join(f"{n} {c / total:.0%}" for n, c in found.scripts.most_common(4))))
    print_facts(console, facts)
    if not found.findings:
        console.print("\nNothing was found.", style="green")
    for kind, count in found.counts.most_common():
        here = [finding for finding in found.findings if finding.kind == kind]
        print_heading(console, f"{kind.replace('_', ' ')}: {count:,}")
        rows: list[list[Cell]] = []
        for finding in here[:SHOWN_OF_A_KIND]:
            where = f"{finding.file}:{finding.line}" if finding.line else finding.file or data
            rows.append([(where, _COLOURS[finding.severity]), finding.message])
        print_table(console, ["", ""], rows)
        more = f" ({count - len(rows):,} more)" if count > len(rows) else ""
        console.print(f"  → {here[0].remedy}{more}", style="dim")
    console.print()
    if fixed is not None:
        out = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in fixed.left_out.most_common())
        left = f" and left out {fixed.left_out.total():,} ({out})" if out else ""
        console.print(f"{fixed.path}: kept {fixed.kept:,} rows{left}; {fixed.log} has each of them with the reason")
    elif any(finding.removes for finding in found.findings):
        console.print("luthier doctor DATA --fix OUT writes a cleaned copy, and what went and why", style="dim")
    if html is not None:
        console.print(str(html))
