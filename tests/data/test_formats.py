"""Recognising how rows are written, checking each, and saying what is wrong and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.data.load import Objective, Records, load_records
from luthier.data.records import Conversation, Message, PromptAnswer, Text, answer_of, conversation, prompt_of
from luthier.data.spec import DataSpec

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
Row = dict[str, Any]


def load(tmp_path: Path, rows: list[Row] | str, objective: Objective = "sft", **spec: Any) -> Records:
    path = tmp_path / spec.pop("name", "rows.jsonl")
    content = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    return load_records(DataSpec(path=str(path), **spec), objective=objective)


def fault(tmp_path: Path, rows: list[Row] | str, objective: Objective = "sft", **spec: Any) -> str:
    with pytest.raises(DataError) as error:
        load(tmp_path, rows, objective, **spec)
    return str(error.value)


def chat(*messages: Row, **columns: Any) -> Row:
    return {"messages": list(messages), **columns}


# ---- recognised -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name", "prompt", "answer"),
    [
        (chat(USER, ASSISTANT), "messages", "Hi", "Hello"),
        ({"conversations": [USER, ASSISTANT]}, "messages", "Hi", "Hello"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, "sharegpt", "Hi", "Yo"),
        ({"instruction": "Do", "input": "it", "output": "Done"}, "alpaca", "Do\nit", "Done"),
        ({"instruction": "Do", "output": "Done"}, "alpaca", "Do", "Done"),
        ({"instruction": "Do", "input": None, "output": "Done"}, "alpaca", "Do", "Done"),
        ({"instruction": "", "input": "Do it", "output": "Done"}, "alpaca", "Do it", "Done"),
        ({"instruction": "Do", "context": "it", "response": "Ok", "category": "x"}, "dolly", "Do\nit", "Ok"),
        ({"inputs": "Q", "targets": "A"}, "flan", "Q", "A"),
        ({"question": "Q", "answer": "A"}, "flan", "Q", "A"),
        ({"Question": "Q", "Answer": "A"}, "flan", "Q", "A"),
        ({"question": "Q", "answer": "A", "rationale": "So."}, "flan", "Q", "So.\nThe answer is A."),
        ({"prompt": "Q", "completion": "A"}, "flan", "Q", "A"),
        ({"prompt": "Q", "response": "A"}, "flan", "Q", "A"),
        ({"input": "Q", "output": "A"}, "flan", "Q", "A"),
        ({"query": "Q", "response": "A"}, "flan", "Q", "A"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "flan", "Hi", "Hello"),
    ],
)
def test_the_formats_of_the_field_are_recognised(tmp_path: Path, row: Row, name: str, prompt: str, answer: str) -> None:
    records = load(tmp_path, [row, row])
    assert records.format == name
    record = records.records[0]
    assert not isinstance(record, Text)
    turns = conversation(record).messages
    assert [(m.role, m.content) for m in turns] == [("user", prompt), ("assistant", answer)]
    assert answer_of(record) == answer
    assert record.source.endswith("rows.jsonl:1")


@pytest.mark.parametrize("row", [{"text": "A story."}, {"content": "A story.", "title": "T"}])
def test_raw_text_is_recognised_for_language_modelling(tmp_path: Path, row: Row) -> None:
    records = load(tmp_path, [row], "lm")
    assert records.format == "text"
    assert records.records == (Text("A story.", f"{tmp_path}/rows.jsonl:1"),)


def test_alpaca_keeps_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "c", "input": "", "output": "d", "system": "S", "history": [["a", "b"]]}
    record = load(tmp_path, [row]).records[0]
    assert isinstance(record, PromptAnswer)
    roles = [(m.role, m.content) for m in conversation(record).messages]
    assert roles == [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_chat_details_are_kept(tmp_path: Path) -> None:
    row = chat(
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}, "c"]},
        {"role": "assistant", "content": "x", "train": False},
        {"role": "user", "content": "again", "weight": 0},
        {"role": "assistant", "content": "y", "loss_weight": 0.5, "reasoning_content": "think"},
    )
    record = load(tmp_path, [row]).records[0]
    assert isinstance(record, Conversation)
    assert record.messages == (
        Message("system", "S"),
        Message("user", "abc"),
        Message("assistant", "x", 0.0),
        Message("user", "again", 0.0),
        Message("assistant", "y", 0.5, "think"),
    )


def test_a_system_column_opens_the_conversation(tmp_path: Path) -> None:
    record = load(tmp_path, [chat(USER, ASSISTANT, system="Be kind.")]).records[0]
    assert conversation(record).messages[0] == Message("system", "Be kind.")  # type: ignore[arg-type]


def test_the_prompt_of_a_record_is_the_record_without_its_last_answer(tmp_path: Path) -> None:
    (record,) = load(tmp_path, [chat(USER, ASSISTANT, USER, ASSISTANT)]).records
    asked = prompt_of(record)
    assert isinstance(asked, Conversation)
    assert [m.role for m in asked.messages] == ["user", "assistant", "user"]
    assert prompt_of(Text("a", "a:1")) == Text("a", "a:1")


@settings(max_examples=50, deadline=None)
@given(
    turns=st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4),
    is_sharegpt=st.booleans(),
)
def test_conversations_come_back_as_they_were_written(tmp_path_factory, turns, is_sharegpt: bool) -> None:
    turns = [(q, a) for q, a in turns if a.strip() and q.isprintable() and a.isprintable()] or [("a", "b")]
    who, what = ("from", "value") if is_sharegpt else ("role", "content")
    names = ("human", "gpt") if is_sharegpt else ("user", "assistant")
    row = {"messages": [{who: name, what: text} for pair in turns for name, text in zip(names, pair)]}
    record = load(tmp_path_factory.mktemp("turns"), [row]).records[0]
    assert [m.content for m in record.messages] == [text for pair in turns for text in pair]  # type: ignore[union-attr]


def test_columns_map_unusual_names_and_a_list_of_lines_is_text(tmp_path: Path) -> None:
    row = {"Frage": "Wer?", "Antwort": "Ich.", "Nr": 3}
    records = load(tmp_path, [row], columns={"prompt": "Frage", "answer": "Antwort"})
    assert (records.format, answer_of(records.records[0])) == ("flan", "Ich.")
    assert records.counts["unused_columns"] == ["Nr (1 rows)"]
    records = load(tmp_path, [{"paragraphs": ["春眠", "不觉晓"]}], "lm", columns={"text": "paragraphs"})
    assert records.records[0].text == "春眠\n不觉晓"  # type: ignore[union-attr]


def test_positions_read_a_table_without_a_header(tmp_path: Path) -> None:
    table = "Why is the sky blue, my friend?\tlight\tIt scatters.\n"
    for rows, expected in (("no\tno\nyes\tno\n", "twice"), (table, "no rows"), (table * 2, "looks like data")):
        message = fault(tmp_path, rows, name="a.tsv")
        assert expected in message
        assert "columns: {prompt: 1, answer: 2}" in message
    columns = {"prompt": 1, "answer": 2, "rationale": 3}
    records = load(tmp_path, table, name="a.tsv", columns=columns)
    assert answer_of(records.records[0]) == "It scatters.\nThe answer is light."
    assert "The answer is" in records.why


def test_columns_without_a_part_are_named_never_dropped_in_silence(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "b", "output": "c", "id": 1}, {"instruction": "a", "output": "c", "id": None}]
    records = load(tmp_path, [*rows, {"instruction": "a", "output": "c", "late": "x"}])
    assert records.counts["unused_columns"] == ["id (1 rows)", "late (1 rows)"]
    assert '"instruction"' in records.why


def test_keys_of_messages_without_a_part_are_warned_of_once(tmp_path: Path) -> None:
    rows = [chat({**USER, "name": "Ann"}, ASSISTANT), chat({**USER, "name": "Bob"}, ASSISTANT)]
    (problem,) = load(tmp_path, rows).problems
    assert 'key "name"' in problem.what
    assert "2 times" in problem.what
    assert problem.severity == "warning"


def test_a_limit_stops_reading(tmp_path: Path) -> None:
    assert len(load(tmp_path, json.dumps(chat(USER, ASSISTANT)) + "\n" + "broken\n" * 300, limit=1)) == 1


# ---- refused with a remedy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(), ["empty list", "remove the row"]),
        (chat(USER), ['ends with role "user"', "assistant's reply"]),
        (chat({"role": "usr", "content": "a"}, ASSISTANT), ['unknown role "usr"', 'Did you mean "user"', "human"]),
        (chat({"content": "a"}, ASSISTANT), ["has no role (keys: content)"]),
        (chat(USER, {"role": "assistant", "content": " "}), ["without text", "remove the row"]),
        (chat(USER, {"role": "assistant", "content": None}), ['"content" that is null', "expected a string"]),
        (chat(USER, {"role": "assistant", "content": 3}), ["a number"]),
        (chat(USER, {"role": "assistant"}), ['has no "value" (keys: role)']),
        (chat("Hi", ASSISTANT), ['"messages"[0]', "got a string"]),
        (chat({"role": "user", "content": [{"type": "image", "url": "x"}]}, ASSISTANT), ["not text", "only text"]),
        (chat(USER, {"role": "assistant", "content": None, "tool_calls": [{}]}), ["call of a tool"]),
        (chat(USER, {"from": "function_call", "value": "{}"}), ["call of a tool", "function_call"]),
        (chat(USER, {**ASSISTANT, "weight": -1}), ['"weight": -1', "0 or more"]),
        (chat(USER, {**ASSISTANT, "train": "yes"}), ["expected true or false"]),
        (chat(USER, {**ASSISTANT, "train": True, "weight": 0}), ["disagree"]),
        (chat({"role": "system", "content": "S"}, USER, ASSISTANT, system="T"), ["system message and a column"]),
        ({"messages": None}, ["should be a list of messages, got null", '"role": "user"']),
        ({"instruction": "a", "output": ""}, ['"output" is empty', "fill it in"]),
        ({"instruction": "a", "input": "b"}, ['"output" is missing', 'the row has "instruction", "input"']),
        ({"instruction": "a", "output": None}, ['"output" is null']),
        ({"instruction": "", "output": "b"}, ['"instruction" is empty']),
        ({"instruction": "a", "output": 3}, ["should be a string, got a number: 3", "columns: {output: COLUMN}"]),
        ({"instruction": "a", "output": "b", "history": ["x"]}, ['"history"', "list of [prompt, answer]"]),
        ({"prompt": "a", "completion": {"a": 1}}, ["got an object"]),
    ],
)
def test_each_broken_row_says_what_was_expected_and_what_to_do(tmp_path: Path, row: Row, expected: list[str]) -> None:
    good = {"instruction": "a", "output": "b"} if "instruction" in row else {"prompt": "a", "completion": "b"}
    good = chat(USER, ASSISTANT) if "messages" in row else good
    message = fault(tmp_path, [good, good, row])
    for part in ["rows.jsonl:3: ", "→", *expected]:
        assert part in message


def test_language_modelling_takes_conversations_that_end_with_the_user(tmp_path: Path) -> None:
    assert len(load(tmp_path, [chat(USER, ASSISTANT, USER)], "lm")) == 1


def test_blank_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    records = load(tmp_path, [{"text": "a"}, {"text": ""}, {"text": " \n"}], "lm")
    assert len(records) == 1
    assert "2 times" in records.problems[0].what


def test_plain_text_under_sft_points_to_language_modelling(tmp_path: Path) -> None:
    message = fault(tmp_path, [{"text": "a"}])
    assert "objective=lm" in message
    assert "no answer to train on" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["preference pairs", "{prompt: prompt, answer: chosen}"]),
        ({"chosen": "a", "rejected": "b"}, ["preference pairs"]),
        ({"chosen_messages": [], "rejected_messages": []}, ["preference pairs"]),
        ({"text": "a", "label": 1}, ["labelled rows", "{prompt: text, answer: label}", "{text: text}"]),
        ({"review": "a", "label": "1"}, ["labelled rows"]),
        (chat(USER, ASSISTANT, label=True), ["labelled rows", "format: messages"]),
    ],
)
def test_rows_for_other_objectives_are_known_and_say_what_could_be_done(tmp_path: Path, row: Row, expected) -> None:
    message = fault(tmp_path, [row])
    for part in expected:
        assert part in message


def test_the_remedies_for_other_objectives_work(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert answer_of(load(tmp_path, [pair], columns={"prompt": "prompt", "answer": "chosen"}).records[0]) == "b"
    labelled = {"text": "a", "label": "good"}
    assert answer_of(load(tmp_path, [labelled], columns={"prompt": "text", "answer": "label"}).records[0]) == "good"
    assert len(load(tmp_path, [labelled], "lm", columns={"text": "text"})) == 1
    assert len(load(tmp_path, [chat(USER, ASSISTANT, label=True)], format="messages")) == 1


@pytest.mark.parametrize(
    ("rows", "spec", "expected"),
    [
        ([{"id": "1", "foo": "a longer text", "bar": "b"}], {}, ['"foo" (a string)', "{text: foo}", "Known formats"]),
        ([{"id": 1, "lines": ["a", "b"]}], {}, ["columns: {text: lines}"]),
        ([{"id": 1}], {}, ["give every row a column of text"]),
        ([{"foo": "a"}], {"columns": {"promt": "foo"}}, ['unknown part "promt"', 'Did you mean "prompt"']),
        ([{"foo": "a"}], {"columns": {"text": "fo"}}, ['no column "fo"', 'Did you mean "foo"', "found: foo"]),
        ([{"a": "x", "b": "y"}], {"columns": {"text": "a", "input": "b"}}, ["do not belong together", "alpaca:"]),
        ([{"a": "x"}], {"format": "alpaca"}, ["needs instruction, output", "columns: {instruction: COLUMN"]),
        ([{"messages": "text"}], {}, ['"messages" (a string)']),
    ],
)
def test_rows_of_no_known_format_list_their_columns_and_the_way_out(tmp_path: Path, rows, spec, expected) -> None:
    message = fault(tmp_path, rows, "lm", **spec)
    for part in expected:
        assert part in message


def test_a_forced_format_wins_over_what_would_be_recognised(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b", "text": "whole"}
    records = load(tmp_path, [row], "lm", format="text")
    assert records.records[0] == Text("whole", f"{tmp_path}/rows.jsonl:1")
    assert "format: text was given" in records.why


def test_every_fault_of_every_file_is_counted(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text((json.dumps(chat(USER)) + "\n") * 30 + "broken\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_records(DataSpec(path=str(tmp_path)))
    assert "62 problems in all" in error.value.problems[-1].what
    assert "last role 60" in error.value.problems[-1].what


# ---- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "objective", "format", "rows"),
    [
        ("alpaca/alpaca_small.json", "sft", "alpaca", 2000),
        ("llamafactory/alpaca_en_demo.json", "sft", "alpaca", 999),
        ("llamafactory/alpaca_zh_demo.json", "sft", "alpaca", 1000),
        ("llamafactory/identity.json", "sft", "alpaca", 91),
        ("llamafactory/v1_sft_demo.jsonl", "sft", "messages", 500),
        ("llamafactory/c4_demo.jsonl", "lm", "text", 300),
        ("llamafactory/wiki_demo.txt", "lm", "text", 1),
        ("gsm8k/test.jsonl.gz", "sft", "flan", 1319),
        ("self_instruct/t0_train_sub20.jsonl.gz", "sft", "flan", 5528),
        ("llm_adapters/boolq_train.jsonl.gz", "sft", "alpaca", 1500),
        ("zh_poetry/tang_10000.jsonl.gz", "lm", "text", 10008),
        ("zh_poetry/poetry_corpus_simplified.json.gz", "lm", "text", 10456),
        ("tinystories/tinystories_val_1000.txt", "lm", "text", 1),
    ],
)
def test_real_files_are_recognised(shared: Path, path: str, objective: Objective, format: str, rows: int) -> None:
    records = load_records(DataSpec(path=str(shared / "data" / path)), objective=objective)
    assert (records.format, len(records)) == (format, rows)


@pytest.mark.parametrize(
    ("path", "columns", "objective", "rows"),
    [
        ("flan_cot/creak_train.tsv.gz", {"prompt": 1, "answer": 2, "rationale": 3}, "sft", 6915),
        ("flan_cot/strategyqa_train.tsv.gz", {"prompt": 1, "answer": 2}, "sft", 2061),
        ("zh_poetry/tang300.json", {"text": "paragraphs"}, "lm", 366),
        ("zh_sentiment/ChnSentiCorp_htl_all.csv.gz", {"text": "review"}, "lm", 7765),
        ("lambada/lambada_openai.jsonl.gz", {"prompt": "context", "answer": "continuation"}, "sft", 5153),
        ("sst2/dev.tsv", {"prompt": 1, "answer": 2}, "sft", 872),
    ],
)
def test_real_files_with_other_columns_are_read_by_the_remedy(
    shared: Path, path: str, columns, objective, rows
) -> None:
    whole = str(shared / "data" / path)
    with pytest.raises(DataError, match="columns"):
        load_records(DataSpec(path=whole), objective=objective)
    try:
        assert len(load_records(DataSpec(path=whole, columns=columns), objective=objective)) == rows
    except DataError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("llamafactory/dpo_en_demo.json", "preference pairs"),
        ("llamafactory/v1_dpo_demo.jsonl", "preference pairs"),
        ("hh_rlhf/harmless-base-test.jsonl.gz", "preference pairs"),
        ("llamafactory/kto_en_demo.json", "format: messages"),
        ("llamafactory/glaive_toolcall_en_demo.json", "call of a tool"),
        ("llamafactory/glaive_toolcall_zh_demo.json", "call of a tool"),
        ("llamafactory/reason_tool_use_demo_50.jsonl", "call of a tool"),
        ("alpaca/seed_tasks.jsonl", '"instances" (a list)'),
        ("zh_poetry/songci300.json", "{text: paragraphs}"),
        ("sms_spam/sms.tsv", "the first line looks like data"),
    ],
)
def test_real_files_that_cannot_be_used_say_why(shared: Path, path: str, expected: str) -> None:
    with pytest.raises(DataError) as error:
        load_records(DataSpec(path=str(shared / "data" / path)))
    assert expected in str(error.value)
