"""From a path to rows: which files there are, and what kind each one is.

A file's kind is seen from its first bytes; its name only decides between kinds that look alike. Every row knows its
file and line. What is wrong goes to a ProblemLog, so that one reading finds everything.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data import json_rows, readers, table_rows
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HELD_OUT = re.compile(r"(^|[._-])(test|valid|validation|val|dev|eval|heldout)([._-]|$)")
KINDS = "JSONL, JSON, CSV, TSV, Parquet or TXT (also .gz), or a folder saved by `datasets`"


@dataclass(frozen=True)
class Source:
    """The files behind one `data.path`.

    Attributes:
        files: what is read, in order.
        unused: files in the folder that are not data.
        dataset: the folder itself when it was written by `datasets.save_to_disk`.
    """

    files: tuple[Path, ...]
    unused: tuple[str, ...] = ()
    dataset: Path | None = None


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file.

    Attributes:
        header: whether a CSV or TSV file begins with a header line; without one, columns are named "1", "2", …
        split: the split of a saved `datasets` folder.
    """

    header: bool = True
    split: str | None = None


@dataclass
class Notes:
    """What a reader accepted and the user should know; for the summary."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)


def _data_suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return next((s for s in SUFFIXES if name.endswith(s)), "")


def find(path: Path) -> Source:
    """Return the files behind a path, a folder or a pattern.

    Raises:
        DataError: nothing is there; names what is near.
    """
    if path.is_dir():
        return _find_in_folder(path)
    if path.exists():
        return Source((path,))
    if glob.has_magic(str(path)):
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if files:
            return Source(tuple(files))
        raise DataError(
            Problem("No file matches this pattern.", str(path), f"write a pattern such as {path.parent}/*.jsonl")
        )
    raise DataError(_missing(path))


def _missing(path: Path) -> Problem:
    if not path.parent.is_dir():
        remedy = f"the folder {path.parent} is missing too; paths are relative to the recipe's folder or to this one"
        if path.parent.name and not path.suffix and len(path.parts) >= 2:
            remedy += (
                "; for a data set on the Hugging Face hub, fetch it first: "
                f"hf download {'/'.join(path.parts[-2:])} --repo-type dataset --local-dir data"
            )
        return Problem("There is no such file.", str(path), remedy)
    beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir() or _data_suffix(p))
    near = did_you_mean(path.name, beside)
    there = f"data files in {path.parent}: {', '.join(beside[:10])}" if beside else f"{path.parent} holds no data files"
    return Problem(f"There is no such file.{near}", str(path), there)


def _find_in_folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return Source(tuple(files), dataset=path)
    found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    data = tuple(p for p in found if _data_suffix(p) and p.name not in METADATA)
    if not data:
        folders = sorted(p.name for p in path.iterdir() if p.is_dir())
        deeper = f"; perhaps in one of its folders: {', '.join(folders[:10])}" if folders else ""
        raise DataError(Problem("This folder holds no data files.", str(path), f"give {KINDS}{deeper}"))
    held_out = [p.name for p in data if _HELD_OUT.search(p.name.lower())]
    if held_out and len(held_out) < len(data):
        others = [p for p in data if p.name not in held_out]
        what = f"This folder holds rows that look meant for testing ({', '.join(held_out[:5])}) beside others."
        remedy = f"name what to train on: data.path: {others[0]}, or a pattern such as {path}/train*"
        raise DataError(Problem(what, str(path), remedy))
    return Source(data, unused=tuple(p.name for p in found if p not in data))


def read_file(path: Path, log: ProblemLog, notes: Notes, options: ReadOptions) -> Iterator[Row]:
    """Yield the rows of one file. What cannot be read is logged and left out."""
    name = str(path)
    try:
        head = readers.first_bytes(path)
    except (OSError, EOFError) as error:
        log.add(
            "unreadable",
            f"Cannot read the file: {error}.",
            name,
            "check its permissions, or fetch it again if it was cut off",
        )
        return
    problem = readers.unreadable_kind(head)
    if problem:
        log.add("kind", problem[0], name, problem[1])
        return
    if head.startswith(b"\xef\xbb\xbf"):
        notes.add(f"{path.name} begins with a byte-order mark, which is left out")
    suffix = _data_suffix(path)
    try:
        if head.startswith(b"PAR1"):
            yield from readers.read_parquet(path, log)
        elif suffix in (".csv", ".tsv"):
            yield from table_rows.read_table(path, log, options.header, tabs=suffix == ".tsv")
        elif suffix in (".json", ".jsonl", ".ndjson"):
            yield from json_rows.read_json(path, log, is_lines=suffix != ".json")
        elif suffix == ".txt":
            yield from readers.read_text(path, log)
        elif suffix == ".parquet":
            log.add(
                "kind", "This is not a Parquet file (it does not begin with PAR1).", name, "check how it was written"
            )
        elif head.lstrip()[:1] in (b"{", b"["):
            yield from json_rows.read_json(path, log, is_lines=True)
        else:
            log.add(
                "kind", f'Cannot tell what kind of file this is from its ending "{path.suffix}".', name, f"give {KINDS}"
            )
    except (OSError, EOFError) as error:
        log.add(
            "unreadable", f"Reading broke off: {error}.", name, "the file was cut off or is damaged; fetch it again"
        )


def read_source(
    source: Source, log: ProblemLog, notes: Notes, options: ReadOptions
) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield (name, rows) for each file, or once for a saved `datasets` folder."""
    if source.dataset is not None:
        yield str(source.dataset), readers.read_dataset_folder(source.dataset, log, options.split)
        return
    if options.split is not None:
        raise DataError(
            Problem(
                f'"split: {options.split}" has no effect: only a folder saved by `datasets` has splits.',
                "data.split",
                "remove it, or name the file of that split in data.path",
            )
        )
    for path in source.files:
        yield str(path), read_file(path, log, notes, options)


def read_rows(path: Path, limit: int | None = None) -> Iterator[Row]:
    """Yield the rows of a file, folder or pattern.

    Raises:
        DataError: at the end, with everything that was wrong.
    """
    log = ProblemLog()
    count = 0
    for _, rows in read_source(find(path), log, Notes(), ReadOptions()):
        for row in rows:
            if limit is not None and count >= limit:
                return
            yield row
            count += 1
    log.raise_errors()
