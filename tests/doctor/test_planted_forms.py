"""Defects of many other forms than the first test's, in every format, in English and Chinese, and in plain text."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import defects
from luthier.data.spec import DataSpec
from luthier.doctor.examine import Diagnosis, examine


def plant(
    tmp_path: Path, clean: Sequence[defects.Row], planted: Sequence[tuple[set[str], defects.Row]]
) -> tuple[Diagnosis, dict[int, set[str]]]:
    """Put rows with defects among the second half of clean ones, and examine all."""
    draw = random.Random(5)
    rows: list[tuple[set[str], defects.Row]] = [(set(), row) for row in clean]
    for kinds, row in planted:
        rows.insert(draw.randrange(len(clean) // 2 + 200, len(rows)), (kinds, row))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in rows), encoding="utf-8")
    return examine(DataSpec(path=str(path))), {i: kinds for i, (kinds, _) in enumerate(rows, start=1) if kinds}


def missed(found: Diagnosis, planted: dict[int, set[str]]) -> list[set[str]]:
    named = {line: {f.kind for f in found.findings if f.line == line} for line in planted}
    return [kinds for line, kinds in planted.items() if not kinds & named[line]]


def accused(found: Diagnosis, planted: dict[int, set[str]]) -> list[str]:
    """Return what is said of rows that were not planted, a row once."""
    said = {f.line: f"{f.kind} {f.message}" for f in found.findings if f.row >= 0 and f.line not in planted}
    return [f"{line}: {what}" for line, what in said.items()]


@pytest.fixture(scope="module")
def english(shared: Path) -> list[defects.Pair]:
    rows = json.loads((shared / "data/alpaca/alpaca_small.json").read_text(encoding="utf-8"))
    pairs = [(f"{r['instruction']} {r['input']}".strip(), r["output"]) for r in rows if r["output"].strip()]
    with gzip.open(shared / "data/gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as stream:
        pairs += [(row["question"], row["answer"]) for row in map(json.loads, stream)]
    return pairs[:2500]


@pytest.mark.parametrize("name", ["alpaca", "messages", "sharegpt", "preference", "flan"])
def test_defects_of_other_forms_are_found_in_every_format(
    name: str, english: list[defects.Pair], tmp_path: Path
) -> None:
    write = defects.FORMATS[name]
    wanted = [(kinds, write(pair)) for kinds, pair in defects.english(english)]
    if name == "preference":  # of judged answers somebody has said that a refusal is the better one
        wanted = [(kinds, row) for kinds, row in wanted if kinds != {"refusal"}]
    found, planted = plant(tmp_path, [write(pair) for pair in english], wanted)
    assert len(missed(found, planted)) <= 1, missed(found, planted)
    assert len(accused(found, planted)) <= 0.01 * len(english), accused(found, planted)


def test_defects_in_chinese_are_found(shared: Path, tmp_path: Path) -> None:
    rows = json.loads((shared / "data/llamafactory/alpaca_zh_demo.json").read_text(encoding="utf-8"))
    pairs = [(f"{r['instruction']}{r['input']}", r["output"]) for r in rows]
    wanted = [(kinds, defects.messages(pair)) for kinds, pair in defects.chinese(pairs)]
    found, planted = plant(tmp_path, [defects.messages(pair) for pair in pairs], wanted)
    assert missed(found, planted) == []


def test_defects_of_documents_are_found(shared: Path, tmp_path: Path) -> None:
    text = (shared / "data/tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8")
    stories = [" ".join(s.split()) for s in text.split("\n\n") if len(s) > 200][:900]
    half = stories[77].split(". ")
    wanted: list[tuple[set[str], defects.Row]] = [
        ({"near_duplicate"}, {"text": ". ".join(half[2:] + half[:2])}),
        ({"duplicate"}, {"text": stories[50].upper()}),
        ({"encoding"}, {"text": defects.wrong("La forêt était très silencieuse ce soir-là.", "utf-8", "cp1252")}),
        ({"encoding"}, {"text": "Once upon a time\x00 there was a small\x00 boat on the lake."}),
        ({"boilerplate"}, {"text": "Skip to content. The fox ran away. We use cookies. Accept cookies. All rights reserved."}),
        ({"toxic"}, {"text": "The boy shouted at the dog: go and kill yourself, you fucking animal."}),
        ({"template"}, {"text": "<|im_start|>user\nTell me a story<|im_end|>\n<|im_start|>assistant\nOnce upon a time."}),
        ({"personal_data"}, {"text": "Her number is 536-22-8417 and she lives by the lake with her dog and her brother."}),
        ({"repetition", "overlong"}, {"text": "The dog ran home. " * 1500}),
        ({"empty_text"}, {"text": "  "}),
    ]  # fmt: skip
    found, planted = plant(tmp_path, [{"text": story} for story in stories], wanted)
    assert missed(found, planted) == []
    assert len(accused(found, planted)) <= 0.01 * len(stories), accused(found, planted)


def test_defects_of_turns_are_found(english: list[defects.Pair], tmp_path: Path) -> None:
    def turns(*said: tuple[str, str]) -> defects.Row:
        return {"messages": [{"role": role, "content": content} for role, content in said]}

    asked, answered = ("user", "What is a fjord and where are they found?"), ("assistant", "It is a long narrow inlet.")
    wanted = [
        ({"roles"}, turns(("assistant", "It is an inlet of the sea."), ("user", "What is it?"), answered)),
        ({"roles"}, turns(asked, asked, answered)),
        ({"roles"}, turns(asked, answered, ("system", "Be brief."), ("user", "Go on."), answered)),
        ({"roles"}, turns(asked, answered, ("user", "Thank you."))),
        ({"roles"}, turns(("narrator", "A fjord lies still."), answered)),
        ({"roles"}, turns(("user", "Sure! Here is a poem on the sea: waves roll in and out again all day."), ("assistant", "Write a poem."))),
        ({"empty_user_message", "empty_prompt"}, turns(("user", " "), ("assistant", "A fjord was carved by ice."))),
        ({"empty_answer"}, turns(asked, answered, ("user", "Where else?"), ("assistant", ""))),
    ]  # fmt: skip
    found, planted = plant(tmp_path, [defects.messages(pair) for pair in english[:600]], wanted)
    assert missed(found, planted) == []


def test_defects_of_labels_are_found(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data/sst2/train.tsv").read_text(encoding="utf-8").splitlines()[:1500]
    clean = [dict(zip(("text", "label"), line.rsplit("\t", 1))) for line in lines]
    clean = [{"text": row["text"], "label": "positive" if row["label"] == "1" else "negative"} for row in clean]
    twin = max(clean[100:200], key=lambda row: len(row["text"]))
    wanted: list[tuple[set[str], defects.Row]] = [
        ({"label_conflict"}, {**twin, "label": "negative" if twin["label"] == "positive" else "positive"}),
        ({"label"}, {"text": "a quiet film that stays with you for weeks", "label": "postive"}),
        ({"label"}, {"text": "a loud film that nobody will remember", "label": ""}),
        ({"label"}, {"text": "a film about ships and the people aboard", "label": "banana"}),
        ({"duplicate"}, {"text": twin["text"].upper(), "label": twin["label"]}),
        ({"encoding"}, {"text": "a very good film with a clichÃ©d ending", "label": "positive"}),
    ]
    found, planted = plant(tmp_path, list(clean), wanted)
    assert missed(found, planted) == []
    assert len(accused(found, planted)) <= 0.01 * len(clean), accused(found, planted)


def test_pairs_that_are_judged_both_ways_are_found(tmp_path: Path) -> None:
    rows: list[defects.Row] = [
        {"prompt": f"Name a thing of the colour {i}.", "chosen": f"Thing {i} it is.", "rejected": f"No {i}."} for i in range(40)
    ]  # fmt: skip
    rows.append({**rows[3], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]})
    rows.append({"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Apple."})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = {(f.line, f.kind) for f in examine(DataSpec(path=str(path))).findings}
    assert {(41, "label_conflict"), (42, "same_answers")} <= said


def test_a_row_that_lacks_the_end_mark_of_the_others_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i} times {i}?", "answer": f"It is {i * i}.</s>"} for i in range(60)]
    rows[33]["answer"] = "It is 1089."
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = examine(DataSpec(path=str(path))).findings
    assert [f.line for f in found if f.kind == "missing_end"] == [34]
    assert [f.line for f in found if f.kind == "template"] == [0]  # the mark is their manner: told once
