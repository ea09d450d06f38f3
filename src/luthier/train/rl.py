"""An iteration of learning from a model's own answers: roll out, turn rewards into advantages, update.

Checkpoints are written between iterations only, so nothing of a set of answers has to be kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import Failure
from luthier.objectives.rollouts import Online
from luthier.train.rollout import Prompt, Writer, collect, written_here

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.rewards.base import Scorer
    from luthier.train.engine import Engine

_LAST = ("step", "learning_rate")
"""Numbers of which an iteration's row has the last and not the mean."""


class KLRunawayError(Failure):
    """The model has moved too far from its start for its answers to be trusted."""


def iterate(
    engine: Engine, scorer: Scorer, prompts: Sequence[Prompt], write: Writer = written_here
) -> dict[str, float]:
    """Run one iteration, which makes `objective.updates` optimizer steps, and return its metrics.

    Args:
        write: who writes the answers.

    Raises:
        KLRunawayError: the KL is beyond the objective's limit; the weights have not changed since it was measured.
        Failure: nothing of the answers can be learnt from.
        LuthierError: as the reward and the engine say.
    """
    objective = engine.objective
    assert isinstance(objective, Online)
    seed = rollout_seed(engine.settings.seed, engine.step)
    rollout = collect(engine, objective, scorer, prompts, seed, write)
    _require_bounded(objective, rollout.metrics, engine.step)
    examples, told = objective.learn(rollout.groups, engine.objective_state)
    limit = objective.drawing.max_new_tokens
    if not any(example.trained_tokens for example in examples):
        raise Failure(
            f"Step {engine.step + 1}: every answer was truncated at {limit} tokens and masked, so "
            "there is nothing to learn from. Raise objective.max_new_tokens, or set objective.mask_truncated: false."
        )
    parts = objective.parts(examples, np.random.default_rng(seed))
    rows = [engine.train_step(part) for part in parts if _teaches(part)]
    engine.step += len(parts) - len(rows)
    merged = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    merged |= {name: rows[-1][name] for name in _LAST} | {"step": engine.step}
    merged["tokens"] = sum(row["tokens"] for row in rows)
    return {**merged, **rollout.metrics, **told}


def measure_rollouts(
    engine: Engine, scorer: Scorer, prompts: Sequence[Prompt], write: Writer = written_here
) -> dict[str, float]:
    """Return the metrics of answers to prompts, the same draws each time; nothing is trained."""
    objective = engine.objective
    assert isinstance(objective, Online)
    return collect(engine, objective, scorer, prompts, rollout_seed(engine.settings.seed, -1), write).metrics


def rollout_seed(seed: int, step: int) -> int:
    """Return what decides the draws of the answers before optimizer step `step` (from 0)."""
    return zlib.crc32(f"{seed}/rollout/{step}".encode())


def _teaches(part: Sequence[Example]) -> bool:
    return any(example.trained_tokens for example in part)


def _require_bounded(objective: Online, metrics: dict[str, float], step: int) -> None:
    kl = metrics.get("kl", 0.0)
    if not objective.ran_away(kl):
        return
    raise KLRunawayError(
        f"Step {step + 1}: the model has moved {kl:.3g} nats of KL per token from its start, beyond "
        f"objective.max_kl. The last checkpoint is good. Lower learning_rate, raise objective.beta, or "
        "raise objective.max_kl if that is what you want."
    )
