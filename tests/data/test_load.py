"""Splitting, fingerprints, the compact store and the preview page."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, family_tokenizer, lossy_tokenizer

from luthier.core.batch import Example
from luthier.core.errors import DataError
from luthier.data.load import fingerprint, split
from luthier.data.preview import preview_html
from luthier.data.records import Conversation, Message, Text
from luthier.data.render import Renderer
from luthier.data.store import ExampleStore, StoreBuilder

sequences = st.lists(
    st.tuples(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8), st.sampled_from([0.0, 1.0, 0.5, 2.0])),
    max_size=8,
)

# ---- split and fingerprint ------------------------------------------------------------------------------------------


@given(size=st.integers(2, 200), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_a_split_is_exact_disjoint_seeded_and_keeps_the_order(size: int, fraction: float, seed: int) -> None:
    rows = list(range(size))
    train, held = split(rows, fraction, seed)
    assert sorted(train + held) == rows
    assert (train, held) == (sorted(train), sorted(held))
    assert len(held) == min(max(1, round(fraction * size)), size - 1)
    assert split(rows, fraction, seed) == (train, held)


def test_another_seed_gives_another_split_and_zero_gives_none() -> None:
    rows = list(range(100))
    assert split(rows, 0.1, 0)[1] != split(rows, 0.1, 1)[1]
    assert split(rows, 0.0, 0) == (rows, [])


def test_one_row_cannot_be_split_and_the_remedy_says_how_to_make_more() -> None:
    with pytest.raises(DataError, match="endoftext"):
        split(["a"], 0.1, 0)


def test_a_fingerprint_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    one, other, changed = (tmp_path / name for name in ("a", "b", "c"))
    one.write_text("x")
    other.write_text("x")
    changed.write_text("y")
    assert fingerprint([one])["sha256"] == fingerprint([other])["sha256"]
    assert fingerprint([one])["sha256"] != fingerprint([changed])["sha256"]
    assert fingerprint([one, changed])["sha256"] != fingerprint([changed, one])["sha256"]
    assert fingerprint([one])["files"] == [
        {"name": "a", "bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    ]


# ---- the store ------------------------------------------------------------------------------------------------------


def stored(rows: list[tuple[list[int], float]]) -> ExampleStore:
    builder = StoreBuilder()
    for number, (ids, weight) in enumerate(rows):
        weights = np.zeros(len(ids), np.float32)
        weights[1:] = weight
        builder.add(np.array(ids), weights, f"some/file.jsonl:{number + 1}" if number % 2 else "no line")
    return builder.build()


@given(rows=sequences)
def test_what_goes_into_a_store_comes_out_again(rows: list[tuple[list[int], float]]) -> None:
    store = stored(rows)
    assert len(store) == len(rows)
    assert store.lengths.tolist() == [len(ids) for ids, _ in rows]
    for number, ((ids, weight), example) in enumerate(zip(rows, store, strict=True)):
        assert isinstance(example, Example)
        assert example.tokens.dtype == np.int32
        assert example.weights.dtype == np.float32
        assert example.tokens.tolist() == ids
        assert example.weights.tolist() == [0.0, *[weight] * (len(ids) - 1)]
        assert example.source == (f"some/file.jsonl:{number + 1}" if number % 2 else "no line")
    assert [e.source for e in store[1:3]] == [store[i].source for i in range(1, min(3, len(store)))]
    with pytest.raises(IndexError):
        store[len(store)]
    if rows:
        assert store[-1].tokens.tolist() == rows[-1][0]
        assert store[np.int64(0)].tokens.tolist() == rows[0][0]  # type: ignore[index]


def test_a_million_short_rows_take_little_memory() -> None:
    rows = 2_000
    store = stored([(list(range(50)), 1.0)] * rows)
    assert store.nbytes / rows < 300


def test_too_many_different_weights_are_refused() -> None:
    builder = StoreBuilder()
    with pytest.raises(DataError, match="round the weights"):
        builder.add(np.arange(400), np.linspace(0.1, 0.9, 400, dtype=np.float32), "a:1")


# ---- the preview ----------------------------------------------------------------------------------------------------

TAGS = re.compile(r'<span class="(t[^"]*)"[^>]*title="token (\d+), weight ([^"]+)">(.*?)</span>', re.DOTALL)
texts = st.text(st.sampled_from("ab <>&\"'\n\t春😀é{}"), min_size=1, max_size=12).filter(str.strip)


def tokens_of(page: str) -> list[tuple[str, int, float, str]]:
    body = page[page.index('<div class="tokens">') :]
    return [(kind, int(token), float(weight), text) for kind, token, weight, text in TAGS.findall(body)]


def plain(text: str) -> str:
    marks = {"<i>·</i>": " ", "<i>⇥</i>\t": "\t", "<i>⏎</i>\n": "\n", "<i>◂</i>": "", "<i>∅</i>": ""}
    for mark, real in marks.items():
        text = text.replace(mark, real)
    return html.unescape(text)


@pytest.mark.parametrize("name", ["llama 3", "mistral", "qwen 3"])
@settings(max_examples=30, deadline=None)
@given(question=texts, answer=texts)
def test_the_preview_shows_every_token_with_its_number_weight_and_text(name: str, question: str, answer: str) -> None:
    tokenizer = family_tokenizer(name)
    record = Conversation((Message("user", question), Message("assistant", answer)), "a.jsonl:1")
    rendered = Renderer(tokenizer).render_all([record])
    page = preview_html(rendered.store, tokenizer, "rows", rendered.counts)
    shown, example = tokens_of(page), rendered.store[0]
    assert [token for _, token, _, _ in shown] == example.tokens.tolist()
    assert [weight for _, _, weight, _ in shown] == example.weights.tolist()
    assert [kind.startswith("t y") for kind, *_ in shown] == (example.weights == 1).tolist()
    family = FAMILIES[name]
    special = {tokenizer.convert_tokens_to_ids(t) for t in (family.bos, family.eos, *family.special) if t}
    assert [kind.endswith(" s") for kind, *_ in shown] == [i in special for i in example.tokens.tolist()]
    assert "\ufffd" not in page
    ordinary = "".join(plain(text) for *_, text in shown)
    assert question.strip() in ordinary
    assert answer.strip() in ordinary


def test_the_preview_is_one_page_without_outside_parts_and_escapes_what_users_wrote() -> None:
    tokenizer = family_tokenizer("llama 3")
    record = Conversation((Message("user", "<script>alert(1)</script>"), Message("assistant", "b")), "<b>.jsonl:1")
    rendered = Renderer(tokenizer).render_all([record])
    page = preview_html(rendered.store, tokenizer, "<script>", {**rendered.counts, "notes": ["<img src=x>"]})
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;b&gt;.jsonl:1" in page
    assert not re.search(r'(src|href)="|url\(|@import', page)


def test_the_preview_takes_examples_from_first_to_last_and_shortens_long_ones() -> None:
    tokenizer = family_tokenizer("chatml")
    records = [Text("a " * (1 if i < 49 else 2000), f"a.jsonl:{i + 1}") for i in range(50)]
    rendered = Renderer(tokenizer, "lm").render_all(records)
    page = preview_html(rendered.store, tokenizer, "rows", rendered.counts, limit=5)
    assert re.findall(r"<b>a\.jsonl:(\d+)</b>", page) == ["1", "13", "25", "37", "50"]
    assert "tokens not shown" in page
    assert "50" in page[: page.index("<article>")]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_weights_between_none_and_one_are_shaded(name: str) -> None:
    tokenizer = family_tokenizer(name)
    record = Conversation((Message("user", "a"), Message("assistant", "b", weight=0.25)), "a.jsonl:1")
    rendered = Renderer(tokenizer).render_all([record])
    assert "--weight:25%" in preview_html(rendered.store, tokenizer, "rows", rendered.counts)


def test_an_empty_store_and_a_tokenizer_that_knows_little_still_give_a_page() -> None:
    tokenizer = lossy_tokenizer()
    assert "0 of 0 examples" in preview_html(StoreBuilder().build(), tokenizer, "none", {})
    rendered = Renderer(tokenizer, "lm").render_all([Text("###Say 春", "a:1")])
    assert "characters the tokenizer lost" in preview_html(rendered.store, tokenizer, "rows", rendered.counts)
