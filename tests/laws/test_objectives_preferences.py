"""The laws of objectives over judged answers: dpo, simpo, orpo, kto, reward, with all their losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import FAMILIES, NAMES, build, config, enlarge, tokenizer
from luthier.core.batch import Example, collate
from luthier.core.component import component_class, kinds
from luthier.methods.full import Full
from luthier.models.causal import CausalModel, probe
from luthier.models.classifier import Classifier, probe_classifier
from luthier.models.load import load_model
from luthier.models.loaded import LoadedModel
from luthier.objectives.base import Objective
from luthier.objectives.pairs import answer_logps
from luthier.train.engine import NonFiniteError
from luthier.train.microbatch import Cut
from training import engine

VARIANTS: list[dict[str, object]] = [
    {"kind": "dpo"},
    {"kind": "dpo", "loss": "ipo", "beta": 0.3},
    {"kind": "dpo", "loss": "hinge"},
    {"kind": "dpo", "loss": "robust", "label_smoothing": 0.2},
    {"kind": "dpo", "label_smoothing": 0.1, "length_normalized": True, "sft_weight": 0.5},
    {"kind": "simpo"},
    {"kind": "orpo"},
    {"kind": "kto", "undesirable_weight": 0.7},
    {"kind": "reward", "center_rewards_coefficient": 0.01},
]
JUDGED = {k for k, c in kinds("objective").items() if c.data_form in ("preference", "rated")}  # type: ignore[attr-defined]


def rows(kind: str, count: int = 6, seed: int = 0, vocabulary: int = 60) -> list[Example]:
    """Judged answers of different lengths, with what the objective needs of each."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        prompt, first, second = (int(n) for n in draw.integers(1, 9, 3))
        tokens = draw.integers(3, vocabulary, prompt + first + second).astype(np.int32)
        weights = np.concatenate([np.zeros(prompt), np.ones(first + second)]).astype(np.float32)
        reference = draw.normal(-20.0, 1.0, 2).astype(np.float32)
        extras: dict[str, float | np.ndarray] = {"reference": reference, "margin": float(index) / 4}
        if kind == "kto":
            extras["good"] = float(index % 2)
        made.append(Example(tokens, weights, f"rows.jsonl:{index + 1}", extras, (first, second)))
    return made


def _objective(variant: dict[str, object]) -> Objective:
    made = component_class("objective", str(variant["kind"])).model_validate(variant)
    assert isinstance(made, Objective)
    return made


def _scorer() -> Classifier:
    from transformers import AutoModelForSequenceClassification

    names = config("llama", id2label={0: "reward"}, label2id={"reward": 0})
    module = enlarge(AutoModelForSequenceClassification.from_config(names, dtype=torch.float32))
    model = Classifier(module, tokenizer(), "llama", "")
    module.config.pad_token_id = 0
    probe_classifier(model)
    return model


@pytest.fixture(scope="module")
def writer() -> CausalModel:
    model = CausalModel(build("llama"), tokenizer(), "llama", "")
    probe(model)
    return model


@pytest.fixture(scope="module")
def scorer() -> Classifier:
    return _scorer()


@pytest.fixture(params=VARIANTS, ids=lambda v: " ".join(map(str, v.values())))
def case(
    request: pytest.FixtureRequest, writer: CausalModel, scorer: Classifier
) -> tuple[Objective, LoadedModel, list]:
    objective = _objective(request.param)
    model = scorer if objective.head == "value" else writer
    return objective, model, rows(str(request.param["kind"]))


def _step(model: LoadedModel, objective: Objective, groups: list[list[Example]]) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of a step and its gradient, as the engine makes them."""
    model.module.zero_grad()
    flat = [example for group in groups for example in group]
    with model.evaluating():
        prepared = list(objective.prepare_step(model, flat, lambda some: [[e] for e in some]))
    sizes = [0, *itertools.accumulate(len(group) for group in groups)]
    batches = [model.collate(prepared[a:b]) for a, b in itertools.pairwise(sizes)]
    count = sum(objective.count(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch).total
        (loss / count).backward()
        total += float(loss.detach())
    return total / count, {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_every_objective_over_judgements_is_under_these_laws() -> None:
    assert {v["kind"] for v in VARIANTS} == JUDGED


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 5), max_size=4))
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    case: tuple[Objective, LoadedModel, list], cuts: set[int]
) -> None:
    objective, model, examples = case
    edges = [0, *sorted(cuts), len(examples)]
    loss, gradients = _step(model, objective, [examples[a:b] for a, b in itertools.pairwise(edges)])
    whole, expected = _step(model, objective, [examples])
    assert loss == pytest.approx(whole, rel=1e-5)
    _assert_same(gradients, expected)


def test_the_gradient_does_not_depend_on_the_order_of_rows(case: tuple[Objective, LoadedModel, list]) -> None:
    objective, model, examples = case
    loss, gradients = _step(model, objective, [examples[::-1]])
    whole, expected = _step(model, objective, Cut(sequences=2).apply(examples))
    assert loss == pytest.approx(whole, rel=1e-5)
    _assert_same(gradients, expected)


def test_finite_differences_agree(case: tuple[Objective, LoadedModel, list]) -> None:
    objective, model, examples = case
    if isinstance(objective.model_dump().get("loss"), str) and objective.model_dump()["loss"] == "hinge":
        examples = examples[:3]  # far from the corner
    _, gradients = _step(model, objective, [examples])
    parameters = {n: p for n, p in model.module.named_parameters() if n in gradients}
    start = {n: p.detach().clone() for n, p in parameters.items()}
    draw = torch.Generator().manual_seed(1)
    ways = {n: torch.randn(p.shape, generator=draw) * p.abs().mean() for n, p in start.items()}
    slope = sum(float((gradients[n].double() * way.double()).sum()) for n, way in ways.items())
    # KTO's z carries no gradient, so it stays what it is at the point.
    with model.evaluating():
        prepared = list(objective.prepare_step(model, examples, lambda some: [list(some)]))
    losses, size = [], 3e-4
    with torch.no_grad():
        for sign in (1, -1):
            for name, way in ways.items():
                parameters[name].copy_(start[name] + sign * size * way)
            batch = model.collate(prepared)
            losses.append(float(objective.loss_sum(model, batch).total) / objective.count(batch))
        for name, tensor in start.items():
            parameters[name].copy_(tensor)
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=0.03, abs=0.03)


def _at_start(model: CausalModel, kind: str) -> list[Example]:
    """Rows whose reference is the model itself."""
    found = []
    for example in rows(kind):
        with model.evaluating():
            own = answer_logps(model, model.collate([example])).numpy()
        extras = {**example.extras, "reference": own}
        found.append(Example(example.tokens, example.weights, example.source, extras, example.branches))
    return found


@pytest.mark.parametrize(
    ("variant", "value"),
    [
        ({"kind": "dpo"}, math.log(2)),
        ({"kind": "dpo", "label_smoothing": 0.3}, math.log(2)),
        ({"kind": "dpo", "loss": "robust", "label_smoothing": 0.3}, math.log(2)),
        ({"kind": "dpo", "loss": "hinge"}, 1.0),
        ({"kind": "dpo", "loss": "ipo", "beta": 0.1}, 25.0),
        ({"kind": "dpo", "loss": "ipo", "beta": 0.5}, 1.0),
        ({"kind": "kto"}, 0.5),
    ],
    ids=str,
)
def test_the_loss_begins_at_its_known_value(variant: dict[str, object], value: float, writer: CausalModel) -> None:
    loss, _ = _step(writer, _objective(variant), [_at_start(writer, str(variant["kind"]))])
    assert loss == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.6])
def test_simpo_of_equal_answers_is_the_softplus_of_its_margin_and_orpos_odds_the_logarithm_of_two(
    gamma: float, writer: CausalModel
) -> None:
    tokens = np.array([5, 9, 20, 21, 22, 20, 21, 22], np.int32)
    equal = Example(tokens, np.array([0, 0, 1, 1, 1, 1, 1, 1], np.float32), "", {}, (3, 3))
    loss, _ = _step(writer, _objective({"kind": "simpo", "gamma": gamma}), [[equal]])
    assert loss == pytest.approx(math.log1p(math.exp(gamma)), rel=1e-6)
    with torch.no_grad():
        told = _objective({"kind": "orpo"}).loss_sum(writer, writer.collate([equal])).metrics
    assert float(told["odds_loss"]) == pytest.approx(math.log(2), rel=1e-6)


def test_accuracy_and_margin_are_told_and_equal_pairs_count_half(writer: CausalModel) -> None:
    batch = writer.collate(_at_start(writer, "dpo"))
    with torch.no_grad():
        told = _objective({"kind": "dpo"}).loss_sum(writer, batch).metrics
    assert {"accuracy", "margin"} <= told.keys()
    assert abs(float(told["margin"])) < 1e-4


def test_a_reward_is_the_same_packed_and_padded(scorer: Classifier) -> None:
    batches = [collate(rows("reward"), packed=packed) for packed in (True, False)]
    with scorer.evaluating():
        packed, padded = (scorer.class_logits(batch) for batch in batches)
    assert torch.allclose(packed, padded, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in NAMES if FAMILIES[name].packs])
def test_a_prompt_that_both_answers_share_gives_the_gradient_of_two_rows(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    examples, objective = rows("dpo", seed=4, vocabulary=model.vocabulary_rows), _objective({"kind": "dpo"})
    found = []
    for packed in (True, False):
        model.packs = packed
        found.append(_step(model, objective, [examples]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    _assert_same(found[0][1], found[1][1])


@pytest.mark.parametrize("variant", [{"kind": "simpo"}, {"kind": "orpo"}, {"kind": "dpo", "length_normalized": True}])
def test_an_answer_without_a_trained_token_stops_the_step_before_a_weight_moves(variant: dict[str, object]) -> None:
    """Its mean log-probability is none. Rendering leaves such rows out and counts them; this is for who does not."""
    model = CausalModel(build("llama"), tokenizer(), "llama", "")
    probe(model)
    running = engine(model, Full(), _objective(variant))
    judged = rows(str(variant["kind"]))
    untrained = judged[2].weights.copy()
    untrained[-judged[2].branches[1] :] = 0.0
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"rows\.jsonl:3"):
        running.train_step([*judged[:2], replace(judged[2], weights=untrained)])
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
