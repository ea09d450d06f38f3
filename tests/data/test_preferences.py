"""Preference rows, rated answers and prompts: recognised in the forms that they come in, checked with file and line."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import families
from luthier.core.errors import DataError
from luthier.data.formats import Format
from luthier.data.load import Records, load_records
from luthier.data.pairs import PairRenderer
from luthier.data.preferences import SHAPES, convert
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Asked, Conversation, Preference, PromptAnswer, Rated, answer_of, prompt_of
from luthier.data.render import Renderer
from luthier.data.spec import DataSpec

ROOT = Path(__file__).parents[2]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(tmp_path: Path, form: str, *rows: dict, **spec: object) -> Records:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_records(DataSpec.model_validate({"path": str(path), **spec}), objective=form)  # type: ignore[arg-type]


def refused(tmp_path: Path, form: str, *rows: dict, **spec: object) -> list[str]:
    with pytest.raises(DataError) as error:
        read(tmp_path, form, *rows, **spec)
    return [f"{p.what} → {p.remedy}" for p in error.value.problems]


def side(record: Conversation | PromptAnswer) -> tuple[list[str], str]:
    """What stands before the last answer, in words, and the answer."""
    asked = prompt_of(record)
    if isinstance(asked, PromptAnswer):
        return [p for p in (asked.system, asked.prompt, asked.context) if p], answer_of(record)
    assert isinstance(asked, Conversation)
    return [m.content for m in asked.messages], answer_of(record)


HUMAN = "\n\nHuman: Hi\n\nAssistant: {}"
PAIRS = {
    "text behind a prompt": {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
    "other names": {"question": "Hi", "preferred": "good", "worse": "bad"},
    "messages behind a prompt": {"prompt": [user("Hi")], "chosen": [says("good")], "rejected": [says("bad")]},
    "text behind messages": {"prompt": [user("Hi")], "chosen": "good", "rejected": "bad"},
    "messages behind a text": {"prompt": "Hi", "chosen": [says("good")], "rejected": [says("bad")]},
    "a single message": {"prompt": "Hi", "chosen": says("good"), "rejected": says("bad")},
    "whole conversations": {"chosen": [user("Hi"), says("good")], "rejected": [user("Hi"), says("bad")]},
    "whole conversations beside their prompt": {
        "prompt": "Hi",
        "chosen": [user("Hi"), says("good")],
        "rejected": [user("Hi"), says("bad")],
    },
    "a conversation and two answers, as ShareGPT writes them": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "transcripts": {"chosen": HUMAN.format("good"), "rejected": HUMAN.format("bad")},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_read_in_every_form_that_pairs_come_in(name: str, tmp_path: Path) -> None:
    [record] = read(tmp_path, "preference", PAIRS[name]).records
    assert isinstance(record, Preference)
    assert side(record.chosen) == (["Hi"], "good")
    assert side(record.rejected) == (["Hi"], "bad")
    assert record.source.endswith("rows.jsonl:1")


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_a_good_and_a_bad_answer_where_single_ratings_are_wanted(name: str, tmp_path: Path) -> None:
    good, bad = read(tmp_path, "rated", PAIRS[name]).records
    assert isinstance(good, Rated)
    assert isinstance(bad, Rated)
    assert (good.is_good, bad.is_good) == (True, False)
    assert (answer_of(good), answer_of(bad)) == ("good", "bad")


def test_without_a_prompt_what_both_texts_begin_with_is_taken_for_it_and_that_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, "preference", {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    [record] = found.records
    assert isinstance(record, Preference)
    assert side(record.chosen) == (["The sky is "], "blue.")  # at a border of words, not within one
    assert side(record.rejected) == (["The sky is "], "black.")
    assert "what both answers begin with is taken for it" in found.problems[0].what


def test_system_context_margin_and_columns_of_other_names(tmp_path: Path) -> None:
    row = {"instruction": "Say", "input": "it", "system": "Be kind.", "chosen": "a", "rejected": "b", "margin": 2}
    [record] = read(tmp_path, "preference", row).records
    assert isinstance(record, Preference)
    assert side(record.chosen)[0] == ["Be kind.", "Say", "it"]
    assert record.margin == 2.0
    mapped = {"Frage": "Hi", "besser": "good", "schlechter": "bad"}
    columns = {"prompt": "Frage", "chosen": "besser", "rejected": "schlechter"}
    [record] = read(tmp_path, "preference", mapped, columns=columns).records
    assert isinstance(record, Preference)
    assert side(record.chosen) == (["Hi"], "good")
    assert record.margin is None


def test_turns_that_both_conversations_share_are_not_trained_on(tmp_path: Path) -> None:
    shared = [user("Hi"), says("Hello"), user("And?")]
    [record] = read(tmp_path, "preference", {"chosen": [*shared, says("a")], "rejected": [*shared, says("b")]}).records
    assert isinstance(record, Preference)
    assert isinstance(record.chosen, Conversation)
    weights = [m.weight for m in record.chosen.messages]
    assert weights[:3] == [0.0] * 3
    assert weights[3] != 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "chosen": "same", "rejected": "same"}, "Both answers are the same"),
        ({"prompt": "Hi", "chosen": "good", "rejected": ""}, "One of the answers is empty"),
        ({"prompt": "Hi", "chosen": "good", "rejected": "  \n"}, "One of the answers is empty"),
        ({"prompt": "Hi", "chosen": "good", "rejected": []}, "One of the answers is empty"),
        ({"prompt": "Hi", "chosen": [says("good")], "rejected": [says(" ")]}, "One of the answers is empty"),
        ({"chosen": HUMAN.format("good"), "rejected": HUMAN.format("")}, "One of the answers is empty"),
    ],
)
def test_rows_that_teach_nothing_are_left_out_and_counted(row: dict, said: str, tmp_path: Path) -> None:
    whole = {key: value for key, value in PAIRS["text behind a prompt"].items() if key in row or key == "prompt"}
    if "prompt" not in row:
        whole = PAIRS["transcripts"]
    found = read(tmp_path, "preference", whole, row, row)
    assert len(found) == 1
    [warning] = found.problems
    assert said in warning.what
    assert "rows.jsonl:2" in warning.where
    assert "2" in f"{warning.what} {warning.where}"


@pytest.mark.parametrize(
    ("row", "what", "remedy"),
    [
        ({"prompt": "Hi", "chosen": "a"}, '"rejected" is missing', "give both answers"),
        ({"prompt": "Hi", "chosen": "a", "rejected": 3}, '"rejected" is a number', "give both answers"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, '"prompt" is empty', "fill it in"),
        ({"chosen": "a", "rejected": "b"}, '"prompt" is missing', "fill it in"),
        ({"prompt": "Hi", "chosen": "a", "rejected": [says("b")]}, '"rejected" is a list', "write both as text"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "big"}, "The margin should be a number", "mend it"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": True}, "The margin should be a number", "mend it"),
        ({"prompt": [{"role": "cat", "content": "x"}], "chosen": "a", "rejected": "b"}, "cat", "user"),
        ({"prompt": "Hi", "chosen": [user("x")], "rejected": [user("y")]}, "assistant", ""),
    ],
)
def test_what_is_wrong_with_a_pair_is_said_once_with_its_line_and_a_remedy(
    row: dict, what: str, remedy: str, tmp_path: Path
) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 1}
    told = refused(tmp_path, "preference", good, row)
    assert what in told[0]
    assert remedy in told[0]
    assert len(set(told)) == len(told)


def test_texts_without_a_prompt_that_begin_differently_are_refused(tmp_path: Path) -> None:
    [told] = refused(tmp_path, "preference", {"chosen": "One.", "rejected": "Two."})
    assert "no prompt, and its answers do not begin alike" in told
    assert 'add a column "prompt"' in told


@pytest.mark.parametrize(
    ("form", "row", "remedy"),
    [
        ("preference", {"prompt": "Hi", "completion": "a"}, "objective: sft"),
        ("preference", {"messages": [user("Hi"), says("a")]}, "objective: sft"),
        ("preference", {"text": "Once upon a time"}, "objective: lm"),
        ("preference", {"prompt": "Hi", "completion": "a", "label": True}, "objective: kto"),
        ("rated", {"prompt": "Hi", "completion": "a"}, "columns: {label: COLUMN}"),
        ("prompt", {"colour": "red"}, "columns: {prompt: COLUMN}"),
        ("sft", {"prompt": "Hi", "chosen": "a", "rejected": "b"}, "objective: dpo"),
    ],
)
def test_rows_of_another_kind_are_refused_with_what_to_do_with_them(
    form: str, row: dict, remedy: str, tmp_path: Path
) -> None:
    [told] = refused(tmp_path, form, row)
    assert remedy in told


def test_a_format_that_judged_rows_do_not_have_is_refused(tmp_path: Path) -> None:
    [told] = refused(tmp_path, "preference", PAIRS["text behind a prompt"], format="alpaca")
    assert "alpaca" in told
    [told] = refused(tmp_path, "sft", PAIRS["text behind a prompt"], format="preference")
    assert "dpo, kto, reward" in told


RATINGS = {
    "true": True,
    "a word": "good",
    "a number": 1,
    "a number with a point": 1.0,
    "a word in capitals": "TRUE",
}


@pytest.mark.parametrize("name", RATINGS)
def test_a_rating_is_read_however_it_is_written(name: str, tmp_path: Path) -> None:
    [record] = read(tmp_path, "rated", {"prompt": "Hi", "completion": "a", "label": RATINGS[name]}).records
    assert isinstance(record, Rated)
    assert record.is_good


def test_a_rated_conversation_is_judged_by_its_last_answer(tmp_path: Path) -> None:
    talk = [user("Hi"), says("Hello"), user("And?"), says("No.")]
    [record] = read(tmp_path, "rated", {"messages": talk, "kto_tag": False}).records
    assert isinstance(record, Rated)
    assert not record.is_good
    assert isinstance(record.answer, Conversation)
    assert [m.weight for m in record.answer.messages[:3]] == [0.0] * 3


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "Hi", "completion": "a", "label": "maybe"}, "should be true or false"),
        ({"prompt": "Hi", "completion": "a", "label": 0.5}, "should be true or false"),
        ({"prompt": "Hi", "completion": "a", "label": None}, "should be true or false"),
        ({"prompt": "Hi", "completion": 3, "label": True}, '"completion" is a number'),
        ({"prompt": "Hi", "completion": None, "label": True}, '"completion" is missing'),
        ({"prompt": " ", "completion": "a", "label": True}, '"prompt" is empty'),
    ],
)
def test_what_is_wrong_with_a_rated_row_is_said(row: dict, what: str, tmp_path: Path) -> None:
    [told] = refused(tmp_path, "rated", {"prompt": "Hi", "completion": "a", "label": True}, row)
    assert what in told


def test_a_rated_answer_that_is_empty_is_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": text, "label": True} for text in ("a", "", " ")]
    found = read(tmp_path, "rated", *rows)
    assert len(found) == 1
    assert "The answer is empty" in found.problems[0].what


def test_prompts_keep_their_rows_and_lose_their_answers(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2 =", "answer": "4", "level": 1}
    [record] = read(tmp_path, "prompt", row).records
    assert isinstance(record, Asked)
    assert dict(record.row) == row
    assert prompt_of(record) == PromptAnswer("2 + 2 =", "", "", "", (), False, record.source)
    [record] = read(tmp_path, "prompt", {"messages": [user("Hi"), says("Hello")]}).records
    assert isinstance(record, Asked)
    assert isinstance(record.prompt, Conversation)
    assert [m.content for m in record.prompt.messages] == ["Hi"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": ""}, '"prompt" is empty'),
        ({"prompt": 3}, '"prompt" is a number'),
        ({"prompt": None}, '"prompt" is missing'),
        ({"prompt": [says("a")]}, ""),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(row: dict, what: str, tmp_path: Path) -> None:
    [told] = refused(tmp_path, "prompt", {"prompt": "Hi"}, row)
    assert what in told


TEXT = st.text(alphabet=string.ascii_letters + " \n", max_size=12)
VALUES = st.one_of(st.none(), TEXT, st.integers(), st.lists(st.builds(says, TEXT), max_size=2))


@given(st.fixed_dictionaries({"prompt": VALUES, "chosen": VALUES, "rejected": VALUES}))
def test_every_row_becomes_a_pair_or_is_told_about(row: dict) -> None:
    log = ProblemLog()
    form = Format("preference", {name: name for name in row}, (), "")
    found = convert(Row(row, "rows.jsonl:1"), form, "preference", log)
    told = log.total + len(log.all_warnings())
    assert (len(found) == 1) != (told > 0)
    for record in found:
        assert isinstance(record, Preference)
        assert answer_of(record.chosen).strip()
        assert answer_of(record.chosen) != answer_of(record.rejected) or record.chosen != record.rejected


WORDS = st.lists(st.integers(3, 50).map("w{}".format), min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4))
def test_the_sides_of_a_rendered_pair_are_what_each_side_renders_to_alone(rows: list[tuple[str, str, str]]) -> None:
    records = [
        Preference(*(PromptAnswer(f"{p} ", answer, "", "", (), False, "r:1") for answer in pair), None, "r:1")
        for p, *pair in rows
        if pair[0] != pair[1]
    ]
    if not records:
        return
    renderer = Renderer(families.tokenizer(), objective_kind="sft", max_length=64)
    store = PairRenderer(renderer).render_all(records).store
    alone = renderer.render_all([side for r in records for side in (r.chosen, r.rejected)]).store
    paths = [path for index in range(len(store)) for path in store[index].paths()]
    assert len(paths) == len(alone)
    for path, expected in zip(paths, (alone[i] for i in range(len(alone)))):
        assert np.array_equal(path.tokens, expected.tokens)
        assert np.array_equal(path.weights, expected.weights)


def test_every_shape_of_judged_rows_has_an_example_that_is_read(tmp_path: Path) -> None:
    for name, shape in SHAPES.items():
        row = json.loads(shape.example)
        row |= {"chosen": "better"} if "chosen" in row else {}
        assert len(read(tmp_path, name, row)) == 1
