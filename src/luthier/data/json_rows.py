"""Read JSON and JSONL: which of them it is shows in the content, and every row knows its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from luthier.data.problems import ProblemLog
from luthier.data.readers import MAX_LINE_BYTES, Row, decode, open_bytes, whole_text
from luthier.data.turns import kind_of, shown

BOM = b"\xef\xbb\xbf"
_SEPARATORS = re.compile(r"[\s,]*")
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset", "instances")


def read_json(path: Path, log: ProblemLog, is_lines: bool) -> Iterator[Row]:
    """Read JSONL or JSON. `is_lines`: the file's name says JSONL, which decides only where the content does not."""
    first, has_more = _first_line(path)
    if first.startswith(b"["):
        is_one_list = not (is_lines and has_more and _is_json(first))
        yield from _read_list(path, log) if is_one_list else _read_lines(path, log)
    elif first.startswith(b"{") and _is_json(first):
        yield from _read_lines(path, log) if has_more else _read_object(path, log)
    elif first == b"{" or not is_lines:
        yield from _read_object(path, log)
    else:
        yield from _read_lines(path, log)


def _first_line(path: Path) -> tuple[bytes, bool]:
    """Return the first line that holds something, and whether others follow."""
    with open_bytes(path) as stream:
        lines = (line.removeprefix(BOM).strip() for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b""))
        held = (line for line in lines if line)
        return next(held, b""), next(held, None) is not None


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _snippet(text: str, at: int) -> str:
    start = max(0, at - 20)
    return ("…" if start else "") + text[start : at + 20].replace("\n", "⏎") + ("…" if at + 20 < len(text) else "")


def _log_error(error: json.JSONDecodeError, path: Path, line: int, log: ProblemLog, text: str) -> None:
    what = f"Not JSON: {error.msg} at column {error.colno}, near «{_snippet(text, error.pos)}»."
    log.add("json", what, f"{path}:{line}", "mend or remove the row")


def _as_row(value: object, path: Path, line: int, log: ProblemLog, raw: str) -> Row | None:
    """Return the row, or None after logging. `raw` is its JSON text."""
    where = f"{path}:{line}"
    if not isinstance(value, dict):
        what = f"Expected an object with named columns, got {kind_of(value)}: {shown(value)}."
        log.add("not an object", what, where, 'write {"text": "…"} or the like')
        return None
    if _LONE_SURROGATE.search(raw) and not _is_unicode(value):
        what = r"A \ud… escape stands alone: half of a character."
        log.add("half character", what, where, "write the file again with the whole text, or remove the row")
        return None
    return Row(value, where)


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(path: Path, log: ProblemLog) -> Iterator[Row]:
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
                raw = raw.removeprefix(BOM)
            if not raw.strip():
                continue
            if b"\0" in raw:
                where = f"{path}:{number}"
                what = f"The line contains a NUL byte at offset {start + raw.index(0)}."
                log.add("nul", what, where, r"remove them: tr -d '\000' < FILE > NEW")
                continue
            text = decode(raw.rstrip(b"\r\n"), path, log, number, start)
            if text is None:
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                _log_error(error, path, number, log, text)
            except RecursionError:
                log.add("json", "The row is nested too deeply.", f"{path}:{number}", "remove the row")
            else:
                row = _as_row(value, path, number, log, text)
                if row is not None:
                    yield row


def _read_object(path: Path, log: ProblemLog) -> Iterator[Row]:
    """Read one object: a wrapper around a list of rows, or a single row."""
    text = whole_text(path, log)
    if text is None:
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            remedy = "several objects need one line each: jq -c . FILE > NEW.jsonl"
            log.add("json", f"A second object begins at line {error.lineno}.", f"{path}:{error.lineno}", remedy)
        else:
            _log_error(error, path, error.lineno, log, text)
        return
    if not isinstance(value, dict):
        _as_row(value, path, 1, log, "")
        return
    lists = [k for k, v in value.items() if k in WRAPPERS and isinstance(v, list) and (not v or isinstance(v[0], dict))]
    if len(lists) == 1:
        yield from _array_rows(text, _value_start(text, lists[0]), path, log, ends_file=False)
    elif len(lists) > 1:
        what = f"The object holds several lists of rows: {', '.join(lists)}."
        remedy = f"keep one of them in a file of its own: jq -c '.{lists[0]}[]' FILE > NEW.jsonl"
        log.add("json", what, str(path), remedy)
    else:
        row = _as_row(value, path, 1, log, text)
        if row is not None:
            yield row


def _value_start(text: str, wanted: str) -> int:
    """Return where the value of a key of the outermost object begins; the text is known to be valid."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    while True:
        at = text.index('"', at)
        key, at = decoder.raw_decode(text, at)
        at = text.index(":", at) + 1
        at += len(text[at : at + 1000]) - len(text[at : at + 1000].lstrip())
        if key == wanted:
            return at
        _, at = decoder.raw_decode(text, at)


def _read_list(path: Path, log: ProblemLog) -> Iterator[Row]:
    text = whole_text(path, log)
    if text is not None:
        yield from _array_rows(text, text.index("["), path, log, ends_file=True)


def _array_rows(text: str, start: int, path: Path, log: ProblemLog, ends_file: bool) -> Iterator[Row]:
    """Yield the elements of the array that begins at `start`, each with the line where it begins."""
    decoder = json.JSONDecoder()
    at, line, counted = start + 1, text.count("\n", 0, start + 1) + 1, start + 1
    while True:
        at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            what = "The list has no end: the file was cut off."
            log.add("json", what, f"{path}:{line}", 'fetch it again, or add the missing "]"')
            return
        if text[at] == "]":
            rest = text[at + 1 :]
            if ends_file and rest.strip():
                line += rest.count("\n", 0, len(rest) - len(rest.lstrip()))
                log.add(
                    "json", "There is more after the end of the list.", f"{path}:{line}", "put every row into one list"
                )
            return
        begin = at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            _log_error(error, path, error.lineno, log, text)
            return
        except RecursionError:
            log.add("json", "The row is nested too deeply.", f"{path}:{line}", "remove the row")
            return
        row = _as_row(value, path, line, log, text[begin:at])
        if row is not None:
            yield row
