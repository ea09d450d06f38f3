"""A cleaned copy of a data set, and a log of what went and why. Nothing is ever removed silently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from luthier.core.rundir import disk_error
from luthier.data import sources
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.spec import DataSpec, resolve_path
from luthier.doctor.base import Finding, place
from luthier.doctor.examine import Diagnosis


@dataclass(frozen=True)
class Fixed:
    """What a cleaned copy holds. `left_out`: rows by the kind of finding."""

    path: Path
    log: Path
    kept: int
    left_out: Counter[str]


def write_fixed(spec: DataSpec, found: Diagnosis, out: Path, base: Path | None = None) -> Fixed:
    """Write the rows without a finding that removes them as JSONL, and beside them what went and why.

    Raises:
        RunError: the place cannot be written.
    """
    why: dict[int, Finding] = {}
    for finding in found.findings:
        if finding.removes and finding.row >= 0:
            why.setdefault(finding.row, finding)
    log = out.with_name(out.name + ".removed.jsonl")
    kept, counts = 0, Counter[str]()
    try:
        with ExitStack() as stack:
            clean, removed = (stack.enter_context(_beside(path)) for path in (out, log))
            for finding in (f for f in found.findings if f.row < 0 and f.removes and f.line):
                counts[finding.kind] += 1
                _write(removed, {**_said(finding), "row": None})  # no row could be made of these lines
            for number, row in enumerate(_raw(spec, base)):
                kind = found.removals.get(number)
                if kind is None:
                    kept += 1
                    _write(clean, row.value)
                else:
                    counts[kind] += 1
                    _write(removed, {**_reason(why.get(number), kind, row), "row": row.value})
        for path in (out, log):
            _part(path).replace(path)
    except OSError as error:
        raise disk_error(out, error) from error
    finally:
        for path in (out, log):
            _part(path).unlink(missing_ok=True)
    return Fixed(out, log, kept, counts)


def _beside(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _part(path).open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write(stream: TextIO, row: object) -> None:
    stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _said(finding: Finding) -> dict[str, object]:
    return {"file": finding.file, "line": finding.line, "kind": finding.kind, "message": finding.message}


def _reason(finding: Finding | None, kind: str, row: Row) -> dict[str, object]:
    """Return why a row goes; of kinds with too many findings to keep each, the kind alone."""
    if finding is not None:
        return _said(finding)
    file, line = place(row.source)
    return {"file": file, "line": line, "kind": kind, "message": f"As others of the kind {kind.replace('_', ' ')}."}


def _raw(spec: DataSpec, base: Path | None) -> Iterator[Row]:
    """Yield the rows as they stand, in the order in which they were examined."""
    options = sources.ReadOptions(header=not any(isinstance(c, int) for c in spec.columns.values()), split=spec.split)
    count = 0
    for _, rows in sources.read_source(
        sources.find(resolve_path(spec.path, base)), ProblemLog(), sources.Notes(), options
    ):
        for row in rows:
            if spec.limit is not None and count >= spec.limit:
                return
            count += 1
            yield row
