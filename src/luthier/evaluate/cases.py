"""Cases out of files as they are: recognised by their columns, every one checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data import sources
from luthier.data.load import Objective, Records, load_records
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.spec import DataSpec, resolve_path
from luthier.evaluate.tasks.base import Cases

Values = Mapping[str, object]


class CaseFault(Exception):
    """A row that is no case: what is wrong with it, and what to write instead."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


@dataclass(frozen=True)
class Layout:
    """One way in which files write cases.

    Attributes:
        name: of the data set that is known for it.
        needs: the columns by which it is recognised; of each group one has to be there.
        build: makes a case of a row.
        example: a row, for messages.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    build: Callable[[Values, str], object]
    example: str

    def fits(self, present: Sequence[str]) -> bool:
        """Return whether the columns are there."""
        return all(any(name in present for name in group) for group in self.needs)


def read_rows(spec: DataSpec) -> tuple[list[Row], tuple[Path, ...], list[str]]:
    """Return the rows with the columns that `spec` renames under their new names too, the files, and notes.

    Raises:
        DataError: with everything that is wrong with the files.
    """
    source = sources.find(resolve_path(spec.path))
    log, notes = ProblemLog(), sources.Notes()
    has_header = not any(isinstance(column, int) for column in spec.columns.values())
    rows: list[Row] = []
    for _, part in sources.read_source(source, log, notes, sources.ReadOptions(header=has_header, split=spec.split)):
        for row in part:
            if spec.limit is not None and len(rows) >= spec.limit:
                break
            rows.append(row)
    if not rows and not log.total:
        log.add("no rows", "There are no rows.", spec.path, "give a file with at least one row")
    log.raise_errors()
    named = {role: str(column) for role, column in spec.columns.items()}
    missing = [column for column in named.values() if column not in rows[0].value]
    if missing:
        what = f'There is no column "{missing[0]}".{did_you_mean(missing[0], rows[0].value)}'
        raise DataError(Problem(what, rows[0].source, f"the columns are: {', '.join(rows[0].value)}"))
    if named:
        rows = [Row({**row.value, **{r: row.value.get(c) for r, c in named.items()}}, row.source) for row in rows]
    return rows, source.files, notes.lines


def read_cases(spec: DataSpec, layouts: Sequence[Layout], what: str) -> Cases:
    """Return the cases of a file in the first layout that fits its columns.

    Args:
        what: what the cases are, for messages.

    Raises:
        DataError: with everything that is wrong, 20 problems shown and all counted.
    """
    if spec.format != "auto":
        remedy = "leave format out: it is recognised by the columns"
        raise DataError(Problem(f"format: {spec.format} has no effect on {what}.", "data.format", remedy))
    rows, files, notes = read_rows(spec)
    present = list(dict.fromkeys(name for row in rows[:100] for name in row.value))
    layout = next((layout for layout in layouts if layout.fits(present)), None)
    if layout is None:
        said = f"These rows are no {what}: their columns are {', '.join(present)}."
        known = "; ".join(f"{layout.example} ({layout.name})" for layout in layouts)
        roles = ", ".join(f"{group[0]}: …" for group in layouts[-1].needs)
        raise DataError(Problem(said, rows[0].source, f"write one of: {known}; or name them: columns: {{{roles}}}"))
    log, items = ProblemLog(), []
    for row in rows:
        try:
            items.append(layout.build(row.value, row.source))
        except CaseFault as fault:
            log.add("case", fault.what, row.source, fault.remedy)
    log.raise_errors()
    return Cases(tuple(items), files, layout.name, tuple(notes))


def read_records(spec: DataSpec, form: Objective = "sft") -> Cases:
    """Return rows with prompts and answers, texts or labelled texts, as training reads them.

    Raises:
        DataError: with everything that is wrong.
    """
    found: Records = load_records(spec, objective=form)
    warned = [" ".join(str(problem).split()) for problem in found.problems]
    notes = found.counts["notes"]
    said = [str(note) for note in notes] if isinstance(notes, list) else []
    return Cases(found.records, found.files, found.format, (*said, *warned))


def text_in(values: Values, *names: str) -> str:
    """Return the text of the first of the columns that is there.

    Raises:
        CaseFault: it is empty or no text.
    """
    name = next((n for n in names if values.get(n) is not None), names[0])
    value = values.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise CaseFault(f'The column "{name}" holds no text.', f'write {{"{name}": "…"}}, or remove the row')
    return value


def group_in(values: Values, *names: str) -> str:
    """Return the group that a row names, or nothing."""
    value = next((values[n] for n in names if values.get(n) is not None), "")
    return str(value)
