"""A share of a step's rows with the model's own answers in place of the data's: on-policy distillation.

Agarwal et al. 2024, arXiv:2306.13649. Which rows, and what is drawn, is a function of (seed, step), so that a resumed
run goes on with the same answers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.objectives.distill import OWN
from luthier.train.generate import Sampling, sample

if TYPE_CHECKING:
    from luthier.train.engine import Engine


def with_own_answers(engine: Engine, examples: Sequence[Example], others: Sequence[Example] = ()) -> list[Example]:
    """Return the rows, some of them with an answer that the model has just written to their last question.

    Args:
        others: rows of other data, which stay as they are.
    """
    share, longest = engine.objective.own_answers
    if not share:
        return [*examples, *others]
    seed = zlib.crc32(f"{engine.settings.seed}/own/{engine.step}".encode())
    draws = np.random.default_rng(seed).random(len(examples))
    chosen = [index for index, number in enumerate(draws) if number < share]
    prompts = [examples[i].tokens[: answer_start(examples[i])].tolist() for i in chosen]
    sampling = Sampling(max_new_tokens=longest, temperature=1.0, seed=seed)
    answers = sample(engine.model, prompts, 1, sampling, counts=False) if len(chosen) else []
    found = [_marked(example, 0.0) for example in examples]
    for index, prompt, [answer] in zip(chosen, prompts, answers):
        if len(answer.tokens):  # a prompt that fills the context has no room for one
            found[index] = _answered(examples[index], prompt, answer.tokens)
    return [*found, *(_marked(example, 0.0) for example in others)]


def answer_start(example: Example) -> int:
    """Return where the last stretch of trained tokens begins: what stands before it is the question."""
    trained = np.flatnonzero(example.weights[1:]) + 1
    gaps = np.flatnonzero(np.diff(trained) > 1)
    return int(trained[gaps[-1] + 1] if len(gaps) else trained[0])


def _answered(example: Example, prompt: list[int], answer: np.ndarray) -> Example:
    tokens = np.concatenate([np.array(prompt, dtype=np.int32), answer.astype(np.int32)])
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[len(prompt) :] = 1.0
    return _marked(replace(example, tokens=tokens, weights=weights), 1.0)


def _marked(example: Example, own: float) -> Example:
    return replace(example, extras={**example.extras, OWN: own})
