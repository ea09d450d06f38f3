"""Regression: the losses by transformers and torch, scaling, measures by scipy's definitions, and a run to the end."""

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

from families import build_classifier, labelled_examples, tokenizer
from luthier.core.batch import Example
from luthier.core.errors import DataError, RecipeError
from luthier.data.labelled import find_numbers
from luthier.data.load import load_records
from luthier.data.records import Labelled
from luthier.data.spec import DataSpec
from luthier.evaluate.numbers import number_scores, pearson, predicted_numbers, ranks
from luthier.methods.full import Full
from luthier.models.classifier import Classifier, probe_classifier
from luthier.models.output_scale import output_layer
from luthier.objectives.regress import Regress
from luthier.run.config import parse_recipe
from recipes import luthier, write_recipe, write_rows
from training import engine

Capture = pytest.CaptureFixture[str]


def rated(scale: float | None = None) -> list[Example]:
    draw = np.random.default_rng(5)
    own = {} if scale is None else {"scale": scale}
    return [
        Example(e.tokens, e.weights, e.source, {"label": float(draw.normal(2.0, 3.0)), **own})
        for e in labelled_examples([9, 3, 14, 6, 1, 11, 2, 8])
    ]


ROWS = rated()
KINDS = [Regress(), Regress(loss="mae"), Regress(loss="huber", delta=1.5)]


def build(family: str) -> Classifier:
    module = build_classifier(family, id2label={0: "score"}, label2id={"score": 0}, problem_type="regression")
    model = Classifier(module, tokenizer(), family, "")
    probe_classifier(model)
    return model


@pytest.fixture(scope="module", params=["llama", "bert"])
def model(request: pytest.FixtureRequest) -> Classifier:
    return build(request.param)


def _step(model: Classifier, objective: Regress, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
    model.module.zero_grad()
    batches = [model.collate(group) for group in groups]
    count = sum(objective.count(b) for b in batches)
    total = 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch).total
        (loss / count).backward()
        total += float(loss.detach())
    return total / count, {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def labels(rows: list[Example]) -> Tensor:
    return torch.tensor([float(row.extras["label"]) for row in rows])


# ---------------------------------------------------------------------- the loss


def test_mse_equals_that_of_transformers_own_labels(model: Classifier) -> None:
    ours, _ = _step(model, Regress(), [ROWS])
    with torch.no_grad():
        theirs = [
            float(model.module(input_ids=torch.tensor(r.tokens, dtype=torch.long)[None], labels=labels([r])).loss)
            for r in ROWS
        ]
    assert ours == pytest.approx(np.mean(theirs), rel=1e-5)


@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("objective", KINDS, ids=lambda k: k.loss)
def test_losses_are_those_of_torch_on_scaled_numbers(
    model: Classifier, objective: Regress, scale: float | None
) -> None:
    found, _ = _step(model, objective, [rated(scale)])
    said = model.class_logits(model.collate(ROWS)).detach()[:, 0]
    one, other = said / (scale or 1.0), labels(ROWS) / (scale or 1.0)
    functional = torch.nn.functional
    expected = {
        "mse": functional.mse_loss(one, other),
        "mae": functional.l1_loss(one, other),
        "huber": functional.huber_loss(one, other, delta=1.5),
    }[objective.loss]
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("objective", KINDS, ids=lambda k: k.loss)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.sets(st.integers(1, len(ROWS) - 1)), order=st.permutations(range(len(ROWS))))
def test_the_gradient_depends_neither_on_cut_nor_on_order(
    objective: Regress, model: Classifier, borders: set[int], order: list[int]
) -> None:
    rows = rated(3.0)
    mixed = [rows[i] for i in order]
    edges = [0, *sorted(borders), len(rows)]
    loss, gradients = _step(model, objective, [mixed[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, objective, [rows])
    assert loss == pytest.approx(whole, rel=1e-5)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_what_is_logged_is_in_the_numbers_own_units(model: Classifier) -> None:
    found = Regress(loss="huber").loss_sum(model, model.collate(rated(5.0))).metrics
    error = model.class_logits(model.collate(ROWS)).detach()[:, 0] - labels(ROWS)
    assert float(found["mse"]) == pytest.approx(float(error.square().sum()), rel=1e-5)
    assert float(found["mae"]) == pytest.approx(float(error.abs().sum()), rel=1e-5)


def test_numbers_a_thousand_times_as_large_are_learnt_alike() -> None:
    """Rows in other units, errors divided by their size, and a last layer that learns as much faster."""

    def curve(size: float) -> tuple[list[float], np.ndarray]:
        model = build("llama")
        with torch.no_grad():
            output_layer(model.module).weight.mul_(size)  # type: ignore[union-attr]
        rows = [
            Example(e.tokens, e.weights, "", {"label": float(e.extras["label"]) * size, "scale": size}) for e in ROWS
        ]
        made = engine(model, Full(), Regress(), output_scale=size, max_grad_norm=None, eps=1e-12)  # type: ignore[arg-type]
        losses = [made.train_step(rows)["loss"] for _ in range(8)]
        return losses, predicted_numbers(model, rows) / size

    small, large = curve(1.0), curve(1000.0)
    assert large[0] == pytest.approx(small[0], rel=2e-3)
    assert small[0][-1] < 0.5 * small[0][0]
    np.testing.assert_allclose(large[1], small[1], rtol=0.02, atol=0.02)


# ---------------------------------------------------------------------- measures


def test_measures_are_those_of_their_definitions(model: Classifier) -> None:
    said, true = predicted_numbers(model, ROWS), labels(ROWS).double().numpy()
    scores = {name: score.value for name, score in number_scores(model, ROWS).items()}
    assert scores["MSE"] == pytest.approx(((said - true) ** 2).mean())
    assert scores["MAE"] == pytest.approx(np.abs(said - true).mean())
    assert scores["R²"] == pytest.approx(1 - ((said - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())
    assert scores["Pearson"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    order = np.argsort(np.argsort(said)), np.argsort(np.argsort(true))
    assert scores["Spearman"] == pytest.approx(np.corrcoef(*order)[0, 1])


def test_equal_numbers_share_the_mean_of_their_ranks() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [3.0, 0.0, 3.0, 1.0, 3.0]
    assert pearson(np.ones(3), np.arange(3.0)) == 0.0


# ---------------------------------------------------------------------- rows


def read(tmp_path: Path, data: list[dict]) -> list[Labelled]:
    path = write_rows(tmp_path / "rows.jsonl", data)
    return list(load_records(DataSpec(path=str(path)), objective="regress").records)  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["score", "label", "target", "stars"])
def test_numbers_are_read_from_columns_of_the_usual_names(tmp_path: Path, column: str) -> None:
    found = read(tmp_path, [{"text": "a", column: 1.5}, {"text": "b", column: "-2"}, {"text": "c", column: 3}])
    assert [r.value for r in found] == [1.5, -2.0, 3.0]


def test_pairs_of_texts_are_rated_too(tmp_path: Path) -> None:
    [row] = read(tmp_path, [{"sentence1": "a", "sentence2": "b", "score": 4.2}])
    assert (row.text, row.pair, row.value) == ("a", "b", 4.2)


@pytest.mark.parametrize("value", ["good", None, True, float("inf"), [1.0]])
def test_what_is_no_number_is_told_with_its_row(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        read(tmp_path, [{"text": "a", "score": 1.0}, {"text": "b", "score": value}])


def test_numbers_that_never_change_teach_nothing() -> None:
    same = [Labelled("a", "", "1", f"r:{i}", value=1.0) for i in range(3)]
    with pytest.raises(DataError, match="same number"):
        find_numbers(same, rescale=True)
    other = [*same, Labelled("a", "", "7", "r:9", value=7.0)]
    assert find_numbers(other, rescale=True).scale == pytest.approx(np.sqrt(52 / 4))
    assert find_numbers(other, rescale=False).scale == 1.0


def test_options_without_effect_are_refused() -> None:
    base = {"model": "starter", "method": "lora", "data": "x"}
    with pytest.raises(RecipeError, match="belongs to loss: huber"):
        parse_recipe({**base, "objective": {"kind": "regress", "delta": 2.0}})
    task = {"name": "a", "data": "x", "metric": "accuracy"}
    with pytest.raises(RecipeError, match="no accuracy"):
        parse_recipe({**base, "objective": "regress", "evaluate": [task]})


# ---------------------------------------------------------------------- a run


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_run_learns_numbers_and_is_measured_asked_and_exported(
    family: str,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = [{"text": f"w{10 + i % 5} w{20 + i % 3}", "score": 100.0 * (i % 5) + 500} for i in range(75)]
    write_rows(tmp_path / "rows.jsonl", data)
    task = {"name": "again", "data": "rows.jsonl", "metric": "loss"}
    keys = {"objective": "regress", "evaluate": [task], "eval_fraction": 0.2, "max_steps": 80, "batch_size": 8}
    said = luthier(capsys, "train", write_recipe(tmp_path, family_folder(family), samples=1, **keys), "--json")
    assert said.code == 0, said.err
    assert "500 to 900" in said.err
    after = said.json["eval"]["after"]
    assert after["held-out R²"]["value"] > 0.8
    assert after["held-out Pearson"]["value"] > 0.9
    assert after["again"]["value"] < 10_000
    [file] = (tmp_path / "run").glob("00-*/metrics.jsonl")
    assert any("eval_mae" in json.loads(line) for line in file.read_text().splitlines())
    spoken = luthier(capsys, "eval", tmp_path / "run", "--data", tmp_path / "rows.jsonl", "--json")
    assert spoken.code == 0, spoken.out + spoken.err
    measured = spoken.json
    assert measured["mse"] == pytest.approx(after["again"]["value"], rel=1e-3)
    exported = luthier(capsys, "export", tmp_path / "run", "--to", "hf", tmp_path / "out")
    assert exported.code == 0, exported.err
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (opened.config.num_labels, opened.config.problem_type) == (1, "regression")
    again = luthier(capsys, "eval", tmp_path / "out", "--data", tmp_path / "rows.jsonl", "--json").json
    assert again["mse"] == pytest.approx(measured["mse"], rel=1e-3)
    lines = iter(["w10 w20"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/exit"))
    spoken = luthier(capsys, "chat", tmp_path / "run").out
    assert float(spoken.split()[-1]) == pytest.approx(500, abs=150)
