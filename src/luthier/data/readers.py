"""One reader per kind of file. Each yields rows with their line and logs what it cannot read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from luthier.core.errors import DataError, MissingExtra, Problem, did_you_mean
from luthier.data.problems import ProblemLog

MAX_LINE_BYTES = 64 * 2**20
DOCUMENT_END = "<|endoftext|>"
WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset", "instances")

# First bytes of files that people hand over by mistake, with what to do.
FOREIGN = (
    (b"version https://git-lfs", "This is a git-LFS pointer, not the data themselves.", "fetch the file: git lfs pull"),
    (b"PK\x03\x04", "This is a zip archive (an .xlsx file is one too).", "unpack it, or save the table as CSV"),
    (b"\x28\xb5\x2f\xfd", "This file is compressed with zstd.", "unpack it: zstd -d FILE"),
    (b"\xfd7zXZ", "This file is compressed with xz.", "unpack it: xz -d FILE"),
    (b"BZh", "This file is compressed with bzip2.", "unpack it: bunzip2 FILE"),
    (b"ARROW1", "This is a bare Arrow file.", "give the folder that `datasets` saved, or write Parquet"),
    (b"<!DOCTYPE", "This is a web page, not data.", "download the raw file"),
    (b"<html", "This is a web page, not data.", "download the raw file"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file. `source` is `file:line`, or `file:row number` for Parquet."""

    value: dict[str, object]
    source: str


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacking gzip (seen from its content, whatever its name)."""
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else path.open("rb")  # type: ignore[return-value]


def first_bytes(path: Path) -> bytes:
    """Return the first 4 KiB of content."""
    with open_bytes(path) as stream:
        return stream.read(4096)


def unreadable_kind(head: bytes) -> tuple[str, str] | None:
    """Return what is wrong and the remedy when the first bytes show that no reader can help."""
    if not head.strip():
        return "The file is empty.", "give a file with at least one row"
    if (
        head[:2] in (b"\xff\xfe", b"\xfe\xff")
        or head[1::2].count(0) > len(head) // 4
        or head[::2].count(0) > len(head) // 4
    ):
        return "The file is encoded as UTF-16, not UTF-8.", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
    return next(((what, remedy) for magic, what, remedy in FOREIGN if head.startswith(magic)), None)


def _encoding_remedy(raw: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8, for the iconv command."""
    try:
        is_chinese = any("\u4e00" <= c <= "\u9fff" for c in raw.decode("gb18030"))
    except UnicodeDecodeError:
        is_chinese = False
    name = "GB18030" if is_chinese else "LATIN1"
    return f"convert it: iconv -f {name} -t UTF-8 FILE > NEW"


def _decode(raw: bytes, path: Path, log: ProblemLog, line: int = 1, offset: int = 0) -> str | None:
    """Decode UTF-8, logging where it is not. `line` and `offset` say where `raw` begins in the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + raw.count(b"\n", 0, error.start)
        found = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        log.add("encoding", f"The text is not UTF-8 ({found}).", f"{path}:{at}", _encoding_remedy(raw))
        return None


def _whole_text(path: Path, log: ProblemLog) -> str | None:
    with open_bytes(path) as stream:
        raw = stream.read()
    text = _decode(raw, path, log)
    if text is not None and "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        log.add("nul", "The text contains NUL bytes.", f"{path}:{line}", r"remove them: tr -d '\000' < FILE > NEW")
        return None
    return None if text is None else text.removeprefix("\ufeff")


# ---- JSON -----------------------------------------------------------------------------------------------------------


def read_json(path: Path, log: ProblemLog, is_lines: bool) -> Iterator[Row]:
    """Read JSONL or JSON: which of them is seen from the content, whatever the ending says."""
    with open_bytes(path) as stream:
        head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        stream.seek(0)
        first_line = next(
            (ln for ln in iter(lambda: stream.readline(MAX_LINE_BYTES), b"") if ln.strip(b"\xef\xbb\xbf \t\r\n")), b""
        )
        has_more = any(ln.strip() for ln in iter(lambda: stream.readline(MAX_LINE_BYTES), b""))
    whole_first_line = _is_json_object(first_line)
    if head.startswith(b"[") and not (is_lines and has_more and _is_json(first_line)):
        yield from _read_json_array(path, log)
    elif whole_first_line and has_more:
        yield from _read_json_lines(path, log)
    elif whole_first_line:
        yield from _read_json_object(path, log)
    elif head.startswith(b"{") and first_line.strip() in (b"{", b"\xef\xbb\xbf{") or not is_lines:
        yield from _read_json_object(path, log)
    else:
        yield from _read_json_lines(path, log)


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_json_object(raw: bytes) -> bool:
    return raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and _is_json(raw)


def _snippet(text: str, at: int) -> str:
    start = max(0, at - 20)
    return ("…" if start else "") + text[start : at + 20].replace("\n", "⏎") + ("…" if at + 20 < len(text) else "")


def _log_json_error(error: json.JSONDecodeError, path: Path, line: int, log: ProblemLog, text: str) -> None:
    where = f"{path}:{line}"
    log.add(
        "json",
        f"Not JSON: {error.msg} at column {error.colno}, near «{_snippet(text, error.pos)}».",
        where,
        "mend or remove the row",
    )


def _as_row(value: object, path: Path, line: int, log: ProblemLog) -> Row | None:
    if isinstance(value, dict):
        return Row(value, f"{path}:{line}")
    got = _kind_of(value)
    log.add(
        "not an object",
        f"Expected an object with named columns, got {got}.",
        f"{path}:{line}",
        'write {"text": "…"} or the like',
    )
    return None


def _kind_of(value: object) -> str:
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _read_json_lines(path: Path, log: ProblemLog) -> Iterator[Row]:
    offset = 0
    with open_bytes(path) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            start, offset = offset, offset + len(raw)
            if len(raw) > MAX_LINE_BYTES:
                what = f"The line is longer than {MAX_LINE_BYTES // 2**20} MiB."
                log.add(
                    "long line", what, f"{path}:{number}", "one row is one line; split the document into several rows"
                )
                return
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            if b"\0" in raw:
                where = f"{path}:{number}"
                what = f"The line contains a NUL byte at offset {start + raw.index(0)}."
                log.add("nul", what, where, r"remove them: tr -d '\000' < FILE > NEW")
                continue
            text = _decode(raw, path, log, number, start)
            if text is None:
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                _log_json_error(error, path, number, log, text.rstrip("\n"))
            except RecursionError:
                log.add("json", "The row is nested too deeply.", f"{path}:{number}", "remove the row")
            else:
                row = _as_row(value, path, number, log)
                if row is not None:
                    yield row


def _read_json_object(path: Path, log: ProblemLog) -> Iterator[Row]:
    """Read one object: a wrapper around a list of rows, or a single row."""
    text = _whole_text(path, log)
    if text is None:
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            remedy = "several objects need one line each: jq -c . FILE > NEW.jsonl"
            log.add("json", f"A second object begins at line {error.lineno}.", f"{path}:{error.lineno}", remedy)
        else:
            _log_json_error(error, path, error.lineno, log, text)
        return
    if not isinstance(value, dict):
        _as_row(value, path, 1, log)
        return
    lists = [k for k, v in value.items() if k in WRAPPERS and isinstance(v, list) and (not v or isinstance(v[0], dict))]
    if len(lists) == 1:
        start = text.index("[", text.index(f'"{lists[0]}"'))
        yield from _array_rows(text, start, path, log)
    elif len(lists) > 1:
        what = f"The object holds several lists of rows: {', '.join(lists)}."
        log.add(
            "json",
            what,
            str(path),
            "keep one of them in a file of its own: " + f"jq -c '.{lists[0]}[]' FILE > NEW.jsonl",
        )
    else:
        yield Row(value, f"{path}:1")


def _read_json_array(path: Path, log: ProblemLog) -> Iterator[Row]:
    text = _whole_text(path, log)
    if text is not None:
        yield from _array_rows(text, text.index("["), path, log)


def _array_rows(text: str, start: int, path: Path, log: ProblemLog) -> Iterator[Row]:
    """Yield the elements of the array that begins at `start`, each with the line where it begins."""
    decoder = json.JSONDecoder()
    at, line, counted = start + 1, text.count("\n", 0, start + 1) + 1, start + 1
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            log.add(
                "json",
                "The list has no end: the file was cut off.",
                f"{path}:{line}",
                'fetch it again, or add the missing "]"',
            )
            return
        if text[at] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            _log_json_error(error, path, error.lineno, log, text)
            return
        row = _as_row(value, path, line, log)
        if row is not None:
            yield row


# ---- tables ---------------------------------------------------------------------------------------------------------


def read_table(path: Path, log: ProblemLog, header: bool, tabs: bool) -> Iterator[Row]:
    """Read CSV or TSV. Without a header line the columns are named "1", "2", …"""
    text = _whole_text(path, log)
    if text is None:
        return
    records = _plain_tsv(text) if tabs else None
    lines = iter(records) if records is not None else _csv_records(text, "\t" if tabs else _delimiter(text))
    names: list[str] | None = None
    try:
        for line, cells in lines:
            if not any(cells):
                continue
            if names is None:
                names = _column_names(cells, path, log) if header else [str(i + 1) for i in range(len(cells))]
                if names is None:
                    return
                if header:
                    continue
            if len(cells) != len(names):
                what = f"The row has {len(cells)} cells, the {'header' if header else 'first row'} has {len(names)}."
                log.add(
                    "ragged row",
                    what,
                    f"{path}:{line}",
                    'put cells that contain the separator or a line break in "quotes"',
                )
                continue
            yield Row(dict(zip(names, cells)), f"{path}:{line}")
    except csv.Error as error:
        log.add("csv", f"Cannot read the table: {error}.", str(path), "save it as UTF-8 CSV with quoted cells")


def _column_names(cells: list[str], path: Path, log: ProblemLog) -> list[str] | None:
    names = [cell.strip() or f"column {i + 1}" for i, cell in enumerate(cells)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        remedy = "name each column once; if there is no header line, give positions: columns: {prompt: 1, answer: 2}"
        log.add("header", f"The header names a column twice: {_short_list(twice)}.", f"{path}:1", remedy)
        return None
    return names


def _short_list(names: list[str]) -> str:
    return ", ".join(f'"{n[:40]}…"' if len(n) > 40 else f'"{n}"' for n in names)


def _delimiter(text: str) -> str:
    first = text.lstrip("\r\n").partition("\n")[0]
    return max((",", ";", "\t"), key=lambda d: (first.count(d), d == ","))


def _plain_tsv(text: str) -> list[tuple[int, list[str]]] | None:
    """Split at tabs when every line has the same number of them: quotation marks inside are then ordinary text."""
    lines = [(i + 1, line.rstrip("\r").split("\t")) for i, line in enumerate(text.split("\n")) if line.strip()]
    if len({len(cells) for _, cells in lines}) != 1:
        return None
    return [(i, [_unquote(c) for c in cells]) for i, cells in lines]


def _unquote(cell: str) -> str:
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _csv_records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        before = 0
        for cells in reader:
            yield before + 1, cells
            before = reader.line_num
    finally:
        csv.field_size_limit(limit)


# ---- text, Parquet, datasets ----------------------------------------------------------------------------------------


def read_text(path: Path, log: ProblemLog) -> Iterator[Row]:
    """Read a text file: one document, or several between lines that hold only `<|endoftext|>`.

    Blank lines separate paragraphs, not documents, so they divide nothing. All text is kept but for line breaks next to
    a separator.
    """
    text = _whole_text(path, log)
    if text is None:
        return
    first, lines = 1, []
    for number, line in enumerate([*text.split("\n"), DOCUMENT_END], start=1):
        if line.strip() != DOCUMENT_END:
            lines.append(line)
            continue
        document = "\n".join(lines)
        leading = len(document) - len(document.lstrip("\r\n"))
        if document.strip():
            yield Row({"text": document.strip("\r\n")}, f"{path}:{first + document.count(chr(10), 0, leading)}")
        first, lines = number + 1, []


def read_parquet(path: Path, log: ProblemLog) -> Iterator[Row]:
    """Read Parquet. Rows are numbered from 1."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("datasets", "data", "Reading Parquet files") from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(value, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        log.add(
            "parquet", f"Cannot read the Parquet file: {error}.", str(path), "it is damaged or cut off; fetch it again"
        )


def read_dataset_folder(path: Path, log: ProblemLog, split: str | None) -> Iterator[Row]:
    """Read a folder written by `datasets.save_to_disk`. Rows are numbered from 1.

    Raises:
        DataError: there is no such split.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "data", "Reading a folder saved by `datasets`") from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        log.add("dataset", f"Cannot read the saved data set: {error}.", str(path), "save it again with save_to_disk")
        return
    name = str(path)
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
        if wanted not in loaded:
            near = did_you_mean(wanted, loaded)
            raise DataError(
                Problem(f'There is no split "{wanted}".{near}', name, f"add split: one of {', '.join(loaded)}")
            )
        loaded, name = loaded[wanted], f"{name}/{wanted}"
    elif split is not None:
        raise DataError(
            Problem(f'"split: {split}" has no effect: this data set has no splits.', name, "remove data.split")
        )
    for number, value in enumerate(loaded, start=1):
        yield Row(value, f"{name}:{number}")
