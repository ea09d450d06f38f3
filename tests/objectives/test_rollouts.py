"""Advantages against numbers worked out by hand, estimates of KL against the divergence, and losses as averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import build, tokenizer
from luthier.core.batch import Example
from luthier.core.component import StageFacts, component_class
from luthier.methods.full import Full
from luthier.methods.layers import Layers
from luthier.models.causal import CausalModel, probe
from luthier.models.critic import Critic
from luthier.objectives.grpo import Grpo
from luthier.objectives.ppo import Ppo
from luthier.objectives.rloo import Rloo
from luthier.objectives.rollouts import (
    Group,
    Online,
    generalised_advantages,
    group_advantages,
    in_equal_parts,
    k1,
    k2,
    k3,
    kept_answers,
    leave_one_out,
    whitened,
)

REWARD = {"kind": "regex", "pattern": "a"}
_DRAW = np.random.default_rng(0)


def grpo(**fields: object) -> Grpo:
    return Grpo.model_validate({"kind": "grpo", "reward": REWARD, **fields})


def rloo(**fields: object) -> Rloo:
    return Rloo.model_validate({"kind": "rloo", "reward": REWARD, **fields})


def ppo(**fields: object) -> Ppo:
    return Ppo.model_validate({"kind": "ppo", "reward": REWARD, **fields})


def group(
    lengths: tuple[int, ...], rewards: tuple[float, ...], truncated: tuple[bool, ...] | None = None, prompt: int = 3
) -> Group:
    """A prompt with answers of random tokens, and random log-probabilities."""
    count = sum(lengths)
    tokens = _DRAW.integers(3, 60, prompt + count).astype(np.int32)
    weights = np.concatenate([np.zeros(prompt), np.ones(count)]).astype(np.float32)
    numbers = {name: -_DRAW.random(count).astype(np.float32) for name in ("old", "start", "values")}
    branches = lengths if len(lengths) > 1 else ()
    example = Example(tokens, weights, "p.jsonl:1", branches=branches, token_extras=numbers)
    return Group(example, np.array(rewards), np.array(truncated or [False] * len(lengths)))


# ---------------------------------------------------------------------- advantages


def test_group_advantages_are_those_worked_out_by_hand() -> None:
    rewards = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
    centred = np.array([[-1.0, 0.0, 1.0], [-2.0, -2.0, 4.0]])
    np.testing.assert_allclose(group_advantages(rewards, "none"), centred)
    # Sample deviations: of 1, 2, 3 it is 1, of 0, 0, 6 it is √12; of all six numbers it is √(26/5)... with mean 2.
    np.testing.assert_allclose(
        group_advantages(rewards, "group"), centred / np.array([[1.0001], [12**0.5 + 1e-4]]), rtol=1e-12
    )
    np.testing.assert_allclose(group_advantages(rewards, "batch"), centred / ((26 / 5) ** 0.5 + 1e-4), rtol=1e-12)


def test_answers_that_are_worth_the_same_have_no_advantage_and_nothing_is_undefined() -> None:
    for scale in ("group", "batch", "none"):
        assert not group_advantages(np.full((2, 4), 0.3), scale).any()  # type: ignore[arg-type]
    assert not leave_one_out(np.full((2, 4), 0.5)).any()


def test_an_answers_baseline_is_the_mean_of_the_others() -> None:
    np.testing.assert_allclose(leave_one_out(np.array([[1.0, 2.0, 6.0]])), [[1 - 4, 2 - 3.5, 6 - 1.5]])


def test_generalised_advantages_are_those_worked_out_by_hand() -> None:
    rewards, values = np.array([1.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5])
    # δ = (1 + .9·1 − .5, 0 + .9·1.5 − 1, 2 − 1.5) = (1.4, .35, .5); γλ = .72
    last, middle = 0.5, 0.35 + 0.72 * 0.5
    np.testing.assert_allclose(
        generalised_advantages(rewards, values, 0.9, 0.8), [1.4 + 0.72 * middle, middle, last], rtol=1e-12
    )


def test_with_lambda_one_advantages_are_returns_less_values_and_with_zero_one_steps_errors() -> None:
    rewards, values = _DRAW.random(6), _DRAW.random(6)
    returns = np.array([sum(rewards[t:] * 0.9 ** np.arange(6 - t)) for t in range(6)])
    np.testing.assert_allclose(generalised_advantages(rewards, values, 0.9, 1.0), returns - values)
    np.testing.assert_allclose(
        generalised_advantages(rewards, values, 0.9, 0.0), rewards + 0.9 * np.append(values[1:], 0) - values
    )


def test_whitened_numbers_have_the_variance_one() -> None:
    values = _DRAW.random(1000) * 7 + 3
    assert whitened(values).mean() == pytest.approx(0, abs=1e-12)
    assert whitened(values).var() == pytest.approx(1, rel=1e-6)
    assert whitened(values, shift=False).mean() == pytest.approx(values.mean())
    assert not whitened(np.full(5, 2.0)).any()


# ---------------------------------------------------------------------- KL


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    ours, start = logits.log_softmax(-1)
    true = float((ours.exp() * (ours - start)).sum())
    # Expectations are exact sums over the seven outcomes, so nothing is left to chance.
    assert float((ours.exp() * k1(ours, start)).sum()) == pytest.approx(true, rel=1e-12)
    assert float((ours.exp() * k3(ours, start)).sum()) == pytest.approx(true, rel=1e-12)
    assert bool((k3(ours, start) >= 0).all())
    assert bool((k1(ours, start) < 0).any())


def test_k2_is_biased_and_its_gradient_is_that_of_the_divergence() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=draw, dtype=torch.float64, requires_grad=True)
    start = torch.randn(7, generator=draw, dtype=torch.float64).log_softmax(-1)
    ours = logits.log_softmax(-1)
    true = (ours.exp() * (ours - start)).sum()
    estimate = (ours.detach().exp() * k2(ours, start)).sum()
    assert float(estimate.detach()) != pytest.approx(float(true.detach()), rel=0.01)
    [wanted], [found] = (torch.autograd.grad(x, logits, retain_graph=True) for x in (true, estimate))
    torch.testing.assert_close(found, wanted)


# ---------------------------------------------------------------------- what is learnt from


def test_the_advantage_of_each_answer_goes_with_it() -> None:
    examples, _ = grpo(scale_rewards="none").learn([group((2, 3), (0.0, 1.0)), group((1, 4), (2.0, 2.0))], None)
    assert [list(e.extras["advantage"]) for e in examples] == [[-0.5, 0.5], [0.0, 0.0]]
    assert all(set(e.token_extras) == {"values"} for e in examples)  # the writer takes the first step itself
    examples, _ = grpo(iterations=2, beta=0.1).learn([group((2, 3), (0.0, 1.0))], None)
    assert set(examples[0].token_extras) == {"old", "start", "values"}


def test_rloo_takes_the_distance_from_the_start_off_the_reward() -> None:
    one = group((2, 3), (1.0, 0.0))
    old, start = one.per_answer("old"), one.per_answer("start")
    earned = [r - 0.5 * float(o.sum() - s.sum()) for r, o, s in zip((1.0, 0.0), old, start)]
    [example], _ = rloo(beta=0.5).learn([one], None)
    np.testing.assert_allclose(example.extras["advantage"], [earned[0] - earned[1], earned[1] - earned[0]], rtol=1e-6)
    assert one.rewards.tolist() == [1.0, 0.0]


def test_truncated_answers_are_masked_as_asked_and_still_compared_with() -> None:
    one = group((2, 3), (0.0, 1.0), truncated=(False, True))
    [masked], _ = grpo(mask_truncated=True, iterations=2, scale_rewards="none").learn([one], None)
    assert masked.weights.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert [len(v) for v in masked.token_extras.values()] == [2, 2]
    assert masked.extras["advantage"].tolist() == [-0.5, 0.5]
    [kept], _ = grpo(mask_truncated=False).learn([one], None)
    assert kept.weights.sum() == 5
    assert kept_answers(one.example, [True, True]) is one.example


def test_parts_cover_everything_once_and_none_is_empty() -> None:
    examples = [group((1,), (0.0,)).example for _ in range(5)]
    parts = in_equal_parts(examples, 2, np.arange(5))
    assert sorted(map(len, parts)) == [2, 3]
    assert {id(e) for part in parts for e in part} == {id(e) for e in examples}
    assert all(in_equal_parts(examples[:1], 3, np.arange(1)))
    chosen = ppo(iterations=3, minibatches=2)
    assert len(chosen.parts(examples, np.random.default_rng(0))) == chosen.updates == 6


def test_what_cannot_be_is_refused() -> None:
    for fields in ({"num_generations": 1}, {"temperature": 0}, {"epsilon": 1.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            grpo(**fields)
    with pytest.raises(ValueError, match="reward"):
        component_class("objective", "grpo").model_validate({"kind": "grpo"})
    facts = StageFacts(method=Full(), objective=ppo(minibatches=9), batch_size=8)
    [problem] = ppo(minibatches=9).problems(facts)
    assert "minibatches" in problem.what
    select = StageFacts(method=Layers(select="gradient", top=1), objective=grpo())
    assert [p.where for p in grpo().problems(select)] == ["method.select"]


def test_a_limit_on_the_divergence_is_the_objectives_own() -> None:
    for objective in (grpo(max_kl=0.5), rloo(max_kl=0.5), ppo(max_kl=0.5)):
        assert isinstance(objective, Online)
        assert objective.ran_away(0.6)
        assert not objective.ran_away(0.5)
    assert not grpo(max_kl=None).ran_away(1e9)
    assert not grpo(max_kl=None).compares_with_start
    assert grpo(max_kl=None, beta=0.1).compares_with_start


# ---------------------------------------------------------------------- losses


@pytest.fixture(scope="module")
def model() -> CausalModel:
    made = CausalModel(build("llama"), tokenizer(), "llama", "")
    probe(made)
    return made


def _rows(objective: Online, state: Critic | None = None) -> list[Example]:
    single = objective.answers == 1
    groups = [
        group((4,) if single else (4, 2, 5), (1.0,) if single else (1.0, 0.0, 0.5)),
        group((3,) if single else (1, 6, 3), (0.3,) if single else (0.0, 0.2, 0.9), prompt=5),
        group((6,) if single else (2, 2, 2), (0.1,) if single else (0.5, 0.5, 0.5)),
    ]
    return objective.learn(groups, state)[0]


ALL = [
    grpo(num_generations=3, iterations=2, beta=0.1, temperature=0.7),
    grpo(num_generations=3, iterations=2, loss="grpo", epsilon_high=0.28),
    grpo(num_generations=3, iterations=2, loss="dr_grpo", scale_rewards="none"),
    rloo(num_generations=3, iterations=2),
    ppo(entropy_weight=0.1),
]


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.kind}-{getattr(o, 'loss', '')}")
def test_packed_and_padded_and_cut_into_micro_batches_the_gradient_is_the_same(
    objective: Grpo | Rloo | Ppo, model: CausalModel
) -> None:
    state = objective.build_state(model)
    assert state is None or isinstance(state, Critic)
    rows = _rows(objective, state)
    found = []
    for groups, packed in (([rows], True), ([rows], False), ([[row] for row in rows], True)):
        model.module.zero_grad()
        model.packs = packed
        batches = [model.collate(g) for g in groups]
        count = sum(objective.count(b) for b in batches)
        losses = [objective.loss_sum(model, b) for b in batches]
        total = sum(loss.total for loss in losses) / count  # type: ignore[operator]
        total.backward()
        told = {n: float(sum(loss.metrics[n] for loss in losses)) / count for n in losses[0].metrics}  # type: ignore[arg-type]
        found.append((float(total.detach()), told, {n: p.grad.clone() for n, p in model.module.named_parameters()}))
    model.packs, model.critic = True, None
    loss, told, gradients = found[0]
    for other, other_told, others in found[1:]:
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert other_told == pytest.approx(told, rel=1e-5, abs=1e-6)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_on_the_first_step_the_gradient_is_that_of_the_policy_gradient(model: CausalModel) -> None:
    rows = _rows(grpo(num_generations=3))
    batch = model.collate(rows)
    model.module.zero_grad()
    grpo(num_generations=3).loss_sum(model, batch).total.backward()
    ours = {n: p.grad.clone() for n, p in model.module.named_parameters()}
    model.module.zero_grad()
    advantage_M = batch.extras["advantage"][batch.sequence_M]
    (-(advantage_M * model.logps(batch)).sum()).backward()
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_log_probabilities_and_entropies_at_a_temperature_are_those_of_scaled_logits() -> None:
    for family in ("llama", "gemma2", "cohere", "granite"):
        model = CausalModel(build(family), tokenizer(), family, "")
        probe(model)
        rows = [group((4, 2), (0.0, 1.0)).example, group((5,), (0.0,)).example]
        batch = model.collate(rows)
        said = model.predictions(batch, 0.6, with_entropies=True)
        tokens = torch.from_numpy(rows[1].tokens.astype(np.int64))
        with torch.no_grad():
            logits = model.module(input_ids=tokens[None]).logits[0, 2:-1].float() / 0.6
        wanted = logits.log_softmax(-1)
        torch.testing.assert_close(said.logps[-5:], wanted.gather(1, tokens[3:, None])[:, 0], rtol=1e-4, atol=1e-4)
        assert said.entropies is not None
        torch.testing.assert_close(said.entropies[-5:], -(wanted.exp() * wanted).sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(said.logps, model.logps(batch, 0.6), rtol=1e-5, atol=1e-6)
