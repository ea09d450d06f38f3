"""Features of frozen backbones, computed once and kept on disk: one vector for each sequence.

The file is safetensors with one tensor `features` (N, F) float32, written and read through a memory map, so that no
step needs the memory of all of it. Rows are found by what they were computed from, the tokens, so that nothing goes
wrong when data are shuffled, split or read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Example
from luthier.core.errors import ModelError
from luthier.models.files import read_header

_PLACES = ".json"
SORTED_AT_ONCE = 4096
"""Sequences that are sorted by length together, so that padded batches hold little padding."""


@dataclass(frozen=True)
class FeatureCache:
    """Features by the tokens they belong to.

    Attributes:
        rows: digest of a sequence → row.
        values: (N, F) float32, a memory map.
    """

    rows: dict[str, int]
    values: np.ndarray

    def of(self, examples: Sequence[Example]) -> Tensor | None:
        """Return the features (S, F) of sequences, or None when one of them is not known."""
        found = [self.rows.get(digest(path)) for example in examples for path in example.paths()]
        known = [row for row in found if row is not None]
        return torch.from_numpy(self.values[known]) if len(known) == len(found) else None


def digest(example: Example) -> str:
    """Return what identifies a sequence: its tokens, and where its second text begins."""
    tokens = np.ascontiguousarray(example.tokens, dtype=np.int32).tobytes()
    return hashlib.blake2b(tokens + str(example.extras.get("second")).encode(), digest_size=12).hexdigest()


def distinct(parts: Sequence[Sequence[Example]]) -> dict[str, Example]:
    """Return the sequences of several data sets, each once."""
    return {digest(path): path for part in parts for example in part for path in example.paths()}


def in_groups(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield the sequences in groups sorted by length."""
    for start in range(0, len(examples), SORTED_AT_ONCE):
        yield sorted(examples[start : start + SORTED_AT_ONCE], key=len)


def open_cache(file: Path, origin: str, wanted: Sequence[str]) -> FeatureCache | None:
    """Return the cache in `file` if it was computed from `origin` for just the sequences that are wanted."""
    places = file.with_suffix(_PLACES)
    if not (file.is_file() and places.is_file()):
        return None
    try:
        kept = json.loads(places.read_text(encoding="utf-8"))
        header = read_header(file)
    except (ValueError, ModelError):
        return None
    if kept.get("origin") != origin or set(kept.get("rows", ())) != set(wanted):
        return None
    shape = tuple(header["features"]["shape"])
    size = int.from_bytes(file.open("rb").read(8), "little")
    values = np.memmap(file, dtype=np.float32, mode="r", offset=8 + size, shape=shape)
    return FeatureCache({name: row for row, name in enumerate(kept["rows"])}, values)


class CacheWriter:
    """Write features row by row into a file that is whole only when it is closed.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, file: Path, rows: int, width: int) -> None:
        self.file = file
        self.names: list[str] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        self._beside = file.with_name(f".{file.name}.tmp")
        tensor = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}
        header = json.dumps({"features": tensor}).encode()
        header += b" " * (-len(header) % 8)
        with self._beside.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + 4 * rows * width)
        self._values = np.memmap(self._beside, dtype=np.float32, mode="r+", offset=8 + len(header), shape=(rows, width))

    def add(self, names: Sequence[str], features_SF: Tensor) -> None:
        """Append rows."""
        start = len(self.names)
        self._values[start : start + len(names)] = features_SF.float().cpu().numpy()
        self.names += names

    def close(self, origin: str) -> None:
        """Put the file in its place."""
        self._values.flush()
        del self._values
        text = json.dumps({"origin": origin, "rows": self.names})
        self.file.with_suffix(_PLACES).write_text(text, encoding="utf-8")
        self._beside.replace(self.file)
