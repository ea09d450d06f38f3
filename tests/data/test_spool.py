"""Rows between checking and rendering: beyond a number they stand on disk, and come back as they were."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.data import spool
from luthier.data.load import load_records, split
from luthier.data.records import (
    Asked,
    Conversation,
    Labelled,
    Message,
    Preference,
    PromptAnswer,
    Rated,
    Record,
    Text,
)
from luthier.data.spec import DataSpec
from luthier.data.spool import Spool, SpooledRecords, decode, encode, encoded
from luthier.data.store import StoreBuilder, _Growing

words = st.text(max_size=12)
places = st.builds(lambda name, line: f"{name}.jsonl:{line}", st.sampled_from(["a", "b/c", "中文"]), st.integers(1, 99))
weights = st.none() | st.floats(0, 1)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), words, weights, words), max_size=3
).map(tuple)
turns = st.lists(st.tuples(words, words), max_size=2).map(tuple)


def talks(place: str) -> st.SearchStrategy[Conversation | PromptAnswer]:
    here = st.just(place)
    return st.builds(Conversation, messages, here) | st.builds(
        PromptAnswer, words, words, words, words, turns, st.booleans(), here, words
    )


def rows(place: str) -> st.SearchStrategy[Record]:
    here, talk = st.just(place), talks(place)
    return st.one_of(
        talk,
        st.builds(Text, words, here),
        st.builds(Labelled, words, words, words, here, st.none() | st.lists(words).map(tuple), weights),
        st.builds(Preference, talk, talk, weights, here),
        st.builds(Rated, talk, st.booleans(), here),
        st.builds(Asked, talk, st.dictionaries(words, words | st.integers()), here),
    )


records = places.flatmap(rows)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records)
def test_every_kind_of_record_comes_back_as_it_was(record: Record) -> None:
    assert decode(json.loads(encode(record)), record.source) == record


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records, max_size=6), st.integers(0, 3))
def test_records_on_disk_are_those_in_memory(several: list[Record], held: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", held)
        kept = Spool()
        kept.extend(several)
        assert len(kept) == len(several)
        found = kept.done()
    assert isinstance(found, SpooledRecords) == (len(several) > held)
    assert list(found) == several
    assert [found[i] for i in range(-len(several), len(several))] == [*several, *several]
    assert list(found[1:3]) == several[1:3]
    assert list(encoded(found)) == list(encoded(several))  # so that a cache finds them either way


def test_a_row_that_json_cannot_hold_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    asked = PromptAnswer("When?", "", "", "", (), False, "x:1")
    several = [Asked(asked, {"day": datetime.date(2020, 1, 2)}, "x:1"), Asked(asked, {1: "a number as a key"}, "x:2")]
    kept = Spool()
    kept.extend(several)
    assert list(kept.done()) == several


def test_many_rows_are_read_checked_and_split_as_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50)), encoding="utf-8")
    few = load_records(DataSpec(path=str(file)), objective="lm")
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    many = load_records(DataSpec(path=str(file)), objective="lm")
    assert isinstance(many.records, SpooledRecords)
    assert list(many.records) == list(few.records)
    assert many.counts == few.counts
    for ours, theirs in zip(split(many.records, 0.2, 3), split(few.records, 0.2, 3)):
        assert list(ours) == list(theirs)
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"text": 5}\n{"text": \n')
    with pytest.raises(DataError) as error:
        load_records(DataSpec(path=str(file)), objective="lm")
    assert "rows.jsonl:51" in str(error.value)
    assert "rows.jsonl:52" in str(error.value)


def test_a_store_on_disk_is_the_one_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def built() -> list[tuple]:
        builder, draw = StoreBuilder(), np.random.default_rng(0)
        for row in range(40):
            size = int(draw.integers(1, 9))
            weights = draw.integers(0, 2, size).astype(np.float32)
            builder.add(draw.integers(0, 99, size), weights, f"a:{row}", {"label": float(row)})
        return [(e.tokens.tolist(), e.weights.tolist(), e.source, dict(e.extras)) for e in builder.build()]

    in_memory = built()
    monkeypatch.setattr(_Growing, "HELD", 16)
    assert built() == in_memory
