"""What each row is worth learning from, in numbers that a model gives it; kept in a file, so that none is paid twice.

Perplexity is the mean log-loss of a row's answers per token. Instruction-following difficulty (Li et al. 2023, From
Quantity to Quality, arXiv:2308.12032) is that loss divided by the loss of the answers alone, without what was asked:

    IFD(q, a) = [−log p(a | q) / |a|] / [−log p(a) / |a|]

Near 0 the question gives the answer away; from 1 on it does not help, and the pair hardly belongs together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.core.rundir import disk_error
from luthier.data.problems import ProblemLog
from luthier.data.records import Record
from luthier.data.tally import Tally
from luthier.data.vocabulary import eos_id, special_prefix
from luthier.doctor.base import SeenRow
from luthier.doctor.rendering import Rows, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.doctor.with_model import Reader

GROUP = 128
"""Rows that are measured, and written down, at a time."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """What a model says of a row. `loss` and `alone` are sums over `tokens`, in nats; `alone` is without the prompt."""

    loss: float
    alone: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log-perplexity: nats per token of the answers."""
        return self.loss / self.tokens

    @property
    def ifd(self) -> float:
        """Instruction-following difficulty; infinite where the answer alone costs nothing."""
        return self.loss / self.alone if self.alone > 0 else math.inf


class Journal:
    """Scores by what a row says, in a file that grows while they are made; of another model or length it is begun anew.

    A torn last line, of a process that was killed, is left out.
    """

    def __init__(self, path: Path, head: dict[str, object]) -> None:
        self.path = path
        self.known: dict[str, RowScore] = {}
        self.reused = 0
        self.was_other = False
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and _parsed(lines[0]) == head:
            for entry in map(_parsed, lines[1:]):
                if entry is not None and {"key", "loss", "alone", "tokens"} <= entry.keys():
                    self.known[entry["key"]] = RowScore(entry["loss"], entry["alone"], entry["tokens"])
            self.reused = len(self.known)
            whole = "".join(line + "\n" for line in lines if _parsed(line) is not None)
        else:
            self.was_other = bool(lines)
            whole = json.dumps(head) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(whole, encoding="utf-8")
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise disk_error(path, error) from error

    def add(self, keys: Sequence[str], scores: Sequence[RowScore]) -> None:
        """Remember scores, on the disk too."""
        try:
            for key, score in zip(keys, scores):
                self.known[key] = score
                entry = {"key": key, "loss": score.loss, "alone": score.alone, "tokens": score.tokens}
                self._stream.write(json.dumps(entry) + "\n")
            self._stream.flush()
        except OSError as error:
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        self._stream.close()


def _parsed(line: str) -> dict | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def row_key(row: SeenRow) -> str:
    """Return a hash of what a row says."""
    said = "\0".join(f"{m.role}\1{m.content}\1{m.weight}\1{m.reasoning}" for m in row.turns)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def score_rows(
    rows: Iterator[tuple[SeenRow, Record]],
    reader: Reader,
    journal: Journal,
    progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[SeenRow, RowScore | None]]:
    """Yield each row with its score, None where nothing of its answer is left to be measured."""
    renderer = Rows(reader.tokenizer, Tally(log=ProblemLog()), reader.chat_template)
    group: list[tuple[SeenRow, Record]] = []
    for pair in rows:
        group.append(pair)
        if len(group) == GROUP:
            yield from _scored(group, renderer, reader, journal)
            progress(group[-1][0].number + 1)
            group = []
    yield from _scored(group, renderer, reader, journal)


def _scored(
    group: Sequence[tuple[SeenRow, Record]], renderer: Rows, reader: Reader, journal: Journal
) -> Iterator[tuple[SeenRow, RowScore | None]]:
    keys = [row_key(row) for row, _ in group]
    new = {key: index for index, key in enumerate(keys) if key not in journal.known}
    if new:
        rendered = renderer.render([group[index][1] for index in new.values()])
        examples = [None if row is None else cut(row, reader.longest) for row in rendered]
        measured = [(key, example) for key, example in zip(new, examples) if example is not None]
        scores = measure([example for _, example in measured], reader)
        journal.add([key for key, _ in measured], scores)
    yield from ((row, journal.known.get(key)) for (row, _), key in zip(group, keys))


def measure(examples: Sequence[Example], reader: Reader) -> list[RowScore]:
    """Return the scores of rendered rows."""
    from luthier.train.row_loss import row_losses

    assert reader.model is not None
    begin = beginning(reader.tokenizer)
    pieces = [alone(example, begin) for example in examples]
    losses = row_losses(reader.model, examples)
    flat = [piece for row in pieces for piece in row]
    each = row_losses(reader.model, flat)[:, 0] if flat else np.zeros(0)
    owner = np.repeat(np.arange(len(pieces)), [len(row) for row in pieces])
    sums = np.bincount(owner, weights=each, minlength=len(pieces)) if len(flat) else np.zeros(len(pieces))
    return [RowScore(float(loss), float(without), int(n)) for (loss, n), without in zip(losses, sums)]


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that predicts the first of an answer alone: BOS, or EOS where a tokenizer has no other."""
    prefix, eos = special_prefix(tokenizer), eos_id(tokenizer)
    return prefix[-1] if prefix else eos if eos is not None else 0


def alone(example: Example, begin: int) -> list[Example]:
    """Return each answer of a row as a sequence of its own behind `begin`; the losses are over the same tokens."""
    counted = 1 + np.flatnonzero(example.weights[1:] > 0)
    runs = np.split(counted, np.flatnonzero(np.diff(counted) > 1) + 1)
    return [
        Example(
            np.concatenate([np.array([begin], dtype=np.int32), example.tokens[run]]),
            np.concatenate([np.zeros(1, np.float32), np.ones(len(run), np.float32)]),
            example.source,
        )
        for run in runs
        if len(run)
    ]
