"""Labelled rows: recognised, checked with file and line, turned into the tokenizer's own tokens and a class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import families
from luthier.core.errors import DataError
from luthier.data.labelled import LabelledRenderer, encode_labelled, find_classes, fit_classes, unknown_labels
from luthier.data.load import load_records
from luthier.data.records import Labelled
from luthier.data.spec import DataSpec
from luthier.run.draft import Draft
from luthier.run.examine import examine


def rows(*labels: str) -> list[Labelled]:
    return [Labelled(f"w{i + 3} w4", "", label, f"rows.jsonl:{i + 1}") for i, label in enumerate(labels)]


def read(path: Path, text: str, **spec: object) -> list[Labelled]:
    path.write_text(text, encoding="utf-8")
    records = load_records(DataSpec.model_validate({"path": str(path), **spec}), objective="classify").records
    assert all(isinstance(record, Labelled) for record in records)
    return list(records)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "spec", "expected"),
    [
        ("a.jsonl", '{"text": "hello", "label": 1}\n', {}, ("hello", "", "1")),
        ("a.jsonl", '{"review": "hello", "sentiment": "pos"}\n', {}, ("hello", "", "pos")),
        ("a.jsonl", '{"sentence": "hello", "category": true}\n', {}, ("hello", "", "true")),
        ("a.jsonl", '{"content": "hello", "labels": 2.0, "id": 7}\n', {}, ("hello", "", "2")),
        ("a.csv", "label,text\nspam,hello there\n", {}, ("hello there", "", "spam")),
        ("a.tsv", "hello there\t0\n", {"columns": {"text": 1, "label": 2}}, ("hello there", "", "0")),
        ("a.jsonl", '{"a": "hello", "b": "x"}\n', {"columns": {"text": "a", "label": "b"}}, ("hello", "", "x")),
        ("a.jsonl", '{"premise": "one", "hypothesis": "two", "label": 0}\n', {}, ("one", "two", "0")),
        ("a.jsonl", '{"sentence1": "one", "sentence2": "two", "label": "no"}\n', {}, ("one", "two", "no")),
    ],
)
def test_labelled_rows_are_recognised_by_their_columns(
    name: str, text: str, spec: dict[str, object], expected: tuple[str, str, str], tmp_path: Path
) -> None:
    (record,) = read(tmp_path / name, text, **spec)
    assert (record.text, record.pair, record.label) == expected
    assert record.source.startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "label": None}, "is null"),
        ({"text": "a", "label": "  "}, "should be a word"),
        ({"text": "a"}, "is missing"),
        ({"text": "a", "label": ["x", 1.5]}, "whole number"),
        ({"text": "a", "label": 0.5}, "should be a word"),
        ({"text": " ", "label": "x"}, "is empty"),
    ],
    ids=str,
)
def test_a_row_without_a_class_is_told_with_its_line(row: dict[str, object], said: str, tmp_path: Path) -> None:
    text = "".join(json.dumps(r) + "\n" for r in ({"text": "good", "label": "x"}, row))
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path / "a.jsonl", text)
    assert f"{tmp_path / 'a.jsonl'}:2" in str(caught.value)


def test_rows_without_a_label_are_answered_with_the_columns_that_would_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns: \{text: body, label: kind\}"):
        read(tmp_path / "a.jsonl", '{"kind": "x", "body": "a longer text"}\n')


def test_other_objectives_are_told_of_classify(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n')
    with pytest.raises(DataError, match="objective: classify"):
        load_records(DataSpec(path=str(tmp_path / "a.jsonl")), objective="sft")


def test_classes_are_sorted_as_numbers_or_words_and_counted() -> None:
    assert find_classes(rows("10", "9", "9"), {}).labels == ("9", "10")
    found = find_classes(rows("b", "a", "a"), {"a": "good"})
    assert (found.labels, found.names, found.counts) == (("a", "b"), ("good", "b"), (2, 1))
    assert found.balanced_weights() == pytest.approx((0.75, 1.5))


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (("a", "a"), {}, "two classes"),
        (tuple(f"sentence {i}" for i in range(30)), {}, "hardly any class"),
        (("a", "b"), {"c": "x"}, "which no row has"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_refused(labels: tuple[str, ...], names: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_classes(rows(*labels), names)


def test_a_label_that_no_training_row_has_is_told_at_its_first_row() -> None:
    classes = find_classes(rows("good", "bad"), {})
    (problem,) = unknown_labels(rows("good", "goood", "goood"), classes)
    assert "goood" in problem.what
    assert 'Did you mean "good"?' in problem.what
    assert problem.where == "rows.jsonl:2"


def test_a_model_that_is_a_classifier_keeps_its_classes_and_their_order() -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "NO", "1": "YES", "2": "MAYBE"}}
    assert find_classes(rows("YES", "NO"), {}, config).names == ("NO", "YES", "MAYBE")
    by_number = find_classes(rows("2", "0"), {}, config)
    assert (by_number.labels, by_number.names) == (("0", "1", "2"), ("NO", "YES", "MAYBE"))
    assert find_classes(rows("other", "NO"), {}, config).names == ("NO", "other")


@pytest.mark.parametrize("written", [("0", "1"), ("negative", "positive")])
def test_rows_to_measure_on_may_write_labels_or_names(written: tuple[str, str]) -> None:
    found = fit_classes({"0": "negative", "1": "positive"}, rows(*written))
    assert [found.labels.index(label) for label in written] == [0, 1]
    with pytest.raises(DataError, match="in no training row"):
        fit_classes({"0": "negative", "1": "positive"}, rows("neutral"))


def test_tokens_are_those_of_the_tokenizer_itself_and_the_class_goes_along() -> None:
    tokenizer = families.tokenizer()
    records = rows("b", "a", "b")
    rendered = LabelledRenderer(tokenizer, find_classes(records, {}), (0.5, 2.0)).render_all(records)
    for record, example in zip(records, rendered.store):
        assert example.tokens.tolist() == tokenizer(record.text)["input_ids"]
        assert example.extras == {"label": float(record.label == "b"), "weight": 2.0 if record.label == "b" else 0.5}
        assert example.source == record.source


def test_a_pair_is_separated_as_the_tokenizer_does_it_or_by_a_new_line() -> None:
    tokenizer = families.tokenizer()
    (plain,) = encode_labelled(tokenizer, [("w5 w6", "w7")])
    assert plain.ids == tokenizer("w5 w6\nw7")["input_ids"]
    assert plain.second is None
    bert = families.bert_tokenizer()
    (marked,) = encode_labelled(bert, [("w5 w6", "w7")])
    whole = bert("w5 w6", "w7")
    assert marked.ids == whole["input_ids"]
    assert marked.second == whole["token_type_ids"].index(1)


def test_long_rows_are_refused_left_out_or_cut_with_their_end_kept() -> None:
    bert = families.bert_tokenizer()
    records = [Labelled("w5 " * 9, "", "a", "x:1"), Labelled("w6", "", "b", "x:2")]
    classes = find_classes(records, {})
    with pytest.raises(DataError, match="longer than max_length=6"):
        LabelledRenderer(bert, classes, max_length=6).render_all(records)
    dropped = LabelledRenderer(bert, classes, max_length=6, on_overlong="drop").render_all(records)
    assert (len(dropped.store), dropped.counts["dropped"]) == (1, 1)
    cut = LabelledRenderer(bert, classes, max_length=6, on_overlong="truncate").render_all(records)
    assert cut.store[0].tokens.tolist() == bert("w5 " * 9, truncation=True, max_length=6)["input_ids"]
    assert cut.store[0].tokens[-1] == bert.sep_token_id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_data": "new.jsonl"}, "in no training row"),
        ({"objective": {"kind": "classify", "class_weights": [1, 2, 3]}}, "3 numbers for 2 classes"),
        ({"objective": {"kind": "classify", "class_weights": [-1, 2]}}, "cannot weigh a class"),
        ({"objective": {"kind": "classify", "names": {"x": "y", "a": "y"}}}, "same name"),
        ({"train_on": "all"}, "train_on has no effect"),
        ({"evaluate": [{"name": "t", "data": "rows.jsonl", "metric": "exact_match"}]}, "cannot be measured"),
    ],
    ids=str,
)
def test_a_recipe_for_classes_is_checked_before_a_model_is_loaded(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "w1", "label": "a"}\n{"text": "w2", "label": "b"}\n')
    (tmp_path / "new.jsonl").write_text('{"text": "w1", "label": "c"}\n')
    values = {"model": "starter", "method": "lora", "objective": "classify", "data": "rows.jsonl", **changes}
    found = examine(Draft.of_mapping(values, base=tmp_path))
    assert any(said in problem.what for problem in found.problems), [p.what for p in found.problems]
