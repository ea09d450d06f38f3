"""PPO against a plain transcription of the published algorithm, in 64 bits, answer by answer and token by token.

Schulman et al. 2017 (arXiv:1707.06347), eq. 7, 9 and 11; the reward of a token and the controller of the KL coefficient
of Ziegler et al. 2019 (arXiv:1909.08593), section 2.2; the clipped value loss of OpenAI's baselines.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import build, tokenizer
from luthier.core.batch import Example
from luthier.models.causal import CausalModel, probe
from luthier.models.critic import Critic
from luthier.objectives.ppo import Ppo
from luthier.objectives.rollouts import Group

LENGTHS, REWARDS, TRUNCATED = (5, 1, 7, 3), (1.0, -0.5, 0.25, 2.0), (False, True, False, True)
SETTINGS = {
    "temperature": 0.8,
    "beta": 0.3,
    "target_kl": 0.2,
    "epsilon": 0.1,
    "epsilon_value": 0.15,
    "value_weight": 0.7,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "entropy_weight": 0.02,
    "missing_end_penalty": 0.4,
}


@pytest.fixture
def model() -> CausalModel:
    made = CausalModel(build("llama"), tokenizer(), "llama", "")
    probe(made)
    return made


def _groups() -> list[Group]:
    draw, groups = np.random.default_rng(1), []
    for length, reward, truncated in zip(LENGTHS, REWARDS, TRUNCATED):
        tokens = draw.integers(3, 60, 4 + length).astype(np.int32)
        weights = np.concatenate([np.zeros(4), np.ones(length)]).astype(np.float32)
        old = -2 - draw.random(length)
        extras = {"old": old, "start": old + draw.normal(0, 0.5, length), "values": draw.normal(0, 0.5, length)}
        numbers = {name: values.astype(np.float32) for name, values in extras.items()}
        groups.append(Group(Example(tokens, weights, token_extras=numbers), np.array([reward]), np.array([truncated])))
    return groups


def _published(model: CausalModel, critic: Critic, groups: list[Group], s: dict[str, float], white: bool) -> dict:
    """The algorithm as it stands in the papers, with loops in place of tensors."""
    coefficient = float(critic.kl_coefficient)
    token_rewards = []
    for group in groups:
        extras = {n: v.astype(np.float64) for n, v in group.example.token_extras.items()}
        rewards = [-coefficient * (extras["old"][t] - extras["start"][t]) for t in range(len(extras["old"]))]
        rewards[-1] += group.rewards[0] - (s["missing_end_penalty"] if group.is_truncated[0] else 0.0)
        token_rewards.append(rewards)
    if white:
        flat = np.concatenate(token_rewards)
        token_rewards = [[(r - flat.mean()) / flat.std() + flat.mean() for r in rewards] for rewards in token_rewards]
    advantages, returns = [], []
    for group, rewards in zip(groups, token_rewards):
        values = [*group.example.token_extras["values"].astype(np.float64), 0.0]
        deltas = [r + s["gamma"] * values[t + 1] - values[t] for t, r in enumerate(rewards)]
        own = [
            sum((s["gamma"] * s["gae_lambda"]) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))
        ]
        advantages.append(own)
        returns.append([a + v for a, v in zip(own, values)])
    flat = np.concatenate(advantages)
    advantages = [[(a - flat.mean()) / flat.std() for a in own] for own in advantages]
    total, count, clipped = torch.zeros((), dtype=torch.float64), 0, 0
    for group, own, goals in zip(groups, advantages, returns):
        tokens = torch.from_numpy(group.example.tokens.astype(np.int64))
        out = model.module(input_ids=tokens[None], output_hidden_states=True)
        logps = (out.logits[0].double() / s["temperature"]).log_softmax(-1)
        hidden = out.hidden_states[-1][0]
        for t in range(len(own)):
            place = len(tokens) - len(own) + t - 1
            ratio = (logps[place, tokens[place + 1]] - float(group.example.token_extras["old"][t])).exp()
            surrogate = torch.min(ratio * own[t], ratio.clamp(1 - s["epsilon"], 1 + s["epsilon"]) * own[t])
            clipped += int((ratio > 1 + s["epsilon"] and own[t] > 0) or (ratio < 1 - s["epsilon"] and own[t] < 0))
            value, old = critic(hidden[place][None])[0].double(), float(group.example.token_extras["values"][t])
            near = old + (value - old).clamp(-s["epsilon_value"], s["epsilon_value"])
            error = torch.max((value - goals[t]) ** 2, (near - goals[t]) ** 2)
            entropy = -(logps[place].exp() * logps[place]).sum()
            total = total - surrogate + s["value_weight"] * 0.5 * error - s["entropy_weight"] * entropy
            count += 1
    flat_returns = np.concatenate(returns)
    values = np.concatenate([g.example.token_extras["values"] for g in groups])
    explained = 1 - np.var(flat_returns - values) / np.var(flat_returns)
    log_ratio = np.concatenate([g.example.token_extras["start"] - g.example.token_extras["old"] for g in groups])
    error = np.clip((np.exp(log_ratio) - log_ratio - 1).mean() / s["target_kl"] - 1, -0.2, 0.2)
    return {
        "loss": total / count,
        "clip_fraction": clipped / count,
        "explained_variance": explained,
        "coefficient": coefficient * (1 + 0.1 * error),
    }


@pytest.mark.parametrize("white", [False, True])
def test_loss_gradients_and_controller_are_those_of_the_published_algorithm(model: CausalModel, white: bool) -> None:
    objective = Ppo.model_validate({"kind": "ppo", "reward": "exact_match", **SETTINGS, "whiten_rewards": white})
    critic = objective.build_state(model)
    assert isinstance(critic, Critic)
    torch.nn.init.normal_(critic.value.weight, generator=torch.Generator().manual_seed(0))
    parameters = {**dict(model.module.named_parameters()), "critic": critic.value.weight, "bias": critic.value.bias}
    expected = _published(model, critic, _groups(), SETTINGS, white)
    grads = torch.autograd.grad(expected["loss"], list(parameters.values()), allow_unused=True)
    wanted = {n: g for n, g in zip(parameters, grads) if g is not None}

    examples, told = objective.learn(_groups(), critic)
    assert float(critic.kl_coefficient) == pytest.approx(expected["coefficient"], rel=1e-6)
    assert told["explained_variance"] == pytest.approx(expected["explained_variance"], rel=1e-5)
    batch = model.collate(examples)
    found = objective.loss_sum(model, batch)
    (found.total / objective.count(batch)).backward()
    assert float(found.total.detach()) / objective.count(batch) == pytest.approx(float(expected["loss"]), abs=1e-5)
    assert float(found.metrics["clip_fraction"]) / batch.count == pytest.approx(expected["clip_fraction"])
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        ours = parameters[name].grad
        assert ours is not None, name
        assert (ours - gradient).abs().max() <= 1e-5 * max(1.0, largest), name


def test_a_critic_that_knows_nothing_explains_nothing_and_one_that_knows_all_explains_all(model: CausalModel) -> None:
    objective = Ppo.model_validate({"kind": "ppo", "reward": "exact_match", "beta": 0.0, "gae_lambda": 1.0})
    critic = objective.build_state(model)
    for known, share in ((0.0, 0.0), (1.0, 1.0)):
        groups = _groups()
        for group in groups:
            group.example.token_extras["values"][:] = known * group.rewards[0]
        _, told = objective.learn(groups, critic)
        assert told["explained_variance"] == pytest.approx(share, abs=1e-6)
