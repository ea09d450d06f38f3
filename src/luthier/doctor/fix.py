"""A cleaned copy of a data set, and a log of what went and why. Nothing is ever removed silently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.core.rundir import write_atomic
from luthier.data import sources
from luthier.data.problems import ProblemLog
from luthier.data.spec import DataSpec, resolve_path
from luthier.doctor.base import Finding
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
    kept, removed, counts = [], [], Counter[str]()
    for number, row in enumerate(_raw(spec, base)):
        reason = why.get(number)
        line = json.dumps(row, ensure_ascii=False)
        if reason is None:
            kept.append(line)
        else:
            counts[reason.kind] += 1
            said = {"file": reason.file, "line": reason.line, "kind": reason.kind, "message": reason.message}
            removed.append(json.dumps({**said, "row": row}, ensure_ascii=False))
    write_atomic(out, "".join(line + "\n" for line in kept))
    write_atomic(log, "".join(line + "\n" for line in removed))
    return Fixed(out, log, len(kept), counts)


def _raw(spec: DataSpec, base: Path | None) -> Iterator[dict[str, object]]:
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
            yield row.value
