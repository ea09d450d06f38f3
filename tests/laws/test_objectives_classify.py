"""The laws of objectives for classification: sums, cuts, slopes, and the loss that transformers gives itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import CLASSES, build_classifier, labelled_examples, tokenizer
from luthier.core.batch import Example
from luthier.models.classifier import Classifier, probe_classifier
from luthier.objectives.classify import Classify
from luthier.train.microbatch import Cut

ROWS = labelled_examples([9, 3, 14, 6, 1, 11, 2, 8])


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def model(request: pytest.FixtureRequest) -> Classifier:
    model = Classifier(build_classifier(request.param), tokenizer(), request.param, "")
    probe_classifier(model)
    assert model.packs == (request.param != "bert")
    return model


def weighed(rows: list[Example], weight: float) -> list[Example]:
    return [Example(e.tokens, e.weights, e.source, {**e.extras, "weight": weight}) for e in rows]


def _gradients(model: Classifier) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _step(model: Classifier, objective: Classify, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of a step and its gradient, as the engine makes them from sums."""
    model.module.zero_grad()
    batches = [model.collate(group) for group in groups]
    count = sum(objective.count(b) for b in batches)
    total = 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch).total
        (loss / count).backward()
        total += float(loss.detach())
    return total / count, _gradients(model)


def _equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_zero_weights_give_zero_loss_and_zero_gradient(model: Classifier) -> None:
    loss, gradients = _step(model, Classify(), [weighed(ROWS, 0.0)])
    assert loss == 0
    assert not any(g.any() for g in gradients.values())


def test_twice_the_weights_is_twice_the_loss(model: Classifier) -> None:
    once, _ = _step(model, Classify(), [weighed(ROWS, 1.0)])
    assert once == pytest.approx(_step(model, Classify(), [ROWS])[0], rel=1e-6)
    assert _step(model, Classify(), [weighed(ROWS, 2.0)])[0] == pytest.approx(2 * once, rel=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.sets(st.integers(1, len(ROWS) - 1)))
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(model: Classifier, borders: set[int]) -> None:
    edges = [0, *sorted(borders), len(ROWS)]
    loss, gradients = _step(model, Classify(), [ROWS[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, Classify(), [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    _equal(gradients, expected)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(ROWS))))
def test_the_gradient_does_not_depend_on_the_order_of_rows(model: Classifier, order: list[int]) -> None:
    loss, gradients = _step(model, Classify(), Cut(sequences=3).apply([ROWS[i] for i in order]))
    whole, expected = _step(model, Classify(), [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    _equal(gradients, expected)


@pytest.mark.parametrize("objective", [Classify(), Classify(label_smoothing=0.2)], ids=repr)
def test_finite_differences_agree(model: Classifier, objective: Classify) -> None:
    _, gradients = _step(model, objective, [ROWS])
    draw = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in model.module.named_parameters() if n in gradients}
    start = {n: p.detach().clone() for n, p in parameters.items()}
    for _ in range(3):
        ways = {n: torch.randn(p.shape, generator=draw) * p.abs().mean() for n, p in start.items()}
        slope = sum(float((gradients[n].double() * way.double()).sum()) for n, way in ways.items())
        step, losses = 1e-3, []
        for sign in (1, -1):
            for name, way in ways.items():
                parameters[name].data.copy_(start[name] + sign * step * way)
            batch = model.collate(ROWS)  # with gradients on: smoothing is a matter of training
            losses.append(float(objective.loss_sum(model, batch).total.detach()) / objective.count(batch))
        for name, tensor in start.items():
            parameters[name].data.copy_(tensor)
        # Float32 loses digits in the difference, and the curve bends over the step.
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=0.02)


def test_a_head_of_zeros_costs_the_logarithm_of_the_classes() -> None:
    module = build_classifier("llama")
    torch.nn.init.zeros_(module.score.weight)
    loss, _ = _step(Classifier(module, tokenizer(), "llama", ""), Classify(), [ROWS])
    assert loss == pytest.approx(math.log(len(CLASSES)), rel=1e-6)


def test_the_mean_loss_equals_that_of_transformers_own_labels(model: Classifier) -> None:
    ours, _ = _step(model, Classify(), [ROWS])
    theirs = []
    with torch.no_grad():
        for row in ROWS:
            tokens = torch.tensor(row.tokens, dtype=torch.long)[None]
            label = torch.tensor([int(row.extras["label"])])
            theirs.append(float(model.module(input_ids=tokens, labels=label).loss))
    assert ours == pytest.approx(np.mean(theirs), rel=1e-5)


def test_class_weights_and_smoothing_are_those_of_torch(model: Classifier) -> None:
    weights = (0.5, 2.0, 1.0)
    rows = [
        Example(e.tokens, e.weights, e.source, {**e.extras, "weight": weights[int(e.extras["label"])]}) for e in ROWS
    ]
    found, _ = _step(model, Classify(), [rows])
    logits = model.class_logits(model.collate(ROWS)).detach()
    labels = torch.tensor([int(e.extras["label"]) for e in ROWS])
    sums = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), reduction="sum")
    assert found == pytest.approx(float(sums) / len(ROWS), rel=1e-5)
    smooth, _ = _step(model, Classify(label_smoothing=0.1), [ROWS])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert smooth == pytest.approx(float(expected), rel=1e-5)
    with model.evaluating():  # a measurement is the plain likelihood
        measured = Classify(label_smoothing=0.1).loss_sum(model, model.collate(ROWS)).total
    assert float(measured) / len(ROWS) == pytest.approx(_step(model, Classify(), [ROWS])[0], rel=1e-5)


def test_accuracy_counts_the_rows_whose_likeliest_class_is_right(model: Classifier) -> None:
    batch = model.collate(ROWS)
    guesses = model.class_logits(batch).argmax(-1)
    right = [Example(e.tokens, e.weights, e.source, {"label": float(g)}) for e, g in zip(ROWS, guesses)]
    assert int(Classify().loss_sum(model, model.collate(right)).metrics["accuracy"]) == len(ROWS)


def test_the_count_is_the_number_of_rows_and_adds_up(model: Classifier) -> None:
    parts = [model.collate([row]) for row in ROWS]
    assert Classify().count(model.collate(ROWS)) == sum(Classify().count(b) for b in parts) == len(ROWS)
