"""Rendered examples, held compactly: flat arrays and borders, so that a million short rows need no million objects.

What grows beyond some megabytes while it is built goes to a temporary file and is mapped into memory from there.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, overload

import numpy as np

from luthier.core.batch import Example
from luthier.core.errors import DataError, Problem


class ExampleStore(Sequence[Example]):
    """A sequence of Examples over flat arrays.

    Weights are kept as one byte each that points into `palette`: nearly every data set knows only 0 and 1. Shape
    legend: N examples, S sequences (an example that branches holds several), T tokens of all examples together.

    Attributes:
        tokens_T: int32 token ids.
        codes_T: uint8 indices into the palette.
        palette: float32 distinct weights.
        borders: (N+1,) int64 where each example begins.
        extras: (S,) float32 numbers that belong to whole sequences (labels, reference log-probs), by name.
        branches_S: (S,) int64 lengths of endings, 0 for sequences that stand alone; None where nothing branches.
        sequences: (N+1,) int64 where the sequences of each example begin.
    """

    def __init__(
        self,
        tokens_T: np.ndarray,
        codes_T: np.ndarray,
        palette: np.ndarray,
        borders: np.ndarray,
        places: SourceTable,
        extras: dict[str, np.ndarray] | None = None,
        branches_S: np.ndarray | None = None,
        sequences: np.ndarray | None = None,
    ) -> None:
        self.tokens_T = tokens_T
        self.codes_T = codes_T
        self.palette = palette
        self.borders = borders
        self.places = places
        self.extras = extras or {}
        self.branches_S = branches_S
        self.sequences = sequences if sequences is not None else np.arange(len(borders))

    def __len__(self) -> int:
        return len(self.borders) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        here = slice(self.borders[index], self.borders[index + 1])
        own = slice(self.sequences[index], self.sequences[index + 1])
        branches = () if self.branches_S is None else tuple(int(n) for n in self.branches_S[own] if n)
        extras = {name: values[own] if branches else float(values[own][0]) for name, values in self.extras.items()}
        weights = self.palette[self.codes_T[here]]
        return Example(self.tokens_T[here], weights, self.places[index], extras, branches)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each example, all endings included."""
        return np.diff(self.borders)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.tokens_T.nbytes + self.codes_T.nbytes + self.borders.nbytes


def split_source(source: str) -> tuple[str, int]:
    """Return (file, line) of `file:line`; the line is -1 where there is none."""
    name, _, line = source.rpartition(":")
    return (name, int(line)) if line.isdecimal() else (source, -1)


class SourceTable:
    """`file:line` of many rows as two numbers each."""

    def __init__(
        self, names: Sequence[str] = (), files: np.ndarray | None = None, lines: np.ndarray | None = None
    ) -> None:
        self._names: dict[str, int] = {name: index for index, name in enumerate(names)}
        self.names: list[str] = list(names)
        self._file: array[int] | np.ndarray = array("i") if files is None else files
        self._line: array[int] | np.ndarray = array("q") if lines is None else lines

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int32 which name, and (N,) int64 lines; -1 for a source without one."""
        return np.asarray(self._file, dtype=np.int32), np.asarray(self._line, dtype=np.int64)

    def add(self, source: str) -> None:
        name, line = split_source(source)
        if name not in self._names:
            self._names[name] = len(self.names)
            self.names.append(name)
        assert isinstance(self._file, array), "a table that was read does not grow"
        assert isinstance(self._line, array)
        self._file.append(self._names[name])
        self._line.append(line)

    def __getitem__(self, index: int) -> str:
        name, line = self.names[self._file[index]], int(self._line[index])
        return name if line < 0 else f"{name}:{line}"


class _Growing:
    """Numbers that are added to without end; beyond some megabytes they stand on disk."""

    HELD = 8 << 20
    """Bytes kept in memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._held = bytearray()
        self._file: IO[bytes] | None = None

    def extend(self, values: np.ndarray) -> None:
        self._held += np.ascontiguousarray(values, dtype=self.dtype).tobytes()
        self.count += len(values)
        if len(self._held) > self.HELD:
            self._file = self._file or tempfile.TemporaryFile(prefix="luthier-tokens-")  # noqa: SIM115  # see `build`
            self._file.write(self._held)
            self._held = bytearray()

    def build(self) -> np.ndarray:
        if self._file is None:
            return np.frombuffer(self._held, dtype=self.dtype) if self._held else np.zeros(0, self.dtype)
        with self._file as file:
            file.write(self._held)
            file.flush()
            # A plain array over the map: slices of numpy's own kind of map cost ten times as much.
            return np.asarray(np.memmap(file, dtype=self.dtype, mode="r", shape=(self.count,)))


class StoreBuilder:
    """Grow a store one example at a time."""

    def __init__(self) -> None:
        self._tokens = _Growing(np.int32)
        self._codes = _Growing(np.uint8)
        self._borders = array("q", [0])
        self._palette: dict[float, int] = {0.0: 0, 1.0: 1}
        self._places = SourceTable()
        self._extras: dict[str, array[float]] = {}
        self._branches = array("q")
        self._sequences = array("q", [0])

    def add(
        self,
        tokens: np.ndarray,
        weights: np.ndarray,
        source: str,
        extras: Mapping[str, float | Sequence[float]] | None = None,
        branches: tuple[int, ...] = (),
    ) -> None:
        """Append one example: (L,) ids and (L,) weights, and the lengths of its endings.

        Every example of a store has the same `extras`: a number, or one for each ending.

        Raises:
            DataError: more than 256 different weights.
        """
        codes = np.empty(len(weights), dtype=np.uint8)
        for value in np.unique(weights):
            code = self._palette.setdefault(float(value), len(self._palette))
            if code > 255:
                raise DataError(
                    Problem(
                        "The messages have more than 256 different weights.",
                        source,
                        "round the weights to a few values",
                    )
                )
            codes[weights == value] = code
        self._tokens.extend(tokens)
        self._codes.extend(codes)
        self._borders.append(self._tokens.count)
        self._places.add(source)
        self._branches.extend(branches or (0,))
        self._sequences.append(len(self._branches))
        for name, value in (extras or {}).items():
            numbers = [value] * (len(branches) or 1) if isinstance(value, int | float) else list(value)
            self._extras.setdefault(name, array("f")).extend(numbers)

    def build(self) -> ExampleStore:
        """Return the store; the builder may not be used again."""
        return ExampleStore(
            self._tokens.build(),
            self._codes.build(),
            np.array(list(self._palette), dtype=np.float32),
            np.frombuffer(self._borders, dtype=np.int64),
            self._places,
            {name: np.frombuffer(values, dtype=np.float32) for name, values in self._extras.items()},
            np.frombuffer(self._branches, dtype=np.int64) if any(self._branches) else None,
            np.frombuffer(self._sequences, dtype=np.int64),
        )
