"""What objectives share that learn from a model's own answers: groups of answers, advantages, and estimates of KL.

An iteration of such an objective: the model answers `batch_size` prompts, a reward gives each answer a number, `learn`
turns numbers into advantages, and the answers are gone through `iterations` times (train/rollout.py, train/rl.py).

Shape legend: P prompts, G answers to a prompt, S sequences, M supervised tokens (of one answer: N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from luthier.core.batch import Example
from luthier.core.component import StageFacts
from luthier.core.errors import Problem, UserError
from luthier.rewards.base import Reward
from luthier.rewards.judging.wire import server_url

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.batch import Batch

SMALL = 1e-4
"""Added to a spread before dividing by it; answers that are all worth the same then have the advantage 0."""


@dataclass(frozen=True)
class Group:
    """A prompt with its answers, and what they are worth.

    Attributes:
        example: the prompt and behind it its answers, whose tokens all have the weight 1. `token_extras` hold "old" and
            "start", the log-probabilities under the model that wrote them and under the one that training started
            from, and "values", where the objective asks for them.
        rewards: (G,) float64.
        is_truncated: (G,) bool: answers that had to stop before they ended.
    """

    example: Example
    rewards: np.ndarray
    is_truncated: np.ndarray

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each answer."""
        return self.example.branches or (self.example.trained_tokens,)

    def per_answer(self, name: str) -> list[np.ndarray]:
        """Return the numbers (N,) of each answer's tokens."""
        return np.split(self.example.token_extras[name], np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: at most how many tokens, at which temperature, from which share of the likeliest."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0


@runtime_checkable
class Online(Protocol):
    """What an objective over the model's own answers has, besides what every objective has."""

    reward: Reward
    temperature: float
    vllm: str | None

    @property
    def drawing(self) -> Drawing:
        """How answers are drawn."""
        ...

    def ran_away(self, kl: float) -> bool:
        """Return whether the model has moved too far from its start, in nats per token."""
        ...

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        ...

    @property
    def updates(self) -> int:
        """Optimizer steps on each set of answers."""
        ...

    @property
    def compares_with_start(self) -> bool: ...

    @property
    def learns_from_start(self) -> bool:
        """Whether "start" has to be known of every answer; for a look at how far the model has moved, some will do."""
        ...

    @property
    def wants_values(self) -> bool:
        """Whether "values" have to be known of every token before `learn`."""
        ...

    def learn(self, groups: Sequence[Group], state: nn.Module | None) -> tuple[list[Example], dict[str, float]]:
        """Return the examples to train on, and numbers for the log; `state` may be changed in place."""
        ...

    def parts(self, examples: Sequence[Example], draw: np.random.Generator) -> list[list[Example]]:
        """Return the examples of each optimizer step."""
        ...


def rollout_problems(facts: StageFacts, vllm: str | None) -> list[Problem]:
    """Return what is wrong with a method that has to be trained on answers, or handed to a server that writes them."""
    found = []
    if facts.method.model_dump().get("select") is not None:
        what = "select looks at gradients before training, and there are none before the model has answered."
        found.append(Problem(what, "method.select", "name the blocks: method.blocks or method.last"))
    if vllm is None:
        return found
    try:
        server_url(vllm, "", "objective.vllm")
    except UserError as error:
        found += error.problems
    if facts.unservable:
        what = f"vLLM cannot be given what is trained: {facts.unservable}."
        found.append(Problem(what, "objective.vllm", "use method: lora, or remove vllm: our own engine then writes"))
    return found


# ---------------------------------------------------------------------- advantages


def group_advantages(rewards_PG: np.ndarray, scale: Literal["group", "batch", "none"]) -> np.ndarray:
    """Return rewards less the mean of their group, (P, G), divided by a standard deviation (of a sample, n − 1)."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdims=True)
    if scale == "none":
        return centred_PG
    spread = rewards_PG.std(1, ddof=1, keepdims=True) if scale == "group" else rewards_PG.std(ddof=1)
    return centred_PG / (spread + SMALL)


def leave_one_out(rewards_PG: np.ndarray) -> np.ndarray:
    """Return rewards less the mean of the other answers to the same prompt, (P, G)."""
    count = rewards_PG.shape[1]
    return rewards_PG - (rewards_PG.sum(1, keepdims=True) - rewards_PG) / (count - 1)


def generalised_advantages(rewards_N: np.ndarray, values_N: np.ndarray, gamma: float, gae_lambda: float) -> np.ndarray:
    """Return the generalised advantage estimates (N,) of one answer, which is worth nothing behind its last token.

    Schulman et al. 2016, arXiv:1506.02438: Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t.
    """
    advantages_N = np.zeros(len(rewards_N), dtype=np.float64)
    later, next_value = 0.0, 0.0
    for step in range(len(rewards_N) - 1, -1, -1):
        delta = rewards_N[step] + gamma * next_value - values_N[step]
        later = delta + gamma * gae_lambda * later
        advantages_N[step], next_value = later, values_N[step]
    return advantages_N


def whitened(values: np.ndarray, shift: bool = True) -> np.ndarray:
    """Return numbers with the variance 1, and the mean 0 unless `shift` is false."""
    mean = values.mean()
    white = (values - mean) / np.sqrt(values.var() + 1e-8)
    return white if shift else white + mean


# ---------------------------------------------------------------------- KL


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """Return log π − log π₀: unbiased for KL(π ‖ π₀) where π drew the tokens, and often negative."""
    return logps - reference


def k2(logps: Tensor, reference: Tensor) -> Tensor:
    """Return (log π − log π₀)²/2: small spread, biased; its gradient is that of the KL (Schulman 2020)."""
    return (logps - reference) ** 2 / 2


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Return π₀/π − 1 − log(π₀/π): unbiased where π drew the tokens, and never negative (Schulman 2020)."""
    ratio = reference - logps
    return ratio.exp() - ratio - 1.0


# ---------------------------------------------------------------------- examples and batches


def kept_answers(example: Example, keeps: Sequence[bool] | np.ndarray) -> Example:
    """Return the example with weight only on the answers to be kept, and numbers only for what has weight."""
    if all(keeps):
        return example
    lengths = example.branches or (example.trained_tokens,)
    kept = np.repeat(np.asarray(keeps, dtype=bool), lengths)
    weights = example.weights.copy()
    weights[len(weights) - len(kept) :] *= kept
    return replace(example, weights=weights, token_extras={n: v[kept] for n, v in example.token_extras.items()})


def without(example: Example, *names: str) -> Example:
    """Return the example without some of its tokens' numbers."""
    return replace(example, token_extras={n: v for n, v in example.token_extras.items() if n not in names})


def sums(values_M: Tensor, batch: Batch) -> Tensor:
    """Return the weighted sums over each sequence's tokens, (S,)."""
    zeros_S = batch.weights_M.new_zeros(len(batch.lengths))
    return zeros_S.index_add(0, batch.sequence_M, values_M * batch.weights_M)


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return −min(ρ·A, clip(ρ, 1 − low, 1 + high)·A), and 1 where the clip is what counts."""
    import torch

    bounded = torch.clamp(ratio, 1.0 - low, 1.0 + high)
    too_low = (ratio < 1.0 - low) & (advantage < 0)
    too_high = (ratio > 1.0 + high) & (advantage > 0)
    return -torch.min(ratio * advantage, bounded * advantage), (too_low | too_high).float()


def in_equal_parts(examples: Sequence[Example], parts: int, order: np.ndarray) -> list[list[Example]]:
    """Return the examples in `parts` parts, none empty: with fewer examples than parts some come twice."""
    return [[examples[order[i]] for i in (range(k, len(order), parts) or [k % len(order)])] for k in range(parts)]


def rewards_of(groups: Sequence[Group]) -> np.ndarray:
    """Return all rewards, (P, G)."""
    return np.stack([group.rewards for group in groups])


def with_numbers(example: Example, extras: Mapping[str, np.ndarray]) -> Example:
    """Return the example with more numbers for its sequences."""
    return replace(example, extras={**example.extras, **extras})
