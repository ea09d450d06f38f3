"""MinHash: how alike two texts are, from a few hundred bytes of each.

Broder 1997, On the resemblance and containment of documents. The share of equal numbers in two signatures estimates the
Jaccard similarity of the sets of shingles. Shingles are runs of five letters (of three characters in Chinese), so that
a typing error costs five of them and an exchanged sentence next to none; capitals, punctuation and white space are left
out. Rows that agree in one whole band of numbers are compared (locality sensitive hashing, Indyk and Motwani 1998);
bands are found by sorting, so that no table of a million keys is needed.

Shape legend: N rows, K numbers of a signature, B bands, S shingles of a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

NUMBERS = 112
BANDS = 28
"""Bands of four: rows that share 0.6 of their shingles are compared with a probability of 0.98, 0.3 with 0.2."""
LETTERS = 5
CHARACTERS = 3
FEWEST_LETTERS = 24
FEWEST_CHARACTERS = 10
MOST_SHINGLES = 256
"""Of a long text those with the smallest hashes are taken: the same of both texts, so likeness is still estimated."""
BLOCK = 16384
_NOT_SAID = re.compile(r"[\W_]+")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORDS = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_]+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


class Signer:
    """Makes signatures; the same text has the same on every machine."""

    def __init__(self) -> None:
        draw = np.random.default_rng(20001)
        self._factors = draw.integers(1, 2**31, NUMBERS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._offsets = draw.integers(0, 2**32, NUMBERS, dtype=np.uint32)

    def sign(self, shingles: np.ndarray) -> np.ndarray:
        """Return the signature (K,) uint16 of (S,) shingles: the last bits of each minimum, which tell it apart."""
        low = (shingles[:MOST_SHINGLES] >> np.uint64(32)).astype(np.uint32)
        with np.errstate(over="ignore"):
            mixed = low[:, None] * self._factors + self._offsets
        return mixed.min(0).astype(np.uint16)


def letter_shingles(text: str) -> np.ndarray | None:
    """Return the distinct hashes (S,) uint64, sorted, of a text's runs of letters; None of one too short to judge."""
    flat = _NOT_SAID.sub(" ", text.lower()).strip()
    is_wide = not flat.isascii() and len(_WIDE.findall(flat[:200])) > 0.3 * min(len(flat), 200)
    size = CHARACTERS if is_wide else LETTERS
    if len(flat) < (FEWEST_CHARACTERS if is_wide else FEWEST_LETTERS):
        return None
    codes = np.frombuffer(flat.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    return _runs(codes, size)


def word_shingles(text: str, size: int) -> np.ndarray | None:
    """Return the distinct hashes (S,) uint64, sorted, of a text's runs of `size` words; None where it has fewer."""
    words = _WORDS.findall(text.lower())
    if len(words) < size:
        return None
    # Python's own hash of a word holds within this process, where these are compared.
    return _runs(np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64), size)


def _runs(values: np.ndarray, size: int) -> np.ndarray:
    count = len(values) - size + 1
    with np.errstate(over="ignore"):
        runs = np.zeros(count, dtype=np.uint64)
        for i in range(size):
            runs = (runs + values[i : count + i]) * _PRIME
        for factor in _MIX:
            runs ^= runs >> np.uint64(31)
            runs *= factor
        runs ^= runs >> np.uint64(29)
    return np.unique(runs)


class Commonness:
    """In how many rows a shingle stands, about: counts in a table of fixed size, never too small."""

    def __init__(self, bits: int = 22) -> None:
        self._counts = np.zeros(1 << bits, dtype=np.uint32)
        self._mask = np.uint64((1 << bits) - 1)
        self.rows = 0

    def add(self, shingles: np.ndarray) -> None:
        """Count the shingles of a row."""
        self.rows += 1
        self._counts[shingles & self._mask] += np.uint32(1)

    def weights(self, shingles: np.ndarray) -> np.ndarray:
        """Return how much each says, (rows with it)^-0.4, float64.

        Softer than one over their number, so that ten copies with ten different errors are alike; harder than a
        logarithm, with which an instruction that twenty rows share outweighs what is asked in each.
        """
        return np.maximum(self._counts[shingles & self._mask], 1).astype(np.float64) ** -0.4

    def likeness(self, a: np.ndarray, b: np.ndarray) -> float:
        """Return the weighted Jaccard similarity of two rows: what is common to many counts for little."""
        shared = self.weights(np.intersect1d(a, b, assume_unique=True)).sum()
        whole = self.weights(a).sum() + self.weights(b).sum() - shared
        return float(shared / max(whole, 1e-12))


class SignatureTable:
    """Signatures of many rows in blocks, (N, K) uint16: 224 bytes a row."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._count = 0

    def add(self, row: int, signature: np.ndarray) -> None:
        at = self._count % BLOCK
        if at == 0:
            self._blocks.append(np.zeros((BLOCK, NUMBERS), dtype=np.uint16))
            self._rows.append(np.zeros(BLOCK, dtype=np.int64))
        self._blocks[-1][at], self._rows[-1][at] = signature, row
        self._count += 1

    def alike(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield (row, an earlier row, estimated similarity) for each row that has an earlier one so like it.

        Of several earlier ones it is the most similar that is named.
        """
        if not self._count:
            return
        rows = np.concatenate(self._rows)[: self._count]
        best = np.full(self._count, -1, dtype=np.int64)
        score = np.zeros(self._count, dtype=np.float32)
        width = NUMBERS // BANDS
        for band in range(BANDS):
            here = slice(band * width, (band + 1) * width)
            keys = np.concatenate(
                [np.ascontiguousarray(block[:, here]).view(np.uint64).ravel() for block in self._blocks]
            )
            keys = keys[: self._count]
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            # Each row is compared with the first of its group and with its neighbour, which is never far from all.
            group = np.concatenate([[0], np.cumsum(~same)])
            first = order[np.flatnonzero(np.concatenate([[True], ~same]))][group]
            later = np.flatnonzero(np.concatenate([[False], same]))
            for earlier in (first[later], order[later - 1]):
                self._compare(order[later], earlier, best, score)
        for index in np.flatnonzero(score >= threshold):
            yield int(rows[index]), int(rows[best[index]]), float(score[index])

    def _compare(self, later: np.ndarray, earlier: np.ndarray, best: np.ndarray, score: np.ndarray) -> None:
        for start in range(0, len(later), BLOCK):
            a, b = later[start : start + BLOCK], earlier[start : start + BLOCK]
            equal = (self._at(a) == self._at(b)).mean(1, dtype=np.float32)
            better = (equal > score[a]) & (b < a)
            best[a[better]], score[a[better]] = b[better], equal[better]

    def _at(self, indices: np.ndarray) -> np.ndarray:
        """Return the signatures of rows that may lie in any block."""
        found = np.empty((len(indices), NUMBERS), dtype=np.uint16)
        blocks = indices // BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            found[here] = self._blocks[block][indices[here] % BLOCK]
        return found
