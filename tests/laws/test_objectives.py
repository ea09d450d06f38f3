"""The laws of objectives: one suite over every registered objective."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import build, examples, tokenizer
from luthier.core.batch import Example
from luthier.core.component import component_class, kinds
from luthier.models.causal import CausalModel, probe
from luthier.objectives.base import Objective
from luthier.train.microbatch import Cut

OBJECTIVES = [kind for kind, cls in kinds("objective").items() if cls.is_plain_nll]  # type: ignore[attr-defined]
"""Those over weighted tokens; classes and preferences have the same laws in files of their own."""
ROWS = examples([9, 3, 14, 6, 1, 11, 2, 8])


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> Objective:
    return component_class("objective", request.param).model_validate({"kind": request.param})  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["llama", "gemma2", "bloom"])
def model(request: pytest.FixtureRequest) -> CausalModel:
    model = CausalModel(build(request.param), tokenizer(), request.param, "")
    probe(model)
    return model


def _gradients(model: CausalModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _step(model: CausalModel, objective: Objective, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
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


def test_zero_weights_give_zero_loss_and_zero_gradient(objective: Objective, model: CausalModel) -> None:
    silent = [Example(e.tokens, e.weights * 0, e.source) for e in ROWS]
    batch = model.collate(silent)
    model.module.zero_grad()
    loss = objective.loss_sum(model, batch).total
    loss.backward()
    assert objective.count(batch) == 0
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in _gradients(model).values())


def test_a_row_without_weight_adds_nothing_to_the_others(objective: Objective, model: CausalModel) -> None:
    silent = Example(ROWS[2].tokens, ROWS[2].weights * 0)
    loss, gradients = _step(model, objective, [[ROWS[0], silent, ROWS[5]]])
    alone, expected = _step(model, objective, [[ROWS[0], ROWS[5]]])
    assert loss == pytest.approx(alone, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)


def test_twice_the_weights_is_twice_the_sum_and_the_same_mean(objective: Objective, model: CausalModel) -> None:
    doubled = [Example(e.tokens, e.weights * 2) for e in ROWS]
    sums = [float(objective.loss_sum(model, model.collate(rows)).total.detach()) for rows in (ROWS, doubled)]
    assert sums[1] == pytest.approx(2 * sums[0], rel=1e-6)
    assert _step(model, objective, [doubled])[0] == pytest.approx(_step(model, objective, [ROWS])[0], rel=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.sets(st.integers(1, len(ROWS) - 1)))
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    objective: Objective, model: CausalModel, borders: set[int]
) -> None:
    edges = [0, *sorted(borders), len(ROWS)]
    loss, gradients = _step(model, objective, [ROWS[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, objective, [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(ROWS))))
def test_the_gradient_does_not_depend_on_the_order_of_rows(
    objective: Objective, model: CausalModel, order: list[int]
) -> None:
    loss, gradients = _step(model, objective, Cut(sequences=3).apply([ROWS[i] for i in order]))
    whole, expected = _step(model, objective, [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_finite_differences_agree(objective: Objective, model: CausalModel) -> None:
    _, gradients = _step(model, objective, [ROWS])
    draw = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in model.module.named_parameters() if n in gradients}
    start = {n: p.detach().clone() for n, p in parameters.items()}
    for _ in range(3):
        ways = {n: torch.randn(p.shape, generator=draw) * p.abs().mean() for n, p in start.items()}
        slope = sum(float((gradients[n].double() * way.double()).sum()) for n, way in ways.items())
        step, losses = 1e-3, []
        with torch.no_grad():
            for sign in (1, -1):
                for name, way in ways.items():
                    parameters[name].copy_(start[name] + sign * step * way)
                losses.append(_mean_loss(model, objective))
            for name, tensor in start.items():
                parameters[name].copy_(tensor)
        # Float32 loses digits in the difference, and the curve bends over the step.
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=0.02)


def _mean_loss(model: CausalModel, objective: Objective) -> float:
    batch = model.collate(ROWS)
    return float(objective.loss_sum(model, batch).total) / objective.count(batch)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(objective: Objective) -> None:
    module = build("llama")
    torch.nn.init.zeros_(module.get_output_embeddings().weight)
    model = CausalModel(module, tokenizer(), "llama", "")
    rows = module.get_input_embeddings().weight.shape[0]
    loss, _ = _step(model, objective, [ROWS])
    assert loss == pytest.approx(math.log(rows), rel=1e-6)


def test_the_mean_loss_equals_that_of_transformers_own_labels(objective: Objective, model: CausalModel) -> None:
    plain = [Example(e.tokens, (e.weights > 0).astype("float32")) for e in ROWS if len(e) > 1]
    ours, _ = _step(model, objective, [plain])
    total, count = 0.0, 0
    for example in plain:
        tokens = torch.tensor(example.tokens, dtype=torch.long)[None]
        labels = torch.where(torch.tensor(example.weights[None]) > 0, tokens, -100)
        trained = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model.module(input_ids=tokens, labels=labels).loss) * trained if trained else 0.0
        count += trained
    assert ours == pytest.approx(total / count, rel=1e-5)


def test_the_count_is_known_before_the_forward_pass_and_adds_up(objective: Objective, model: CausalModel) -> None:
    parts = [model.collate([row]) for row in ROWS]
    assert objective.count(model.collate(ROWS)) == pytest.approx(sum(objective.count(b) for b in parts))
