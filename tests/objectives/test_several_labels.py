"""Classification where a row may have several labels or none: reading, loss, measures, and a run to the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from families import CLASSES, build_classifier, labelled_examples, tokenizer
from luthier.core.batch import Example
from luthier.core.errors import DataError
from luthier.data.labelled import Classes, LabelledRenderer, find_classes, several
from luthier.data.load import load_records
from luthier.data.records import Labelled
from luthier.data.spec import DataSpec
from luthier.evaluate.classes import Predicted, class_scores
from luthier.models.classifier import Classifier, probe_classifier
from luthier.objectives.classify import Classify
from recipes import luthier, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]


def rows(weights: tuple[float, ...] = ()) -> list[Example]:
    draw = np.random.default_rng(3)
    made = []
    for example in labelled_examples([9, 3, 14, 6, 1, 11, 2, 8]):
        applies = draw.random(len(CLASSES)) < 0.4
        extras = {several(c): float(on) for c, on in enumerate(applies)}
        extras |= {several(c, "weight"): w if applies[c] else 1.0 for c, w in enumerate(weights)}
        made.append(Example(example.tokens, example.weights, example.source, extras))
    return made


ROWS = rows()


@pytest.fixture(scope="module", params=["llama", "bert"])
def model(request: pytest.FixtureRequest) -> Classifier:
    module = build_classifier(request.param, problem_type="multi_label_classification")
    model = Classifier(module, tokenizer(), request.param, "")
    probe_classifier(model)
    assert model.is_multi_label
    return model


def targets(examples: list[Example]) -> Tensor:
    return torch.tensor([[float(e.extras[several(c)]) for c in range(len(CLASSES))] for e in examples])


def _step(model: Classifier, objective: Classify, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
    model.module.zero_grad()
    batches = [model.collate(group) for group in groups]
    count = sum(objective.count(b) for b in batches)
    total = 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch).total
        (loss / count).backward()
        total += float(loss.detach())
    return total / count, {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------- the loss


def test_the_mean_loss_equals_that_of_transformers_own_labels(model: Classifier) -> None:
    ours, _ = _step(model, Classify(), [ROWS])
    theirs = []
    with torch.no_grad():
        for row in ROWS:
            tokens = torch.tensor(row.tokens, dtype=torch.long)[None]
            theirs.append(float(model.module(input_ids=tokens, labels=targets([row])).loss))
    assert ours == pytest.approx(np.mean(theirs), rel=1e-5)


def test_weights_are_torchs_pos_weight_and_smoothing_goes_half_way_to_both(model: Classifier) -> None:
    weights = (0.5, 2.0, 3.0)
    logits = model.class_logits(model.collate(ROWS)).detach()
    weighed, _ = _step(model, Classify(), [rows(weights)])
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert weighed == pytest.approx(float(loss(logits, targets(ROWS), pos_weight=torch.tensor(weights))), rel=1e-5)
    smooth, _ = _step(model, Classify(label_smoothing=0.2), [ROWS])
    assert smooth == pytest.approx(float(loss(logits, targets(ROWS) * 0.8 + 0.1)), rel=1e-5)
    with model.evaluating():
        measured = float(Classify(label_smoothing=0.2).loss_sum(model, model.collate(ROWS)).total) / len(ROWS)
    assert measured == pytest.approx(float(loss(logits, targets(ROWS))), rel=1e-5)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.sets(st.integers(1, len(ROWS) - 1)), order=st.permutations(range(len(ROWS))))
def test_the_gradient_depends_neither_on_cut_nor_on_order(
    model: Classifier, borders: set[int], order: list[int]
) -> None:
    mixed = [ROWS[i] for i in order]
    edges = [0, *sorted(borders), len(ROWS)]
    loss, gradients = _step(model, Classify(), [mixed[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, Classify(), [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_a_row_is_right_when_every_class_is(model: Classifier) -> None:
    said = model.class_logits(model.collate(ROWS)).detach() > 0
    right = [
        Example(e.tokens, e.weights, e.source, {several(c): float(on) for c, on in enumerate(row)})
        for e, row in zip(ROWS, said.tolist())
    ]
    assert int(Classify().loss_sum(model, model.collate(right)).metrics["accuracy"]) == len(ROWS)
    right[0] = Example(right[0].tokens, right[0].weights, "", {**right[0].extras, several(1): float(not said[0, 1])})
    assert int(Classify().loss_sum(model, model.collate(right)).metrics["accuracy"]) == len(ROWS) - 1


# ---------------------------------------------------------------------- measures


def test_measures_are_those_counted_by_hand(model: Classifier) -> None:
    scores = class_scores(model, ROWS)
    said = (model.class_logits(model.collate(ROWS)).detach() > 0).numpy()
    meant = targets(ROWS).numpy() > 0
    hit, wrong, missed = (said & meant).sum(0), (said & ~meant).sum(0), (~said & meant).sum(0)
    each = 2 * hit / np.maximum(2 * hit + wrong + missed, 1)
    assert scores["macro-F1"].value == pytest.approx(each[(hit + wrong + missed) > 0].mean())
    assert scores["micro-F1"].value == pytest.approx(2 * hit.sum() / (2 * hit + wrong + missed).sum())
    assert scores["accuracy"].value == pytest.approx((said == meant).all(1).mean())
    assert scores["loss"].value == pytest.approx(_step(model, Classify(), [ROWS])[0], rel=1e-5)


def test_all_that_applies_is_named() -> None:
    found = Predicted(np.log(np.array([[0.9, 0.2, 0.6], [0.1, 0.2, 0.3]])), is_multi=True)
    assert found.named(CLASSES) == ["bad (90%), good (60%)", "none"]


# ---------------------------------------------------------------------- rows

LISTS = [
    {"text": "a b", "labels": ["x", "y"]},
    {"text": "b", "labels": []},
    {"text": "c", "labels": ["y", "y"]},
    {"text": "d", "labels": "x"},
]
FLAGS = [
    {"id": 7, "text": "a", "toxic": 1, "rude": 0, "threat": False},
    {"id": 8, "text": "b", "toxic": 0, "rude": 0, "threat": True},
    {"id": 9, "text": "c", "toxic": "1", "rude": "0", "threat": "false"},
]


def read(tmp_path: Path, data: list[dict], **keys: object) -> list[Labelled]:
    path = write_rows(tmp_path / "rows.jsonl", data)
    return list(load_records(DataSpec.model_validate({"path": str(path), **keys}), objective="classify").records)  # type: ignore[arg-type]


def test_lists_of_labels_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, LISTS)
    assert [r.every_label for r in found] == [("x", "y"), (), ("y",), ("x",)]
    assert find_classes(found, {}) == Classes(("x", "y"), ("x", "y"), (2, 2), is_multi=True, rows=4)


def test_columns_of_zero_and_one_are_classes(tmp_path: Path) -> None:
    found = read(tmp_path, FLAGS)
    assert [r.every_label for r in found] == [("toxic",), ("threat",), ("toxic",)]
    mapped = [{("comment" if key == "text" else key): value for key, value in row.items()} for row in FLAGS]
    assert [r.text for r in read(tmp_path, mapped, columns={"text": "comment"})] == ["a", "b", "c"]


def test_a_column_that_stops_being_zero_and_one_is_told_with_its_row(tmp_path: Path) -> None:
    many = [FLAGS[i % 3] for i in range(120)] + [{"id": 1, "text": "x", "toxic": 3, "rude": 0, "threat": 0}]
    with pytest.raises(DataError, match="0 or 1") as caught:
        read(tmp_path, many)
    assert "rows.jsonl:121" in str(caught.value)


def test_balanced_weights_say_how_many_rows_lack_a_class() -> None:
    assert Classes(("x", "y"), ("x", "y"), (2, 8), is_multi=True, rows=10).balanced_weights() == (4.0, 0.25)


def test_a_row_carries_all_its_classes_and_their_weights() -> None:
    classes = Classes(("w3", "w4"), ("w3", "w4"), (1, 1), is_multi=True, rows=2)
    records = [Labelled("w5 w6", "", "w4", "r:1", labels=("w4",)), Labelled("w7", "", "", "r:2", labels=())]
    store = LabelledRenderer(tokenizer(), classes, (2.0, 5.0)).render_all(records).store
    assert store[0].extras == {several(0): 0, several(1): 1, several(0, "weight"): 1, several(1, "weight"): 5}
    assert store[1].extras == {several(0): 0, several(1): 0, several(0, "weight"): 1, several(1, "weight"): 1}


# ---------------------------------------------------------------------- a run


def test_a_run_learns_several_labels_and_is_measured_asked_and_exported(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [
        {"text": f"w{10 + i % 4} w{20 + i % 3}", "labels": [n for n, on in (("a", i % 4 < 2), ("b", i % 3 == 0)) if on]}
        for i in range(72)
    ]
    write_rows(tmp_path / "rows.jsonl", data)
    recipe = write_recipe(
        tmp_path,
        family_folder("llama"),
        objective={"kind": "classify", "class_weights": "balanced"},
        eval_fraction=0.2,
        max_steps=60,
        batch_size=8,
        samples=2,
    )
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert "a row may have several" in said.err
    after = said.json["eval"]["after"]
    assert after["held-out accuracy"]["value"] > 0.9
    assert after["held-out micro-F1"]["value"] > 0.9
    [file] = (tmp_path / "run").glob("00-*/metrics.jsonl")
    assert any("eval_accuracy" in json.loads(line) for line in file.read_text().splitlines())
    measured = luthier(capsys, "eval", tmp_path / "run", "--data", tmp_path / "rows.jsonl", "--json").json
    assert {"loss", "accuracy", "macro_f1", "micro_f1"} <= measured.keys()
    exported = luthier(capsys, "export", tmp_path / "run", "--to", "hf", tmp_path / "out")
    assert exported.code == 0, exported.err
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert opened.config.problem_type == "multi_label_classification"
    again = luthier(capsys, "eval", tmp_path / "out", "--data", tmp_path / "rows.jsonl", "--json").json
    assert again["loss"] == pytest.approx(measured["loss"], abs=1e-4)
    assert again["micro_f1"] == pytest.approx(measured["micro_f1"])
    lines = iter(["w10 w20"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/exit"))
    assert "a (" in luthier(capsys, "chat", tmp_path / "run").out
