"""What each check of the doctor says, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.records import Message
from luthier.data.scripts import estimate_tokens, script_of
from luthier.data.spec import DataSpec
from luthier.doctor.base import SeenRow
from luthier.doctor.checks.answers import Answers
from luthier.doctor.checks.boilerplate import Boilerplate
from luthier.doctor.checks.encoding import Encoding
from luthier.doctor.checks.labels import Labels
from luthier.doctor.checks.languages import Languages
from luthier.doctor.checks.personal import Personal, is_card, is_chinese_id, is_iban
from luthier.doctor.checks.roles import Roles
from luthier.doctor.checks.toxic import Toxic, read_words
from luthier.doctor.examine import Diagnosis, examine
from luthier.doctor.fix import write_fixed
from luthier.doctor.minhash import Commonness, SignatureTable, Signer, letter_shingles
from luthier.doctor.page import page

WORDS = ["river", "stone", "cloud", "maple", "amber", "quiet", "harbour", "lantern"]


def row(prompt: str, answer: str, number: int = 0) -> SeenRow:
    turns = (Message("user", prompt), Message("assistant", answer))
    return SeenRow(number, f"rows.jsonl:{number + 1}", turns, prompt, answer)


def diagnose(tmp_path: Path, rows: list[dict[str, object]], name: str = "rows.jsonl") -> Diagnosis:
    path = tmp_path / name
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return examine(DataSpec(path=str(path)))


@pytest.mark.parametrize(
    ("check", "prompt", "answer", "kind"),
    [
        (Encoding(), "q", "Itâ€™s late.", "encoding"),
        (Encoding(), "q", "浣犲ソ，世界", "encoding"),
        (Encoding(), "q", "a\x07b", "encoding"),
        (Encoding(), "q", "Tom &amp; Jerry &quot;again&quot;", "markup"),
        (Personal(), "q", "Call (212) 736-5000 now.", "personal_data"),
        (Personal(), "q", "他的手机是13907652481。", "personal_data"),
        (Personal(), "q", "IBAN DE89 3704 0044 0532 0130 00", "personal_data"),
        (Personal(), "q", "Her number is 536-22-8417.", "personal_data"),
        (Roles(), "q", "### Response: yes", "template"),
        (Answers(), "Tell me.", "same line again. " * 6, "repetition"),
        (Boilerplate(), "Write a song.", "I'm sorry, but I can't help with that.", "refusal"),
        (Boilerplate(), "q", "…", "placeholder"),
        (Languages(), "Напиши стихотворение про осень", "Autumn leaves fall on quiet river banks.", "language"),
    ],
)  # fmt: skip
def test_a_defect_is_named(check: Answers, prompt: str, answer: str, kind: str) -> None:
    assert [f.kind for f in [*check.look(row(prompt, answer)), *check.conclude()]] == [kind]


@pytest.mark.parametrize(
    ("check", "prompt", "answer"),
    [
        (Encoding(), "Was heißt das?", "Das Café in Zürich kostet 5 €, naïve façade – “so” … ÀÉÎ"),
        (Encoding(), "Write an HTML page.", "<div><p>Hi</p></div>"),
        (Personal(), "q", "Call 555-0123; pi is 3.14159265358979."),
        (Personal(), "q", "In 2019-2020 the total was 1,234,567,890 and 4111 1111 1111 1112 is no card."),
        (Roles(), "Write a dialogue.", "Human: Hi\nAssistant: Hello\nHuman: Bye"),
        (Answers(), "List fruit.", "- apples\n- pears\n- plums"),
        (Answers(), "Repeat: the cat sat on the mat today", "the cat sat on the mat today"),
        (Boilerplate(), "Are you an AI?", "Yes, I am an AI language model."),
        (Boilerplate(), "Which numbers are prime?", "[2, 3, 5]"),
        (Languages(), "Translate to Chinese: the weather is lovely", "今天天气很好，" * 6),
    ],
)  # fmt: skip
def test_what_is_in_order_is_left_alone(check: Answers, prompt: str, answer: str) -> None:
    assert list(check.look(row(prompt, answer))) == []


def test_checksums_tell_real_numbers_from_others() -> None:
    assert is_card("4539 1488 0343 6467")
    assert not is_card("4539 1488 0343 6468")
    assert is_chinese_id("11010519491231002X")
    assert not is_chinese_id("110105194912310021")
    assert is_iban("GB82 WEST 1234 5698 7654 32")
    assert not is_iban("GB82 WEST 1234 5698 7654 33")


def test_what_is_found_of_a_person_is_not_spread_by_the_report() -> None:
    (found,) = Personal().look(row("q", "Write to maria.lindqvist84@hotmail.se please."))
    assert "lindqvist" not in found.message


def test_turns_out_of_order_are_named() -> None:
    turns = tuple(Message(r, "words") for r in ("user", "assistant", "assistant"))  # type: ignore[arg-type]
    assert [f.kind for f in Roles().look(SeenRow(0, "f:1", turns, "words", "words"))] == ["roles"]


def test_labels_that_contradict_each_other_and_classes_far_apart_are_named() -> None:
    check = Labels()
    rows = [SeenRow(i, f"f:{i + 1}", (), f"text {i}", "", "a") for i in range(100)]
    rows += [SeenRow(100, "f:101", (), "text 3", "", "b"), SeenRow(101, "f:102", (), "other", "", "b")]
    assert [f.kind for r in rows for f in check.look(r)] == ["label_conflict"]
    assert [f.kind for f in check.conclude()] == ["label_imbalance"]


@given(st.lists(st.sampled_from(WORDS), min_size=30, max_size=60))
def test_the_estimate_of_likeness_is_near_the_truth(words: list[str]) -> None:
    signer = Signer()
    changed = [*words[:-3], "entirely", "other", "words"]
    a, b = (letter_shingles(" ".join(w)) for w in (words, changed))
    assert a is not None
    assert b is not None
    truth = len(np.intersect1d(a, b)) / len(np.union1d(a, b))
    assert float((signer.sign(a) == signer.sign(b)).mean()) == pytest.approx(truth, abs=0.25)


def test_alike_names_the_earlier_row_of_each_pair() -> None:
    signer, table = Signer(), SignatureTable()
    texts = ["the quick brown fox jumps over the lazy dog near the old mill by the river today"] * 2
    texts.insert(1, "something else entirely is written here about ships and sails and distant ports of call")
    for index, text in enumerate(texts):
        shingles = letter_shingles(text)
        assert shingles is not None
        table.add(index, signer.sign(shingles))
    assert [(a, b) for a, b, _ in table.alike(0.8)] == [(2, 0)]


def test_rows_in_different_blocks_of_signatures_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.doctor.minhash.BLOCK", 8)
    draw, table = np.random.default_rng(1), SignatureTable()
    signatures = draw.integers(0, 2**16, (40, 112), dtype=np.uint16)
    signatures[[21, 37]] = signatures[[3, 30]]
    for index, signature in enumerate(signatures):
        table.add(100 + index, signature)
    assert sorted((a, b) for a, b, _ in table.alike(0.8)) == [(121, 103), (137, 130)]


def test_what_many_rows_begin_with_makes_no_duplicates_of_them(tmp_path: Path) -> None:
    begin = "Read the following passage with care and answer the question behind it in one short sentence of your own. "
    draw = np.random.default_rng(2)
    rows: list[dict[str, object]] = [
        {"prompt": begin + " ".join(draw.choice(WORDS, 9)) + f" {name}", "answer": f"It is {name} " + " ".join(draw.choice(WORDS, 4))}
        for name in (f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("arolet", "enissa", "ithuma", "ogrand"))
    ]  # fmt: skip
    rows.append(
        {"prompt": begin + str(rows[5]["prompt"]).removeprefix(begin).title(), "answer": f"{rows[5]['answer']}!"}
    )
    found = [f.line for f in diagnose(tmp_path, rows).findings if "duplicate" in f.kind]
    assert found == [len(rows)]


def test_common_shingles_count_for_less() -> None:
    common = Commonness(bits=10)
    for row in range(50):
        common.add(np.array([1, 2 + row], dtype=np.uint64))
    weights = common.weights(np.array([1, 7], dtype=np.uint64))
    assert weights[0] < 0.3
    assert weights[1] == 1.0


def test_the_same_question_with_other_numbers_is_another_question(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"A baker sells {n} loaves in the morning and {n + 9} at noon. How many are sold?", "answer": f"{2 * n + 9} loaves."}
        for n in (12, 47, 85)
    ]  # fmt: skip
    assert [f.kind for f in diagnose(tmp_path, rows).findings] == []


def test_rows_of_the_evaluation_that_are_trained_on_are_leaks(tmp_path: Path) -> None:
    rows = [{"prompt": f"How many legs have {i} cats?", "answer": f"{4 * i} legs in all."} for i in range(30)]
    path, held = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    held.write_text(json.dumps(rows[7]) + "\n" + json.dumps({"prompt": "Who is it?", "answer": "Nobody."}) + "\n")
    found = examine(DataSpec(path=str(path)), DataSpec(path=str(held)))
    assert [(f.kind, f.line) for f in found.findings if f.kind == "leak"] == [("leak", 1)]


def test_a_cleaned_copy_keeps_the_others_as_they_were_and_says_what_went(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    rows += [{"prompt": f"What is {i} and {i}?", "answer": f"It is {2 * i}.", "note": i} for i in range(9)]
    rows += [dict(rows[2]), {"prompt": "And this?", "answer": ""}]
    found = diagnose(tmp_path, rows)
    fixed = write_fixed(DataSpec(path=str(tmp_path / "rows.jsonl")), found, tmp_path / "clean.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    removed = [json.loads(line) for line in fixed.log.read_text().splitlines()]
    assert kept == rows[:9]
    assert [(r["kind"], r["line"]) for r in removed] == [("duplicate", 10), ("empty_answer", 11)]
    assert [r["row"] for r in removed] == rows[9:]
    assert fixed.kept + fixed.left_out.total() == len(rows)


def test_the_page_escapes_what_the_rows_say(tmp_path: Path) -> None:
    found = diagnose(tmp_path, [{"prompt": "<script>alert(1)</script> what is this?", "answer": "TODO"}] * 2)
    text = page(found, "<b>title</b>")
    assert "<script>" not in text
    assert "<b>title</b>" not in text


def test_a_row_that_cannot_be_read_is_logged_and_removes_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "Who is it?", "answer": "Nobody."}\n{"prompt": \n{"prompt": "And now?", "answer": "We."}\n'
    )
    found = examine(DataSpec(path=str(path)))
    fixed = write_fixed(DataSpec(path=str(path)), found, tmp_path / "clean.jsonl")
    removed = [json.loads(line) for line in fixed.log.read_text().splitlines()]
    assert fixed.kept == 2
    assert [(r["kind"], r["line"]) for r in removed] == [("unreadable", 2)]


def test_every_removed_row_is_left_out_even_where_findings_are_too_many_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.doctor.examine.MOST_OF_A_KIND", 5)
    rows: list[dict[str, object]] = [{"prompt": "Who is it?", "answer": "Nobody at all."}] * 30
    found = diagnose(tmp_path, rows)
    fixed = write_fixed(DataSpec(path=str(tmp_path / "rows.jsonl")), found, tmp_path / "clean.jsonl")
    assert len(found.findings) == 5
    assert (fixed.kept, fixed.left_out["duplicate"]) == (1, 29)
    assert len(fixed.log.read_text().splitlines()) == 29


def test_a_users_own_words_are_looked_for(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# ours\nfrumious*\n坏词\n", encoding="utf-8")
    check = Toxic(read_words(words))
    assert [f.kind for f in check.look(row("q", "Beware the frumiously bad."))] == ["toxic"]
    assert [f.kind for f in check.look(row("q", "这是坏词。"))] == ["toxic"]
    assert list(check.look(row("q", "Scunthorpe has a classic retardant assassin."))) == []


def test_tokens_are_estimated_by_script() -> None:
    assert estimate_tokens("a" * 400) == pytest.approx(100, abs=2)
    assert estimate_tokens("山" * 120) == pytest.approx(100, abs=3)
    assert script_of("Это предложение написано кириллицей") == "Cyrillic"
