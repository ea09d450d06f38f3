"""Choose the rows that are most worth learning from.

Quality is a rank between 0 and 1, from a model's scores of the rows (`row_scores.py`). Diversity is coverage: a run of
words (of letters, in Chinese) counts once however many chosen rows hold it, and the less the more rows of the whole
data hold it. That is a submodular function, so taking the row that adds most, again and again, comes within 63 % of
the best choice (Nemhauser et al. 1978), and what a row adds only ever falls, so that few have to be looked at again in
each round (Minoux 1978). Both together: what a row adds, times its quality.

Memory is bounded by the sketch of each row: its GRAMS rarest-hashed shingles, 256 bytes, and a few numbers.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from luthier.doctor.minhash import letter_shingles

By = Literal["perplexity", "ifd", "diversity", "random"]
KINDS: tuple[By, ...] = ("perplexity", "ifd", "diversity", "random")
Prefer = Literal["low", "middle", "high"]
GRAMS = 64
TABLE_BITS = 22


@dataclass
class Pool:
    """What is known of the rows that may be chosen. Shapes: (N,) each, in the order of the data.

    Attributes:
        numbers: of the rows in the data, from 0.
        means: nats per token of their answers; NaN where no model was asked.
        ifds: instruction-following difficulty; NaN likewise.
        grams: hashes of some of their shingles.
    """

    numbers: list[int] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    ifds: list[float] = field(default_factory=list)
    grams: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: int, text: str, mean: float, ifd: float, keeps_grams: bool) -> None:
        self.numbers.append(number)
        self.means.append(mean)
        self.ifds.append(ifd)
        if keeps_grams:
            self.grams.append(sketch(text))


def sketch(text: str) -> np.ndarray:
    """Return up to GRAMS hashes (uint32) of a text's shingles: always the same ones of the same text."""
    shingles = letter_shingles(text)
    if shingles is None:  # a text too short to have any stands for itself
        return np.array([zlib.crc32(text.encode("utf-8", "replace"))], dtype=np.uint32)
    return np.unique((shingles[:GRAMS] >> np.uint64(32)).astype(np.uint32))


def quality(pool: Pool, by: Sequence[By], prefer: Prefer, seed: int) -> np.ndarray:
    """Return (N,) numbers from 0 to 1, the mean of the ranks by each of the scores asked for; 1 is best.

    Rows whose question does not help with the answer (IFD of 1 or more) come last. Ties are broken by `seed`.
    """
    draw = np.random.default_rng(seed).random(len(pool))
    ranks = []
    if "random" in by:
        ranks.append(_ranks(draw, draw))
    if "perplexity" in by:
        means = np.array(pool.means)
        score = {"low": -means, "high": means, "middle": -np.abs(means - np.median(means))}[prefer]
        ranks.append(_ranks(score, draw))
    if "ifd" in by:
        ifds = np.array(pool.ifds)
        ranks.append(_ranks(np.where(ifds < 1, ifds, -ifds), draw))
    return np.mean(ranks, axis=0) if ranks else np.ones(len(pool))


def _ranks(score: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Return ranks scaled to (0, 1], the highest score has 1."""
    order = np.lexsort((draw, score))
    ranks = np.empty(len(score))
    ranks[order] = (np.arange(len(score)) + 1) / max(len(score), 1)
    return ranks


def choose(pool: Pool, count: int, by: Sequence[By], prefer: Prefer = "middle", seed: int = 0) -> np.ndarray:
    """Return the places (count,) in the pool of the rows that are kept, in the order in which they were chosen."""
    worth = quality(pool, by, prefer, seed)
    draw = np.random.default_rng(seed).random(len(pool))
    if "diversity" not in by:
        return np.lexsort((draw, -worth))[:count]
    return _cover(pool.grams, worth, draw, count)


def _cover(grams: Sequence[np.ndarray], worth: np.ndarray, draw: np.ndarray, count: int) -> np.ndarray:
    """Return the greedy choice by coverage times worth; what adds nothing more comes last, by worth alone."""
    mask = np.uint32((1 << TABLE_BITS) - 1)
    places = [row & mask for row in grams]
    rows_with = np.zeros(1 << TABLE_BITS, dtype=np.uint32)
    for row in places:
        rows_with[row] += 1
    weight = (1.0 / np.sqrt(np.maximum(rows_with, 1))).astype(np.float32)
    del rows_with

    def adds(index: int) -> float:
        return float(weight[places[index]].sum()) * float(worth[index])

    heap = [(-adds(i), float(draw[i]), i) for i in range(len(places))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        gain, tie, index = heapq.heappop(heap)
        now = -adds(index)
        if heap and now > gain + 1e-9 and (now, tie) > heap[0][:2]:
            heapq.heappush(heap, (now, tie, index))
            continue
        if now > -1e-9:  # nothing new is left anywhere
            rest = [index, *(i for _, _, i in heap)]
            chosen += sorted(rest, key=lambda i: (-worth[i], draw[i]))[: count - len(chosen)]
            break
        chosen.append(index)
        weight[places[index]] = 0.0
    return np.array(chosen, dtype=np.int64)
