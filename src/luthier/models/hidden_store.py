"""Hidden states on disk, found by the tokens they belong to, so that neither order nor epochs matter.

One file of rows in the compute dtype, and an index of one line for each sequence. A sequence's line is written after
its rows, and names their checksum: what a killed process or a lost power supply left half-written is never taken for
whole. The first states that a sequence got are kept for good, because a sequence's rounding depends on its neighbours
in the batch, and a resumed run has to see the same bits.

Shape legend: L length of a sequence, H hidden size.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

ROWS = "hidden.bin"
INDEX = "index.jsonl"


@dataclass
class Entry:
    """Where a sequence's states lie; `is_sound` once their checksum is known to be right."""

    offset: int
    length: int
    checksum: int
    is_sound: bool = True


@dataclass
class HiddenStore:
    """An open store.

    Attributes:
        folder: holds the two files; made if need be.
        width: hidden size H.
        dtype: of the states.
        identity: of the model and the depth that the states come from; a store of another one is begun anew.
        limit_bytes: nothing is added beyond this size.
        fault: why nothing is added any more, if the disk refused.
    """

    folder: Path
    width: int
    dtype: torch.dtype
    identity: str
    limit_bytes: int
    fault: str = ""
    end: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {"width": self.width, "dtype": str(self.dtype), "identity": self.identity}
        index = self.folder / INDEX
        is_ours = self._read_index(index, head)
        mode = os.O_RDWR | os.O_CREAT | (0 if is_ours else os.O_TRUNC)
        self._file = os.open(self.folder / ROWS, mode, 0o644)
        if not is_ours:
            index.write_text(json.dumps(head) + "\n", encoding="utf-8")
        self._index = index.open("a", encoding="utf-8")

    def _read_index(self, path: Path, head: dict[str, object]) -> bool:
        if not path.is_file() or not (self.folder / ROWS).is_file():
            return False
        first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        if first != json.dumps(head):
            return False
        whole = lines[:-1]  # after the last line break stands nothing, or a line that was being written
        for line in whole:
            try:
                key, offset, length, checksum = json.loads(line)
            except ValueError:
                continue
            self.entries[key] = Entry(offset, length, checksum, is_sound=False)
            self.end = max(self.end, offset + self._bytes(length))
        if lines[-1]:
            path.write_text("\n".join([first, *whole, ""]), encoding="utf-8")
        return True

    def _bytes(self, length: int) -> int:
        return length * self.width * self.dtype.itemsize

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def read(self, key: str, into_LH: Tensor) -> bool:
        """Fill a contiguous tensor on the CPU with a sequence's states; False where there are none that are sound."""
        entry = self.entries.get(key)
        if entry is None:
            return False
        buffer = _bytes_of(into_LH)
        done = 0
        while entry.length == into_LH.shape[0] and done < len(buffer):
            got = os.preadv(self._file, [buffer[done:]], entry.offset + done)
            if got <= 0:
                break
            done += got
        if done < len(buffer) or (not entry.is_sound and zlib.crc32(buffer) != entry.checksum):
            del self.entries[key]
            return False
        entry.is_sound = True
        return True

    def write(self, key: str, states_LH: Tensor) -> None:
        """Keep a sequence's states, unless there are some or the store is full."""
        length = states_LH.shape[0]
        if key in self.entries or self.fault or self.end + self._bytes(length) > self.limit_bytes:
            return
        kept = states_LH.detach().to("cpu", self.dtype).contiguous()
        buffer = _bytes_of(kept)
        checksum = zlib.crc32(buffer)
        try:
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._file, buffer[done:], self.end + done)
            self._index.write(json.dumps([key, self.end, length, checksum]) + "\n")
            self._index.flush()
        except OSError as error:
            self.fault = error.strerror or type(error).__name__
            return
        self.entries[key] = Entry(self.end, length, checksum)
        self.end += len(buffer)

    def close(self) -> None:
        """Close the files; they stay, for a resumed run."""
        os.close(self._file)
        self._index.close()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU; numpy knows no bfloat16."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
