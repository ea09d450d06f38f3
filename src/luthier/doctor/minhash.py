"""MinHash: how alike two texts are, from a few hundred bytes of each.

Broder 1997, On the resemblance and containment of documents. The share of equal numbers in two signatures estimates the
Jaccard similarity of the sets of word triples. Rows that agree in one whole band of numbers are compared (locality
sensitive hashing, Indyk and Motwani 1998); bands are found by sorting, so that no table of a million keys is needed.

Shape legend: N rows, K numbers of a signature, B bands.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np

NUMBERS = 112
BANDS = 28
"""Bands of four: rows that share 0.8 of their triples are compared with a probability of 0.9999999, 0.3 with 0.2."""
WORDS = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_]+", re.UNICODE)
MOST_SHINGLES = 2000
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


class Signer:
    """Makes signatures; the same text has the same on every machine."""

    def __init__(self) -> None:
        draw = np.random.default_rng(20001)
        self._factors = draw.integers(1, 2**63, NUMBERS, dtype=np.uint64) | np.uint64(1)
        self._offsets = draw.integers(0, 2**63, NUMBERS, dtype=np.uint64)
        self._words: dict[str, int] = {}

    def sign(self, text: str) -> np.ndarray | None:
        """Return the signature (K,) uint32 of a text; None where it has fewer than five words."""
        shingles = self.shingles(text)
        if shingles is None:
            return None
        with np.errstate(over="ignore"):
            mixed = shingles[:, None] * self._factors + self._offsets
        return (mixed >> np.uint64(32)).min(0).astype(np.uint32)

    def shingles(self, text: str, size: int = 3) -> np.ndarray | None:
        """Return the distinct hashes (uint64) of the runs of `size` words."""
        words = WORDS.findall(text.lower())
        if len(words) < max(5, size):
            return None
        if len(self._words) > 500_000:  # names and numbers would make it grow without end
            self._words.clear()
        hashes = np.array([self._hash(word) for word in words], dtype=np.uint64)
        with np.errstate(over="ignore"):
            runs = np.zeros(len(hashes) - size + 1, dtype=np.uint64)
            for i in range(size):
                runs = (runs ^ hashes[i : len(hashes) - size + 1 + i]) * _MIX[i % 3]
                runs ^= runs >> np.uint64(29)
        return np.unique(runs)[:MOST_SHINGLES]

    def _hash(self, word: str) -> int:
        known = self._words.get(word)
        if known is None:
            raw = word.encode()
            known = self._words[word] = zlib.crc32(raw) | zlib.crc32(raw, 0xBEEF) << 32
        return known


class SignatureTable:
    """Signatures of many rows in one growing array, (N, K) uint32."""

    def __init__(self) -> None:
        self._values = np.zeros((1024, NUMBERS), dtype=np.uint32)
        self._rows = np.zeros(1024, dtype=np.int64)
        self._count = 0

    def add(self, row: int, signature: np.ndarray) -> None:
        if self._count == len(self._values):
            size = self._count + max(self._count // 2, 1024)
            self._values = np.concatenate([self._values, np.zeros((size - self._count, NUMBERS), np.uint32)])
            self._rows = np.concatenate([self._rows, np.zeros(size - self._count, np.int64)])
        self._values[self._count], self._rows[self._count] = signature, row
        self._count += 1

    def alike(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield (row, an earlier row, estimated similarity) for each row that has an earlier one so like it.

        Of several earlier ones it is the most similar that is named.
        """
        values, rows = self._values[: self._count], self._rows[: self._count]
        best = np.full(self._count, -1, dtype=np.int64)
        score = np.zeros(self._count, dtype=np.float32)
        width = NUMBERS // BANDS
        for band in range(BANDS):
            keys = np.ascontiguousarray(values[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            # Each row is compared with the first of its group and with its neighbour, which is never far from all.
            group = np.concatenate([[0], np.cumsum(~same)])
            first = order[np.flatnonzero(np.concatenate([[True], ~same]))][group]
            later = np.flatnonzero(np.concatenate([[False], same]))
            for earlier in (first[later], order[later - 1]):
                self._compare(values, order[later], earlier, best, score)
        for index in np.flatnonzero(score >= threshold):
            yield int(rows[index]), int(rows[best[index]]), float(score[index])

    def _compare(
        self, values: np.ndarray, later: np.ndarray, earlier: np.ndarray, best: np.ndarray, score: np.ndarray
    ) -> None:
        for start in range(0, len(later), 65536):
            a, b = later[start : start + 65536], earlier[start : start + 65536]
            equal = (values[a] == values[b]).mean(1, dtype=np.float32)
            better = (equal > score[a]) & (b < a)
            best[a[better]], score[a[better]] = b[better], equal[better]
