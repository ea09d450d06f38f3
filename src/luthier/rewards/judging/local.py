"""What local models say of answers: a reward model's number, or how likely an answer is.

Shape legend: M supervised positions, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.data.records import Conversation, Message, PromptAnswer
from luthier.rewards.base import Turns

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.models.loaded import LoadedModel

BATCH_TOKENS = 8192


def answered(asked: Turns, answer: str) -> Turns:
    """Return a prompt with its answer."""
    if isinstance(asked, PromptAnswer):
        return replace(asked, answer=answer)
    return Conversation((*asked.messages, Message("assistant", answer)), asked.source)


def asked_of(prompts: Sequence[str], asked: Sequence[Turns] | None) -> Sequence[Turns]:
    """Return the prompts as records; where there are none, each prompt is one question."""
    if asked is not None:
        return asked
    return [PromptAnswer(prompt, "", "", "", (), False, f"prompt {i + 1}") for i, prompt in enumerate(prompts)]


def tokens_of(model: LoadedModel, records: Sequence[Turns]) -> list[Example]:
    """Return records as the model reads them, the last answer supervised.

    What is longer than the model's context loses its beginning: the answer is what is scored.

    Raises:
        DataError: the model's template cannot write a record.
    """
    import numpy as np

    from luthier.core.batch import Example
    from luthier.data.render import Renderer
    from luthier.data.tally import Tally

    tally, room = Tally(), model.context_length
    rows = list(Renderer(model.tokenizer, train_on="last").rows(records, tally))
    tally.log.raise_errors()
    made = []
    for row in rows:
        assert row is not None, "a row that cannot be written has raised"
        start = max(0, len(row.tokens) - room) if room is not None else 0
        tokens, weights = row.tokens[start:], row.weights[start:].copy()
        weights[0] = 0.0
        made.append(Example(tokens, np.minimum(weights, 1.0), row.source))
    return made


def reward_values(model: LoadedModel, records: Sequence[Turns]) -> list[float]:
    """Return a reward model's number for each answer."""
    values = [0.0] * len(records)
    examples = tokens_of(model, records)
    with model.evaluating():
        for rows in _batches(examples):
            given = model.class_logits(model.collate([examples[r] for r in rows]))[:, 0].double().tolist()
            for row, value in zip(rows, given):
                values[row] = value
    return values


def mean_logps(model: LoadedModel, records: Sequence[Turns]) -> list[float]:
    """Return the mean log-probability of each answer's tokens, its end included; 0 for an answer of none."""
    import torch

    values = [0.0] * len(records)
    examples = tokens_of(model, records)
    with model.evaluating():
        for rows in _batches(examples):
            batch = model.collate([examples[r] for r in rows])
            logps_M = model.logps(batch).double()
            sums_S = torch.zeros(len(rows), dtype=torch.float64, device=logps_M.device)
            counts_S = sums_S.index_add(0, batch.sequence_M, torch.ones_like(logps_M))
            sums_S = sums_S.index_add(0, batch.sequence_M, logps_M)
            for row, value in zip(rows, (sums_S / counts_S.clamp_min(1)).tolist()):
                values[row] = value
    return values


def _batches(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Yield groups of examples of similar length that fit into memory together."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]), reverse=True)
    while order:
        size = max(1, BATCH_TOKENS // max(1, len(examples[order[0]])))
        yield order[:size]
        order = order[size:]
