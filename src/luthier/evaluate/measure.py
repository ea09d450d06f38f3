"""Numbers for the table before and after: held-out loss, task accuracy, sample answers, on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from luthier.data.records import Record, Text, answer_of, prompt_of
from luthier.data.render import render_prompt
from luthier.train.generate import Sampling, generate
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.models.loaded import LoadedModel

Metric = Literal[
    "loss",
    "exact_match",
    "accuracy",
    "macro_f1",
    "margin",
    "calibration_error",
    "micro_f1",
    "mse",
    "mae",
    "r2",
    "pearson",
    "spearman",
]
LOWER_IS_BETTER = {"loss", "mse", "mae", "calibration_error"}


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        metric: what it is; `loss` is nats per supervised token, or per row of a classifier or a preference; `margin` is
            a difference of rewards; the others are shares of 1.
        value: the number.
        n: cases it was measured on.
        tokens: supervised tokens, for a loss.
    """

    metric: Metric
    value: float
    n: int
    tokens: int | None = None

    def as_dict(self) -> dict[str, object]:
        rest = {} if self.tokens is None else {"tokens": self.tokens}
        return {"metric": self.metric, "value": self.value, "n": self.n, **rest}


def held_out_loss(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> Score:
    """Return the mean negative log-likelihood per supervised token."""
    total, count, tokens = torch.zeros((), dtype=torch.float64), 0.0, 0
    with model.evaluating():
        for group in (cut or Cut()).apply(examples, padded=not model.packs):
            batch = model.collate(group)
            total += model.nll_sum(batch).double().cpu()
            count += batch.count
            tokens += len(batch.targets_M)
    return Score("loss", float(total) / max(count, 1e-12), len(examples), tokens)


def loss_sums(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> np.ndarray:
    """Return of each example its negative log-likelihood and its weight, (N, 2): what a loss is the quotient of."""
    sums_N2 = np.zeros((len(examples), 2))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # batches of one length hold no padding
    at = 0
    with model.evaluating():
        for group in (cut or Cut()).apply([examples[i] for i in order], padded=not model.packs):
            batch = model.collate(group)
            terms_M = torch.stack([-model.logps(batch) * batch.weights_M, batch.weights_M], 1).double()
            sums_S2 = torch.zeros((len(group), 2), dtype=torch.float64, device=terms_M.device)
            sums_N2[order[at : at + len(group)]] = sums_S2.index_add(0, batch.sequence_M, terms_M).cpu().numpy()
            at += len(group)
    return sums_N2


def exact_match(model: LoadedModel, records: Sequence[Record]) -> tuple[Score, list[str]]:
    """Return the share of answers equal to the reference (surrounding white space aside), and the answers."""
    hits_N, answers = matches(model, records)
    return Score("exact_match", float(hits_N.sum()) / max(len(records), 1), len(records)), answers


def matches(model: LoadedModel, records: Sequence[Record]) -> tuple[np.ndarray, list[str]]:
    """Return for each record 1 where the answer equals the reference, else 0, and the answers."""
    answers = answer(model, records, longest_answer(model, records))
    hits = [given.strip() == answer_of(record).strip() for given, record in zip(answers, records)]
    return np.array(hits, dtype=np.float64), answers


def longest_answer(model: LoadedModel, records: Sequence[Record]) -> int:
    """Return the tokens within which a generated answer can still equal its reference.

    One that goes on beyond is another text. The factor leaves room for words that a model spells in smaller pieces.
    """
    texts = [answer_of(record) or " " for record in records]
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [[]]
    return 2 * max(map(len, ids)) + 8


def answer(model: LoadedModel, records: Sequence[Record], max_new_tokens: int = 64) -> list[str]:
    """Return the model's likeliest answer to each record's prompt; a document is continued from its beginning."""
    prompts = [prompt_tokens(model, record) for record in records]
    new = generate(model, prompts, Sampling(max_new_tokens=max_new_tokens))
    return [str(model.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in new]


def complete(model: LoadedModel, records: Sequence[Record], max_new_tokens: int) -> list[str]:
    """Return how the model goes on from each prompt, or from the end of each document."""
    prompts = [list(render_prompt(model.tokenizer, record)) for record in records]
    new = generate(model, prompts, Sampling(max_new_tokens=max_new_tokens))
    return [str(model.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in new]


def prompt_tokens(model: LoadedModel, record: Record) -> list[int]:
    """Return what the model is given: the rendered prompt, or the first words of a document."""
    if isinstance(record, Text):
        record = Text(opening(record), record.source)
    return list(render_prompt(model.tokenizer, prompt_of(record)))


def opening(record: Text, characters: int = 60) -> str:
    """Return the first words of a document, up to about `characters`, cut at white space where there is some."""
    if len(record.text) <= characters:
        return record.text[: max(1, len(record.text) // 2)]
    head = record.text[:characters]
    return head.rsplit(" ", 1)[0] if " " in head else head[: characters // 4]
