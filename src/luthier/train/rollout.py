"""Rollouts: the model answers prompts, a reward scores the answers, and what learning needs to know of them is added.

A function of weights, prompts and seed alone, so that a resumed run makes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import Example
from luthier.core.errors import Failure
from luthier.data.records import Asked
from luthier.objectives.rollouts import Group, Online, k3
from luthier.rewards.base import Scorer, prompt_text
from luthier.train.generate import Sampling, sample, stop_tokens

if TYPE_CHECKING:
    from luthier.models.causal import CausalModel
    from luthier.train.decoding import Answer
    from luthier.train.engine import Engine


Writer = Callable[["Engine", Sequence[Sequence[int]], int, Sampling], list[list["Answer"]]]
"""Who writes the answers: of an engine, prompts, and how many answers to each, the answers."""

SPOT_CHECK = 4
"""Where the start is only looked at, one prompt in so many is: their order is random, so the estimate is unbiased."""
LARGEST_GAP = 0.3
"""Nats by which two engines may differ over a token on average: kernels and 16 bits make some hundredths of it, another
model or an adapter without effect far more."""


@dataclass(frozen=True)
class Prompt:
    """What is asked: as tokens, and as the row of the data that a reward may look at."""

    tokens: np.ndarray
    asked: Asked


@dataclass(frozen=True)
class Rollout:
    """A set of answers.

    Attributes:
        groups: the prompts with their answers.
        texts: of each prompt its answers, as the reward saw them.
        metrics: reward, reward_std, response_length, truncated, entropy, and kl where the start is looked at. kl is
            the mean of a token's k3, in nats. gap where another engine wrote: by how much its log-probability of a
            token differs from ours, in nats.
    """

    groups: list[Group]
    texts: list[list[str]]
    metrics: dict[str, float]


def written_here(
    engine: Engine, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling
) -> list[list[Answer]]:
    """Return answers that our own engine writes."""
    return sample(engine.model, prompts, count, sampling)


def collect(
    engine: Engine,
    objective: Online,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    seed: int,
    write: Writer = written_here,
) -> Rollout:
    """Let the model answer each prompt `objective.answers` times, and score the answers.

    Raises:
        Failure: a prompt leaves no room for a single token, or another engine writes as another model would.
        UserError: the reward cannot score an answer.
    """
    model: CausalModel = engine.model  # type: ignore[assignment]
    how = objective.drawing
    sampling = Sampling(how.max_new_tokens, how.temperature, how.top_p, seed)
    answers = write(engine, [prompt.tokens.tolist() for prompt in prompts], objective.answers, sampling)
    for prompt, found in zip(prompts, answers):
        if not all(len(answer.tokens) for answer in found):
            raise Failure(f"{prompt.asked.source}: the prompt fills the model's context, so it has no answer.")
    texts = _texts(model, answers)
    rewards_PG = _scored(scorer, prompts, texts)
    examples = [_example(prompt, found) for prompt, found in zip(prompts, answers)]
    entropies, examples = _looked_at(engine, objective, examples, answers)
    groups = [
        Group(example, rewards_G, np.array([answer.is_truncated for answer in found]))
        for example, rewards_G, found in zip(examples, rewards_PG, answers)
    ]
    flat = [answer for found in answers for answer in found]
    metrics = {
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std()),
        "response_length": float(np.mean([len(answer.tokens) for answer in flat])),
        "truncated": float(np.mean([answer.is_truncated for answer in flat])),
        "entropy": float(entropies.mean()),
    }
    if objective.compares_with_start:
        metrics["kl"] = _kl(examples)
    if any(answer.claimed is not None for answer in flat):
        metrics |= _gap(engine, objective, examples, answers)
    return Rollout(groups, texts, metrics)


def _texts(model: CausalModel, answers: Sequence[Sequence[Answer]]) -> list[list[str]]:
    stops = set(stop_tokens(model))
    decode = model.tokenizer.decode
    return [
        [str(decode([t for t in a.tokens.tolist() if t not in stops], skip_special_tokens=True)) for a in found]
        for found in answers
    ]


def _scored(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the rewards (P, G) float64; all answers are scored in one call."""
    repeated = [prompt.asked for prompt, found in zip(prompts, texts) for _ in found]
    asked = [prompt_text(one.prompt) for one in repeated]
    rows: list[Mapping[str, object]] = [one.row for one in repeated]
    numbers = scorer(asked, [text for found in texts for text in found], rows, [one.prompt for one in repeated])
    return np.array(numbers, dtype=np.float64).reshape(len(prompts), -1)


def _example(prompt: Prompt, answers: Sequence[Answer]) -> Example:
    """Return a prompt and its answers, computed once; every token of an answer has the weight 1."""
    lengths = tuple(len(answer.tokens) for answer in answers)
    tokens = np.concatenate([prompt.tokens, *(answer.tokens for answer in answers)]).astype(np.int32)
    weights = np.concatenate([np.zeros(len(prompt.tokens)), np.ones(sum(lengths))]).astype(np.float32)
    return Example(tokens, weights, prompt.asked.source, branches=lengths if len(lengths) > 1 else ())


def _looked_at(
    engine: Engine, objective: Online, examples: list[Example], answers: Sequence[Sequence[Answer]]
) -> tuple[np.ndarray, list[Example]]:
    """Return the entropies of all tokens, and the examples with their log-probabilities and values.

    What the decode loop has counted is what a pass would find, where both compute in 32 bits.
    """
    counted = all(a.logps is not None and a.entropies is not None for found in answers for a in found)
    if counted and engine.model.autocast is None and not objective.wants_values:
        numbers: list[dict[str, np.ndarray]] = [{"old": _joined([a.logps for a in found])} for found in answers]
        entropies = np.concatenate([_joined([a.entropies for a in found]) for found in answers])
    else:
        numbers = _predicted(engine, examples, objective.temperature, with_entropies=not counted)
        found = [n.pop("entropies") for n in numbers] if not counted else []
        entropies = np.concatenate(found or [_joined([a.entropies for a in found]) for found in answers])
    if objective.compares_with_start:
        looked_at = examples if objective.learns_from_start else examples[: -(-len(examples) // SPOT_CHECK)]
        with engine.reference():
            start = _predicted(engine, looked_at, objective.temperature)
        for mine, theirs in zip(numbers, start):
            mine["start"] = theirs["old"]
    return entropies, [replace(example, token_extras=own) for example, own in zip(examples, numbers)]


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    return np.concatenate([array for array in arrays if array is not None])


def _predicted(
    engine: Engine, examples: Sequence[Example], temperature: float, with_entropies: bool = False
) -> list[dict[str, np.ndarray]]:
    """Return of each example what the model says of its tokens, in passes without gradient."""
    model: CausalModel = engine.model  # type: ignore[assignment]
    told: list[dict[str, np.ndarray]] = []
    with model.evaluating():
        for group in engine.cut.apply(examples, padded=not model.packs):
            said = model.predictions(model.collate(group), temperature, with_entropies)
            columns = {"old": said.logps, "values": said.values, "entropies": said.entropies}
            borders = np.cumsum([example.trained_tokens for example in group])[:-1]
            parts = {n: np.split(v.float().cpu().numpy(), borders) for n, v in columns.items() if v is not None}
            told += [{name: values[index] for name, values in parts.items()} for index in range(len(group))]
    return told


def _gap(
    engine: Engine, objective: Online, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]
) -> dict[str, float]:
    """Return by how much another engine's log-probabilities differ from ours on some prompts, if it told any there.

    Servers tell them as the model has them, or at the temperature that was drawn at; which, they do not say.

    Raises:
        Failure: by more than one model's can.
    """
    some = slice(-(-len(examples) // SPOT_CHECK))
    claimed = np.concatenate([_joined([answer.claimed for answer in found]) for found in answers[some]])
    ours = [np.concatenate([example.token_extras["old"] for example in examples[some]])]
    if objective.temperature != 1.0:
        ours.append(np.concatenate([told["old"] for told in _predicted(engine, examples[some], 1.0)]))
    is_known = np.isfinite(claimed)
    if not is_known.any():
        return {}
    gap = min(float(np.abs(claimed - own)[is_known].mean()) for own in ours)
    if gap > LARGEST_GAP:
        raise Failure(
            "The answers were written by another model than the one in training: its log-probabilities are "
            f"{gap:.2g} nats per token away from ours (at most {LARGEST_GAP}). Serve the base that the recipe names, "
            "unquantised, by a vLLM that applies the adapter it is given (--enable-lora). The last checkpoint is good."
        )
    return {"gap": gap}


def _kl(examples: Sequence[Example]) -> float:
    seen = [example for example in examples if "start" in example.token_extras]
    old, start = (np.concatenate([e.token_extras[name] for e in seen]) for name in ("old", "start"))
    return float(k3(torch.from_numpy(old).double(), torch.from_numpy(start).double()).mean())
