"""Records on disk: between checking and rendering there may be more rows than memory holds.

Rows are written as JSON into a temporary file without a name, which vanishes with the process, and read back one by
one. Small sets stay in memory as they are.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from luthier.data.records import (
    Asked,
    Conversation,
    Labelled,
    Message,
    Preference,
    PromptAnswer,
    Rated,
    Record,
    Text,
)
from luthier.data.store import SourceTable
from luthier.data.views import Part

IN_MEMORY = 2_000
"""So many records are kept as objects; about 2 KB each."""
_SEPARATORS = (",", ":")


class SpooledRecords(Sequence[Record]):
    """Records in a file. Each is read when it is asked for.

    Args:
        content: their JSON, one after the other.
        ends: (N,) where each ends.
        places: where each stands in the data.
        kept: records that JSON cannot hold, by their number.
    """

    def __init__(
        self, content: mmap.mmap | bytes, ends: np.ndarray, places: SourceTable, kept: Mapping[int, Record]
    ) -> None:
        self._content = content
        self._ends = ends
        self._places = places
        self._kept = kept

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if index in self._kept:
            return self._kept[index]
        start = int(self._ends[index - 1]) if index else 0
        return decode(json.loads(self._content[start : int(self._ends[index])]), self._places[index])

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Return a record as it lies in the file, and where it stands in the data."""
        if index in self._kept:
            return repr(self._kept[index]).encode(), self._places[index]
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])], self._places[index]


def on_disk(records: Sequence[object]) -> bool:
    """Return whether records stand in a file, being too many for lists."""
    return isinstance(records, SpooledRecords)


class Spool:
    """Take records one after the other; beyond IN_MEMORY they go to disk."""

    def __init__(self) -> None:
        self._first: list[Record] = []
        self._file = None
        self._ends = array("q")
        self._places = SourceTable()
        self._kept: dict[int, Record] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._first) or len(self._ends)

    def extend(self, records: Iterable[Record]) -> None:
        for record in records:
            if self._file is not None:
                self._write(record)
                continue
            self._first.append(record)
            if len(self._first) > IN_MEMORY:
                self._file = tempfile.TemporaryFile(prefix="luthier-rows-")  # noqa: SIM115  # closed by `done`
                for kept in self._first:
                    self._write(kept)
                self._first = []

    def _write(self, record: Record) -> None:
        assert self._file is not None
        try:
            text = encode(record)
        except (TypeError, ValueError):  # a prompt's row may hold dates or bytes
            self._kept[len(self._ends)] = record
            text = b""
        self._file.write(text)
        self._size += len(text)
        self._ends.append(self._size)
        self._places.add(record.source)

    def done(self) -> Sequence[Record]:
        """Return the records; nothing can be added any more."""
        if self._file is None:
            return tuple(self._first)
        with self._file as file:
            file.flush()
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._size else b""
        return SpooledRecords(content, np.frombuffer(self._ends, dtype=np.int64), self._places, self._kept)


def encoded(records: Sequence[Record]) -> Iterator[tuple[bytes, str]]:
    """Yield each record as bytes that are the same for the same content, and where it stands."""
    if isinstance(records, Part) and isinstance(records.whole, SpooledRecords):
        whole: SpooledRecords = records.whole
        yield from (whole.encoded(int(index)) for index in records.chosen)
    elif isinstance(records, SpooledRecords):
        yield from (records.encoded(index) for index in range(len(records)))
    else:
        for record in records:
            try:
                yield encode(record), record.source
            except (TypeError, ValueError):
                yield repr(record).encode(), record.source


def encode(record: Record) -> bytes:
    """Return a record as JSON, without its place.

    Raises:
        TypeError, ValueError: it holds what JSON would change.
    """
    return json.dumps(_plain(record), ensure_ascii=False, separators=_SEPARATORS).encode("utf-8", "surrogatepass")


def _plain(record: Record) -> list[object]:
    match record:
        case Conversation():
            return ["c", [[m.role, m.content, m.weight, m.reasoning] for m in record.messages]]
        case PromptAnswer(prompt, answer, context, system, history, is_instruction, _, reasoning):
            return ["p", prompt, answer, context, system, history, is_instruction, reasoning]
        case Text():
            return ["t", record.text]
        case Labelled():
            return ["l", record.text, record.pair, record.label, record.labels, record.value]
        case Preference():
            return ["f", _plain(record.chosen), _plain(record.rejected), record.margin]
        case Rated():
            return ["r", _plain(record.answer), record.is_good]
        case Asked():
            if json.loads(json.dumps(record.row)) != record.row:
                raise ValueError("the row is no JSON")
            return ["a", _plain(record.prompt), record.row]


def decode(plain: list, source: str) -> Record:
    """Return the record of what `encode` wrote."""
    kind, *parts = plain
    match kind:
        case "c":
            return Conversation(tuple(Message(*message) for message in parts[0]), source)
        case "p":
            prompt, answer, context, system, history, is_instruction, reasoning = parts
            turns = tuple((asked, said) for asked, said in history)
            return PromptAnswer(prompt, answer, context, system, turns, is_instruction, source, reasoning)
        case "t":
            return Text(parts[0], source)
        case "l":
            text, pair, label, labels, value = parts
            return Labelled(text, pair, label, source, None if labels is None else tuple(labels), value)
        case "f":
            chosen, rejected = (decode(part, source) for part in parts[:2])
            return Preference(chosen, rejected, parts[2], source)  # type: ignore[arg-type]
        case "r":
            return Rated(decode(parts[0], source), parts[1], source)  # type: ignore[arg-type]
    assert kind == "a"
    return Asked(decode(parts[0], source), parts[1], source)  # type: ignore[arg-type]
