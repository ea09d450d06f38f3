"""Labelled texts: which classes there are, and texts to tokens exactly as the tokenizer itself writes them.

A classifier sees `tokenizer(text)` or `tokenizer(text, pair)`, special tokens included, so that the folder that is
exported classifies the same in any tool. A tokenizer without a separator gets both texts of a pair on two lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data.encode import known_characters, lost_characters, require_offsets
from luthier.data.overlong import Overlong
from luthier.data.records import Labelled, Record
from luthier.data.render import CHUNK, Counts, OnOverlong, Rendered
from luthier.data.store import StoreBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_CLASSES = 12


def several(index: int, what: str = "class") -> str:
    """Return the name of the number that says of a row whether a class applies, or what it weighs."""
    return f"{what}_{index:05d}"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; a class's number is its place.

    Attributes:
        labels: as the data write them.
        names: as the model and the screen call them.
        counts: rows of each in the training data.
        is_multi: a row may have several of them, or none.
        rows: of the training data.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    is_multi: bool = False
    rows: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_short(self) -> str:
        """The classes with their counts, for the screen."""
        shown = [f"{name} {count:,}" for name, count in zip(self.names, self.counts)][:SHOWN_CLASSES]
        more = f" and {len(self) - SHOWN_CLASSES} more" if len(self) > SHOWN_CLASSES else ""
        return ", ".join(shown) + more

    def balanced_weights(self) -> tuple[float, ...]:
        """Return n / (classes · n of the class), whose mean over the training rows is 1; of classes of which a row may
        have several, how many rows are without it for each row that has it."""
        if self.is_multi:
            return tuple((self.rows - count) / count if count else 1.0 for count in self.counts)
        seen = sum(count > 0 for count in self.counts)
        return tuple(sum(self.counts) / (seen * count) if count else 0.0 for count in self.counts)


def find_classes(
    records: Sequence[Record], names: Mapping[str, str], config: Mapping[str, object] | None = None
) -> Classes:
    """Return the classes of the training rows, sorted: numbers by size, words by the alphabet.

    A model that is a classifier already keeps its classes and their order when the rows know no others.

    Args:
        names: what labels are called, where the recipe says it.
        config: the model's config.json.

    Raises:
        DataError: fewer than two classes, or a name for a label that no row has.
    """
    is_multi, rows, counted = False, 0, Counter[str]()
    for record in records:
        if isinstance(record, Labelled):
            is_multi, rows = is_multi or record.labels is not None, rows + 1
            counted.update(record.every_label)
    first = records[0].source if records else "data"
    if len(counted) < 2:
        only = f'the only label is "{next(iter(counted))}"' if is_multi and counted else ""
        only = only or f'every row has the label "{next(iter(counted))}"' if counted else "there are no labelled rows"
        raise DataError(Problem(f"A classifier needs two classes; {only}.", first, "add rows of another class"))
    if 2 * len(counted) > len(records) and len(counted) > 20:
        what = f"{len(records):,} rows have {len(counted):,} different labels, so hardly any class has two rows."
        raise DataError(Problem(what, first, "name the column of the class with columns: {text: …, label: …}"))
    strange = sorted(names.keys() - counted.keys())
    if strange:
        what = f'objective.names names the label "{strange[0]}", which no row has.{did_you_mean(strange[0], counted)}'
        raise DataError(Problem(what, "objective.names", f"labels in the data: {', '.join(sorted(counted)[:20])}"))
    kept = _kept_classes(config or {}, counted) if not names else None
    if kept is not None:
        labels, shown = kept
        return Classes(labels, shown, tuple(counted[label] for label in labels), is_multi, rows)
    whole = all(label.removeprefix("-").isdecimal() for label in counted)
    ordered = tuple(sorted(counted, key=int) if whole else sorted(counted))
    shown = tuple(names.get(label, label) for label in ordered)
    return Classes(ordered, shown, tuple(counted[label] for label in ordered), is_multi, rows)


def _kept_classes(
    config: Mapping[str, object], counted: Mapping[str, int]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return (labels, names) of a classifier whose classes the rows use, by name or by number."""
    table = config.get("id2label")
    architectures = config.get("architectures")
    is_classifier = isinstance(architectures, list) and any("SequenceClassification" in str(a) for a in architectures)
    if not is_classifier or not isinstance(table, Mapping):
        return None
    names = tuple(str(table[key]) for key in sorted(table, key=int))
    numbers = tuple(str(i) for i in range(len(names)))
    for labels in (names, numbers):
        if counted.keys() <= set(labels):
            return labels, names
    return None


def fit_classes(labels: Mapping[str, str], records: Sequence[Record], is_multi: bool = False) -> Classes:
    """Return a trained model's classes as rows write them: by label, by name, or by number.

    Args:
        labels: label → name, in the order of the logits.
        is_multi: the model says of each class whether it applies.

    Raises:
        DataError: rows of other classes.
    """
    seen = {label for record in records if isinstance(record, Labelled) for label in record.every_label}
    names, numbers = tuple(labels.values()), tuple(map(str, range(len(labels))))
    ways = [Classes(way, names, (0,) * len(names), is_multi) for way in (tuple(labels), names, numbers)]
    fitting = next((way for way in ways if seen <= set(way.labels)), None)
    if fitting is None:
        raise DataError(*unknown_labels(records, ways[0]))
    return fitting


def unknown_labels(records: Iterable[Record], classes: Classes) -> list[Problem]:
    """Return a problem for each label that the training rows do not have, at its first row."""
    known = set(classes.labels)
    first: dict[str, str] = {}
    for record in records:
        for label in record.every_label if isinstance(record, Labelled) else ():
            if label not in known:
                first.setdefault(label, record.source)
    listed = ", ".join(classes.labels[:20])
    return [
        Problem(
            f'The label "{label}" is in no training row.{did_you_mean(label, classes.labels)}',
            source,
            f"labels that are trained: {listed}; mend the row or remove it",
        )
        for label, source in list(first.items())[:20]
    ]


@dataclass(frozen=True)
class Numbers:
    """What texts are rated with.

    Attributes:
        scale: what errors are divided by while they are learnt.
        mean, low, high: of the training rows, for the screen.
    """

    scale: float
    mean: float
    low: float
    high: float

    @property
    def in_short(self) -> str:
        return f"{self.low:g} to {self.high:g}, mean {self.mean:.4g}"


def find_numbers(records: Sequence[Record], rescale: bool) -> Numbers:
    """Return what the training rows are rated with.

    Args:
        rescale: divide errors by the root mean square of the numbers.

    Raises:
        DataError: every row has the same number, so that there is nothing to learn.
    """
    values = np.array([r.value for r in records if isinstance(r, Labelled) and r.value is not None], dtype=np.float64)
    if not len(values) or values.min() == values.max():
        first = records[0].source if records else "data"
        what = f"Every row has the same number ({values[0]:g})." if len(values) else "There are no rated rows."
        raise DataError(Problem(what, first, "name the column of the number: columns: {text: …, score: …}"))
    size = float(np.sqrt(np.mean(values**2)))
    return Numbers(size if rescale else 1.0, float(values.mean()), float(values.min()), float(values.max()))


@dataclass(frozen=True)
class _Encoded:
    """One row as tokens; `second` is where the second text begins, for models that mark it."""

    ids: list[int]
    second: int | None


class LabelledRenderer:
    """Turn labelled records into examples whose extras carry the class.

    Args:
        classes: number and name of each class, or what the texts are rated with.
        class_weights: a weight for each class, or empty; training rows alone get them.
        max_length: the longest example in tokens; None for no limit.
        context: the longest sequence that the model can take, for the advice about longer rows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        classes: Classes | Numbers,
        class_weights: Sequence[float] = (),
        max_length: int | None = None,
        on_overlong: OnOverlong = "error",
        context: int | None = None,
    ) -> None:
        require_offsets(tokenizer)
        self.tokenizer = tokenizer
        self.classes = classes
        self.class_weights = class_weights
        self.max_length = max_length
        self.on_overlong: OnOverlong = on_overlong
        self.context = context
        labels = classes.labels if isinstance(classes, Classes) else ()
        self._number = {label: index for index, label in enumerate(labels)}

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on besides the records and the tokenizer."""
        known = self.classes
        classes = [*known.labels, known.is_multi] if isinstance(known, Classes) else [known.scale]
        limits = {"max_length": self.max_length, "on_overlong": self.on_overlong}
        return {"kind": "labelled", "classes": classes, "weights": list(self.class_weights), **limits}

    def render_all(self, records: Sequence[Record]) -> Rendered:
        """Render every record; a class that is not among the known ones has been refused before.

        Raises:
            DataError: rows are too long, or hold no token.
        """
        builder, overlong = StoreBuilder(), Overlong()
        known = known_characters(self.tokenizer)
        dropped = truncated = unknown = lost = 0
        for record, row in self._encoded(records):
            if not row.ids:
                remedy = "the tokenizer knows none of its characters; mend or remove the row"
                raise DataError(Problem("The row holds no token.", record.source, remedy))
            limit = self.max_length
            if limit is not None and len(row.ids) > limit:
                if self.on_overlong == "error":
                    overlong.add(record.source, len(row.ids), loses_everything=False)
                    continue
                if self.on_overlong == "drop":
                    dropped += 1
                    continue
                truncated += 1
                row = self._encode([record], limit)[0]
            tokens = np.array(row.ids, dtype=np.int32)
            builder.add(tokens, np.zeros(len(tokens), dtype=np.float32), record.source, self._extras(record, row))
            unknown += sum(i == self.tokenizer.unk_token_id for i in row.ids)
            lost += lost_characters(record.text + record.pair, known)
        overlong.raise_if_any(self.max_length or 0, self.context)
        store = builder.build()
        if not len(store):
            what = f"No row is left: all {len(records):,} are too long."
            raise DataError(Problem(what, "max_length", "raise max_length, or use on_overlong: truncate"))
        tokens = int(store.lengths.sum())
        notes = [
            text
            for count, text in (
                (dropped, f"{dropped:,} rows longer than {self.max_length} tokens were left out"),
                (truncated, f"{truncated:,} rows were cut to {self.max_length} tokens"),
                (unknown, f"{unknown:,} tokens ({unknown / tokens:.1%}) are unknown to the tokenizer"),
                (lost, f"the tokenizer has no token for {lost:,} characters and leaves them out in silence"),
            )
            if count
        ]
        counts: Counts = {
            "rows": len(records),
            "examples": len(store),
            "tokens": tokens,
            "trained_tokens": 0,
            "dropped": dropped,
            "truncated": truncated,
            "longest": int(store.lengths.max()),
            "median_length": float(np.median(store.lengths)),
            "unknown_tokens": unknown,
            "lost_characters": lost,
            "notes": notes,
        }
        return Rendered(store, counts)

    def _extras(self, record: Labelled, row: _Encoded) -> dict[str, float]:
        if isinstance(self.classes, Numbers):
            extras = {"label": float(record.value or 0.0), "scale": self.classes.scale}
        elif self.classes.is_multi:
            extras = self._several(record)
        else:
            number = self._number[record.label]
            extras = {"label": float(number)}
            if self.class_weights:
                extras["weight"] = float(self.class_weights[number])
        if row.second is not None:
            extras["second"] = float(row.second)
        return extras

    def _several(self, record: Labelled) -> dict[str, float]:
        """Return 0 or 1 for each class, and how much a class counts where it applies."""
        has = {self._number[label] for label in record.every_label}
        extras = {several(index): float(index in has) for index in range(len(self._number))}
        for index, weight in enumerate(self.class_weights):
            extras[several(index, "weight")] = float(weight) if index in has else 1.0
        return extras

    def _encoded(self, records: Sequence[Record]) -> Iterator[tuple[Labelled, _Encoded]]:
        for start in range(0, len(records), CHUNK):
            chunk = [record for record in records[start : start + CHUNK] if isinstance(record, Labelled)]
            yield from zip(chunk, self._encode(chunk))

    def _encode(self, records: Sequence[Labelled], limit: int | None = None) -> list[_Encoded]:
        return encode_labelled(self.tokenizer, [(r.text, r.pair) for r in records], limit)


def encode_labelled(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]], limit: int | None = None
) -> list[_Encoded]:
    """Return the tokens of each (text, pair), as training, measuring and classifying see them."""
    has_pairs, has_separator = any(pair for _, pair in texts), tokenizer.sep_token is not None
    apart = has_pairs and has_separator
    words = [text if apart or not pair else f"{text}\n{pair}" for text, pair in texts]
    batch = tokenizer(
        words,
        [pair for _, pair in texts] if apart else None,
        truncation=limit is not None,
        max_length=limit,
        return_attention_mask=False,
        verbose=False,
    )
    # `second` stands in every row of a pair data set or in none, so that all examples have the same extras.
    marks = batch.get("token_type_ids") if apart else None
    if marks is None or not any(any(row) for row in marks):
        return [_Encoded(list(ids), None) for ids in batch["input_ids"]]
    return [_Encoded(list(i), m.index(1) if 1 in m else len(m)) for i, m in zip(batch["input_ids"], marks)]
