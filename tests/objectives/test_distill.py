"""Distillation: the closed form, the laws of objectives, and the student's own answers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import build, examples, tokenizer
from luthier.core.batch import Example
from luthier.methods.full import Full
from luthier.models.causal import CausalModel, probe
from luthier.objectives.distill import OWN, Distill
from luthier.objectives.sft import Sft
from luthier.train.on_policy import answer_start, with_own_answers
from training import engine

ROWS = examples([9, 3, 14, 6, 1, 11, 2, 8])
KINDS = [
    Distill(teacher="t"),
    Distill(teacher="t", loss="reverse_kl", temperature=2.0),
    Distill(teacher="t", loss="jsd", alpha=0.4),
    Distill(teacher="t", alpha=0.7, temperature=1.5),
]


def causal(family: str, seed: int = 0) -> CausalModel:
    model = CausalModel(build(family, seed=seed), tokenizer(), family, "")
    probe(model)
    return model


def taught(family: str, teacher_family: str | None = None, seed: int = 1) -> CausalModel:
    model, teacher = causal(family), causal(teacher_family or family, seed=seed)
    teacher.module.requires_grad_(False)
    model.packs = model.packs and teacher.packs
    model.teacher = teacher
    return model


@pytest.fixture(scope="module", params=["llama", "gemma2", "bloom"])
def model(request: pytest.FixtureRequest) -> CausalModel:
    return taught(request.param, "gpt2")  # of another make, with the same tokens


@pytest.fixture(params=KINDS, ids=lambda k: f"{k.loss}-{k.alpha}-{k.temperature}")
def objective(request: pytest.FixtureRequest) -> Distill:
    return request.param


def _gradients(model: CausalModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _step(model: CausalModel, objective: Distill | Sft, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
    model.module.zero_grad()
    batches = [model.collate(group) for group in groups]
    count = sum(objective.count(b) for b in batches)
    total = 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch).total
        (loss / count).backward()
        total += float(loss.detach())
    return total / count, _gradients(model)


def _plain(model: CausalModel, objective: Distill) -> float:
    """The mean loss from both models' own logits, whole matrices in double precision."""
    assert model.teacher is not None
    total, count, t = 0.0, 0.0, objective.temperature
    for row in ROWS:
        if len(row) < 2:
            continue
        tokens = torch.tensor(row.tokens, dtype=torch.long)[None]
        w = torch.tensor(row.weights[1:], dtype=torch.float64)
        with torch.no_grad():
            mine, theirs = (m.module(input_ids=tokens).logits[0, :-1].double() for m in (model, model.teacher))
        q, p = (mine / t).log_softmax(-1), (theirs / t).log_softmax(-1)
        m = torch.log((p.exp() + q.exp()) / 2)
        far = {
            "forward_kl": (p.exp() * (p - q)).sum(-1),
            "reverse_kl": (q.exp() * (q - p)).sum(-1),
            "jsd": ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2,
        }[objective.loss]
        nll = -mine.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        total += float((w * (objective.alpha * t**2 * far + (1 - objective.alpha) * nll)).sum())
        count += float(w.sum())
    return total / count


def test_the_loss_is_the_closed_form_of_both_models_logits(objective: Distill, model: CausalModel) -> None:
    assert _step(model, objective, [ROWS])[0] == pytest.approx(_plain(model, objective), rel=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(loss: str) -> None:
    model = taught("llama", seed=0)
    found, gradients = _step(model, Distill.model_validate({"teacher": "t", "loss": loss}), [ROWS])
    assert found == pytest.approx(0.0, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-5


def test_finite_differences_agree(objective: Distill, model: CausalModel) -> None:
    _, gradients = _step(model, objective, [ROWS])
    draw = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in model.module.named_parameters() if n in gradients}
    start = {n: p.detach().clone() for n, p in parameters.items()}
    batch = model.collate(ROWS)
    for _ in range(2):
        ways = {n: torch.randn(p.shape, generator=draw) * p.abs().mean() for n, p in start.items()}
        slope = sum(float((gradients[n].double() * way.double()).sum()) for n, way in ways.items())
        step, losses = 1e-3, []
        with torch.no_grad():
            for sign in (1, -1):
                for name, way in ways.items():
                    parameters[name].copy_(start[name] + sign * step * way)
                losses.append(float(objective.loss_sum(model, batch).total) / objective.count(batch))
            for name, tensor in start.items():
                parameters[name].copy_(tensor)
        # Float32 loses digits in the difference, and the curve bends over the step.
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.03, abs=0.03)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.sets(st.integers(1, len(ROWS) - 1)), order=st.permutations(range(len(ROWS))))
def test_the_gradient_depends_neither_on_cut_nor_on_order(
    objective: Distill, model: CausalModel, borders: set[int], order: list[int]
) -> None:
    rows = [ROWS[i] for i in order]
    edges = [0, *sorted(borders), len(ROWS)]
    loss, gradients = _step(model, objective, [rows[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, objective, [ROWS])
    assert loss == pytest.approx(whole, rel=1e-5)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 2e-5 * max(1.0, float(gradient.abs().max())), name


def test_zero_weights_give_zero_loss_and_twice_the_weights_twice_the_sum(
    objective: Distill, model: CausalModel
) -> None:
    def total(factor: float) -> float:
        rows = [Example(e.tokens, e.weights * factor) for e in ROWS]
        return float(objective.loss_sum(model, model.collate(rows)).total.detach())

    assert total(0.0) == 0
    assert total(2.0) == pytest.approx(2 * total(1.0), rel=1e-6)


def test_without_a_share_for_the_teacher_it_would_be_sft(model: CausalModel) -> None:
    nearly, gradients = _step(model, Distill(teacher="t", alpha=1e-9), [ROWS])
    plain, expected = _step(model, Sft(), [ROWS])
    assert nearly == pytest.approx(plain, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_parts_are_logged(model: CausalModel) -> None:
    objective = Distill(teacher="t", alpha=0.4, temperature=2.0)
    found = objective.loss_sum(model, model.collate(ROWS))
    parts = {name: float(value) for name, value in found.metrics.items()}
    assert parts.keys() == {"divergence", "nll"}
    assert float(found.total.detach()) == pytest.approx(0.4 * 4 * parts["divergence"] + 0.6 * parts["nll"], rel=1e-5)


# ---------------------------------------------------------------------- the student's own answers


def _answers(length: int, prompt: int) -> Example:
    weights = np.zeros(length, dtype=np.float32)
    weights[prompt:] = 1.0
    return Example(np.arange(3, 3 + length, dtype=np.int32), weights, "data.jsonl:1")


def test_a_share_of_the_rows_gets_answers_of_the_students_own() -> None:
    rows = [_answers(8 + i % 3, 4) for i in range(20)]
    other = _answers(5, 1)

    def drawn(step: int = 0, share: float = 0.5, seed: int = 0) -> list[Example]:
        objective = Distill(teacher="t", on_policy=share, max_new_tokens=6)
        made = engine(taught("llama"), Full(), objective, seed=seed)  # type: ignore[arg-type]
        made.step = step
        return with_own_answers(made, rows, [other])

    found = drawn()
    own = [bool(e.extras[OWN]) for e in found]
    assert 4 < sum(own) < 16
    assert not own[-1]
    for example, row, is_own in zip(found, [*rows, other], own):
        assert example.tokens[:4].tolist()[: answer_start(row)] == row.tokens[: min(4, answer_start(row))].tolist()
        if is_own:
            assert 4 < len(example) <= 10
            assert example.weights.tolist() == [0.0] * 4 + [1.0] * (len(example) - 4)
        else:
            assert np.array_equal(example.tokens, row.tokens)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, drawn()))
    assert any(len(a) != len(b) or (a.tokens != b.tokens).any() for a, b in zip(found, drawn(step=1)))
    assert all(e.extras[OWN] for e in drawn(share=1.0)[:-1])


def test_own_answers_are_compared_with_the_teacher_and_never_copied() -> None:
    model = taught("llama")
    objective = Distill(teacher="t", alpha=0.5)
    rows = [replace(row, extras={OWN: float(i % 2)}) for i, row in enumerate(ROWS)]
    found = objective.loss_sum(model, model.collate(rows)).metrics
    data_only = objective.loss_sum(model, model.collate(ROWS[::2])).metrics
    whole = objective.loss_sum(model, model.collate(ROWS)).metrics
    assert float(found["nll"]) == pytest.approx(float(data_only["nll"]), rel=1e-5)
    assert float(found["divergence"]) == pytest.approx(float(whole["divergence"]), rel=1e-6)


def test_the_last_answer_of_a_conversation_is_the_one_that_is_written_anew() -> None:
    weights = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.float32)
    assert answer_start(Example(np.arange(8, dtype=np.int32), weights)) == 6
    assert answer_start(Example(np.arange(3, dtype=np.int32), np.ones(3, np.float32))) == 1
