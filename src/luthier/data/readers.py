"""Read bytes and text safely; text, Parquet and saved `datasets`. JSON and tables have files of their own."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from luthier.core.errors import DataError, MissingExtra, Problem, did_you_mean
from luthier.data.problems import ProblemLog

MAX_LINE_BYTES = 64 * 2**20
DOCUMENT_END = "<|endoftext|>"

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
    if head[:1] == b"\x80" and 2 <= head[1] <= 5 and b"\n" not in head[:2]:
        what = "This is a pickle, which can run code when opened; it is never read."
        return what, "write the rows as JSONL with the program that made it"
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


def decode(raw: bytes, path: Path, log: ProblemLog, line: int = 1, offset: int = 0) -> str | None:
    """Decode UTF-8, logging where it is not. `line` and `offset` say where `raw` begins in the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + raw.count(b"\n", 0, error.start)
        found = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        log.add("encoding", f"The text is not UTF-8 ({found}).", f"{path}:{at}", _encoding_remedy(raw))
        return None


def whole_text(path: Path, log: ProblemLog) -> str | None:
    with open_bytes(path) as stream:
        raw = stream.read()
    text = decode(raw, path, log)
    if text is not None and "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        log.add("nul", "The text contains NUL bytes.", f"{path}:{line}", r"remove them: tr -d '\000' < FILE > NEW")
        return None
    return None if text is None else text.removeprefix("\ufeff")


def read_text(path: Path, log: ProblemLog) -> Iterator[Row]:
    """Read a text file: one document, or several between lines that hold only `<|endoftext|>`.

    Blank lines separate paragraphs, not documents, so they divide nothing. All text is kept but for line breaks next to
    a separator.
    """
    text = whole_text(path, log)
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
        names = [str(n) for n in loaded]
        if wanted not in names:
            near = did_you_mean(str(wanted), names)
            raise DataError(
                Problem(f'There is no split "{wanted}".{near}', name, f"add split: one of {', '.join(names)}")
            )
        loaded, name = loaded[wanted], f"{name}/{wanted}"
    elif split is not None:
        raise DataError(
            Problem(f'"split: {split}" has no effect: this data set has no splits.', name, "remove data.split")
        )
    for number, value in enumerate(loaded, start=1):
        assert isinstance(value, dict)
        yield Row(value, f"{name}:{number}")
