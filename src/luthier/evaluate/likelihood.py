"""How likely a model finds endings of a context: the score behind multiple choice, minimal pairs and lm-eval's tasks.

The tokens of a context with its ending are split as lm-evaluation-harness splits them: white space at the end of the
context belongs to the ending, both are tokenised together, and the context takes as many tokens as it has alone. What
the endings of one context begin with is read once for all of them (`Example.branches`).

Shape legend: M supervised positions, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import Example
from luthier.core.logps import is_likeliest
from luthier.data.prompts import chat_for
from luthier.data.records import PromptAnswer
from luthier.data.vocabulary import special_prefix
from luthier.evaluate.texts import spaced
from luthier.models.causal import CausalModel
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.models.loaded import LoadedModel

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Query:
    """A context, at least one token, and the endings whose likelihood is asked, (L,) int32 each.

    `contexts` holds one context for each ending where a tokenizer writes it otherwise before some of them.
    """

    context: np.ndarray
    endings: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Likelihood:
    """Of one ending: Σ log p in nats, its tokens, and whether it is what the model would have written."""

    logp: float
    tokens: int
    is_likeliest: bool
    is_cut: bool = False


class Splitter:
    """Turns contexts and endings into tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.prefix = special_prefix(tokenizer)
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.beginning = next((t for t in known if isinstance(t, int)), 0)
        self.bos = str(tokenizer.decode([self.beginning]))

    def queries(
        self, contexts: Sequence[str], endings: Sequence[Sequence[str]], is_written: bool = False
    ) -> list[Query]:
        """Return one query for each context.

        Args:
            is_written: the contexts are whole as they are (by a chat template), and get no token before them.
        """
        pairs = [_moved(c, e) for c, row in zip(contexts, endings) for e in row]
        joined = self._ids([c + e for c, e in pairs])
        alone = self._ids([c for c, _ in pairs])
        found, at = [], 0
        for row in endings:
            parts = []
            for (begin, _), whole, left in zip(
                pairs[at : at + len(row)], joined[at : at + len(row)], alone[at : at + len(row)]
            ):
                prefix = [] if is_written or begin.startswith(self.bos) else self.prefix
                head, tail = [*prefix, *whole[: len(left)]], whole[len(left) :]
                if not begin:  # what opens a text is asked behind the token that begins one
                    head = [self.beginning]
                    head, tail = (head, tail) if tail[:1] != head else (tail[:1], tail[1:])
                parts.append((np.array(head, np.int32), np.array(tail, np.int32)))
            at += len(row)
            heads = tuple(head for head, _ in parts)
            same = all(np.array_equal(head, heads[0]) for head in heads)
            found.append(Query(heads[0], tuple(tail for _, tail in parts), () if same else heads))
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def chat_queries(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    endings: Sequence[Sequence[str]],
    instructions: bool = False,
) -> list[Query]:
    """Return queries whose endings are answers to questions, written by the model's chat template where it has one.

    Args:
        instructions: the questions are instructions, which have a plain form where there is no template.
    """
    splitter = Splitter(tokenizer)
    found: list[Query] = []
    for question, row in zip(questions, endings):
        record = PromptAnswer(question, "", "", "", (), instructions, "")
        chat = chat_for(tokenizer, record)
        if chat is None:
            found += splitter.queries([question], [[spaced(ending) for ending in row]])
            continue
        text = chat.text(chat.turns(record)[:-1], add_generation_prompt=True)
        found += splitter.queries([text], [row], is_written=True)
    return found


def _moved(context: str, ending: str) -> tuple[str, str]:
    """Return both with the white space at the end of the context moved over: words begin with their blank."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + ending


def shared_beginnings(queries: Sequence[Query]) -> list[Query]:
    """Return queries whose contexts hold all that their endings begin with, for comparisons between the endings.

    What all endings share adds the same to each likelihood, so it cancels; at least one token stays in each ending.
    """
    found = []
    for query in queries:
        if query.contexts:
            found.append(query)
            continue
        shortest = min(map(len, query.endings)) - 1
        first = query.endings[0][: max(shortest, 0)]
        differs = [np.flatnonzero(e[: len(first)] != first) for e in query.endings]
        size = min([len(first), *(int(d[0]) for d in differs if len(d))])
        head = np.concatenate([query.context, query.endings[0][:size]])
        found.append(Query(head, tuple(e[size:] for e in query.endings), source=query.source))
    return found


def likelihoods(
    model: LoadedModel,
    queries: Sequence[Query],
    cut: Cut | None = None,
    max_length: int | None = None,
    greedy: bool = False,
) -> list[list[Likelihood]]:
    """Return the likelihood of every ending.

    Args:
        cut: limits of one forward pass.
        max_length: longest sequence; what is longer loses tokens at its beginning.
        greedy: also find out what the model would have written; otherwise `is_likeliest` is False.
    """
    longest = max_length or min(model.context_length or DEFAULT_LENGTH, DEFAULT_LENGTH)
    examples: list[Example] = []
    places: list[list[tuple[int, int]]] = []
    for number, query in enumerate(queries):
        for example, endings in _examples(query, longest):
            examples.append(example)
            places.append([(number, ending) for ending in endings])
    found: list[list[Likelihood]] = [[Likelihood(0.0, 0, False)] * len(q.endings) for q in queries]
    order = sorted(range(len(examples)), key=lambda i: examples[i].longest)  # batches of one length hold no padding
    used = cut or Cut()
    at = 0
    with model.evaluating():
        for group in used.apply([examples[i] for i in order], padded=not model.packs):
            answers = iter(_measured(model, group, greedy))
            for index in order[at : at + len(group)]:
                for number, ending in places[index]:
                    found[number][ending] = next(answers)
            at += len(group)
    return found


def _examples(query: Query, longest: int) -> list[tuple[Example, list[int]]]:
    """Return the sequences of a query, with the numbers of their endings; one that branches where it can."""
    asked = [i for i, ending in enumerate(query.endings) if len(ending)]
    fits = len(query.context) + max((len(query.endings[i]) for i in asked), default=0) <= longest
    if not query.contexts and fits and len(asked) > 1:
        tokens = np.concatenate([query.context, *(query.endings[i] for i in asked)])
        weights = np.ones(len(tokens), np.float32)
        weights[: len(query.context)] = 0
        branches = tuple(len(query.endings[i]) for i in asked)
        return [(Example(tokens, weights, query.source, branches=branches), asked)]
    single = []
    for i in asked:
        head = query.contexts[i] if query.contexts else query.context
        tokens = np.concatenate([head, query.endings[i]])
        weights = np.ones(len(tokens), np.float32)
        weights[: len(head)] = 0
        if len(tokens) > longest:
            tokens, weights = tokens[-longest:], weights[-longest:]
        extras = {"is_cut": float(len(head) + len(query.endings[i]) > longest)}
        single.append((Example(tokens, weights, query.source, extras), [i]))
    return single


def _measured(model: LoadedModel, group: list[Example], greedy: bool) -> list[Likelihood]:
    """Return the likelihood of every sequence of a batch, in its order."""
    cuts = [bool(e.extras.get("is_cut", 0)) for e in group for _ in range(e.sequences)]
    batch = model.collate([Example(e.tokens, e.weights, e.source, branches=e.branches) for e in group])
    size = len(batch.lengths)
    likeliest = torch.zeros(size, dtype=torch.bool)
    if greedy and isinstance(model, CausalModel):
        with model.sharing(batch):
            logps_M = model.logps(batch)
            with model.computing():
                right_M = is_likeliest(model.supervised(batch), model.head, batch.targets_M)
        wrong_S = torch.zeros(size, device=logps_M.device).index_add(0, batch.sequence_M, (~right_M).float())
        likeliest = wrong_S.cpu() == 0
    else:
        logps_M = model.logps(batch)
    sums_S = torch.zeros(size, dtype=torch.float64, device=logps_M.device)
    sums_S = sums_S.index_add(0, batch.sequence_M, logps_M.double()).cpu()
    tokens_S = torch.bincount(batch.sequence_M.cpu(), minlength=size)
    return [
        Likelihood(s, t, right, cut)
        for s, t, right, cut in zip(sums_S.tolist(), tokens_S.tolist(), likeliest.tolist(), cuts)
    ]
