"""Answers to be judged, written by a local model: several to each prompt, the same ones in every run.

A prompt's answers are kept in the journal, so that judging goes on after a crash with the answers it began with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from luthier.data.prompts import render_prompt
from luthier.evaluate.judging.rows import Task
from luthier.evaluate.judging.verdicts import Progress
from luthier.rewards.judging.endpoint import Reply
from luthier.rewards.judging.journal import Journal, content_key
from luthier.train.generate import Sampling, sample, stop_tokens

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

CHUNK = 16
"""Prompts that are answered together. Their draws depend on it, so what is kept of a chunk is whole or is made anew."""


def with_samples(
    model: LoadedModel,
    identity: str,
    tasks: Sequence[Task],
    count: int,
    sampling: Sampling,
    journal: Journal,
    progress: Progress,
) -> list[Task]:
    """Return the tasks with `count` answers each of the model, equal and empty ones left out.

    Args:
        identity: what the answers depend on besides prompt and sampling: the model, to the state of its weights.
    """
    made: list[Task] = []
    name = json.dumps([identity, count, asdict(sampling)])
    for start in range(0, len(tasks), CHUNK):
        chunk = tasks[start : start + CHUNK]
        prompts = [render_prompt(model.tokenizer, task.asked) for task in chunk]
        # The neighbours are part of the key: the draws of a prompt follow from its place among them.
        keys = [content_key(f"{name} {i} {prompts}", sampling.temperature, ()) for i in range(len(chunk))]
        kept = [journal.get(key) for key in keys]
        if any(reply is None for reply in kept):
            drawn = _texts(model, prompts, count, replace(sampling, seed=sampling.seed + start))
            replies = [Reply(json.dumps(texts)) for texts in drawn]
            kept = [journal.once(key, lambda reply=reply: reply)[0] for key, reply in zip(keys, replies)]
        for task, reply in zip(chunk, kept):
            assert reply is not None, "every prompt has its answers now"
            answers = tuple(dict.fromkeys(text for text in json.loads(reply.text) if text.strip()))
            made.append(replace(task, answers=answers, written=answers))
        progress(len(made), len(tasks))
    return made


def _texts(model: LoadedModel, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling) -> list[list[str]]:
    stops = set(stop_tokens(model))
    found = sample(model, prompts, count, sampling, counts=False)
    return [
        [
            str(model.tokenizer.decode([t for t in a.tokens.tolist() if t not in stops], skip_special_tokens=True))
            for a in answers
        ]
        for answers in found
    ]
