"""A stage's data sets, one or several: what each is, and in which order their rows come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.core.errors import DataError
from luthier.data.load import Records
from luthier.data.mixture import DataSet, names_of, rates
from luthier.data.records import Record
from luthier.data.stream import MixedStream, Steps, Stream
from luthier.run.general_rows import own_rows

if TYPE_CHECKING:
    from luthier.data.render import Counts, Rendered
    from luthier.data.store import ExampleStore
    from luthier.run.config import Recipe
    from luthier.run.datasets import Rendering


@dataclass
class RecordSet:
    """One set's rows: `train` and `held` are what of them is trained on and what is set aside."""

    name: str
    records: Records
    train: Sequence[Record] = ()
    held: Sequence[Record] = ()


@dataclass(frozen=True)
class ExampleSet:
    """One set as examples. `difficulty` (N,) is what a column of the data says of `train`, where one is asked for."""

    name: str
    train: ExampleStore
    held: Sequence[Example] = ()
    difficulty: np.ndarray = field(default_factory=lambda: np.zeros(0))


def stream_of(recipe: Recipe, sizes: Sequence[int]) -> Steps:
    """Return the order of rows; `sizes` are the sequences of each set."""
    if len(sizes) == 1:
        return Stream(sizes[0], own_rows(recipe), recipe.seed)
    return MixedStream(tuple(sizes), shares_of(recipe, sizes), own_rows(recipe), recipe.seed)


def shares_of(recipe: Recipe, sizes: Sequence[int]) -> tuple[float, ...]:
    """Return the share of each set."""
    weights = [spec.weight if isinstance(spec, DataSet) else None for spec in recipe.data_sets]
    return rates(sizes, weights, recipe.mix)


def render_sets(rendering: Rendering, sets: Sequence[RecordSet]) -> list[tuple[ExampleSet, Rendered]]:
    """Turn each set's rows into examples.

    Raises:
        DataError: with what is wrong in any of them.
    """
    form = rendering.recipe.objective.data_form
    found, problems = [], []
    for part in sets:
        try:
            rendered = rendering.render(part.train, form, trains=True)
            held = rendering.render(part.held, form).store if part.held else ()
        except DataError as error:
            problems += error.problems
            continue
        numbers, store = part.records.numbers, rendered.store
        hard = np.array([numbers[store.places[index]] for index in range(len(store))] if numbers else ())
        found.append((ExampleSet(part.name, store, held, hard), rendered))
    if problems:
        raise DataError(*problems)
    _share_extras([part.train for part, _ in found])
    _share_extras([part.held for part, _ in found if len(part.held)])
    return found


def _share_extras(stores: Sequence) -> None:
    """Give all stores the same extras: what one set's rows say and another's cannot, in the form that says nothing."""
    names = {name for store in stores for name in store.extras}
    for store in stores:
        for name in names - store.extras.keys():
            # A text without a second one ends where its second one would begin; a pair without a margin has none.
            silent = {"second": store.lengths, "margin": np.zeros(int(store.sequences[-1]))}[name]
            store.extras[name] = np.asarray(silent, dtype=np.float32)


def merged_counts(names: Sequence[str], rendered: Sequence[Rendered]) -> Counts:
    """Return what became of the rows of all sets together; notes say of which set they are."""
    if len(rendered) == 1:
        return rendered[0].counts
    whole: Counts = {}
    parts = [part.counts for part in rendered]
    for key in dict.fromkeys(key for part in parts for key in part):
        numbers = [value for part in parts if isinstance(value := part.get(key), int | float)]
        whole[key] = max(numbers) if key == "longest" else sum(numbers)
    if "end_tokens_trained" in whole:
        kept = [len(part.store) for part in rendered]
        ends = sum(float(part.get("end_tokens_trained", 0.0)) * n for part, n in zip(parts, kept))  # type: ignore[arg-type]
        whole["end_tokens_trained"] = ends / sum(kept)
    whole["median_length"] = float(np.median(np.concatenate([part.store.lengths for part in rendered])))
    notes: list[str] = []
    for name, part in zip(names, parts):
        said = part["notes"]
        notes += [f"{name}: {note}" for note in said] if isinstance(said, list) else []
    whole["notes"] = notes
    return whole


def set_summaries(sets: Sequence[RecordSet], rendered: Sequence[Rendered]) -> list[dict[str, object]]:
    """Return what report.json says of each set."""
    return [
        {
            "name": part.name,
            "files": [str(file) for file in part.records.files],
            "format": part.records.format,
            "rows": len(part.records),
            "train_rows": len(part.train),
            "held_out_rows": len(part.held),
            **{key: value for key, value in found.counts.items() if key not in ("notes", "rows")},
        }
        for part, found in zip(sets, rendered)
    ]


def mixed_in_words(recipe: Recipe, stream: Steps, batches: int) -> str:
    """Return how often each set comes up in a run of so many batches; nothing for a single set."""
    if not isinstance(stream, MixedStream) or len(stream.sizes) < 2:
        return ""
    told = []
    for name, size, rate, drawn in zip(names_of(recipe.data_sets), stream.sizes, stream.rates, stream.counts(batches)):
        told.append(f"{name} {rate:.1%} (each row {drawn / size:.3g} times)")
    return ", ".join(told)


def note_draws(summary: dict[str, object], stream: Steps, batches: int) -> None:
    """Add to the report what the run drew from each set."""
    parts = summary.get("sets")
    if not isinstance(stream, MixedStream) or not isinstance(parts, list):
        return
    for part, size, rate, drawn in zip(parts, stream.sizes, stream.rates, stream.counts(batches)):
        part |= {"share": rate, "drawn": drawn, "passes": drawn / size}
