"""Generation with a key/value cache: prompts in, new tokens out. Used for evaluation, chat and rollouts alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.data.render import stop_token_ids
from luthier.models.causal import CausalModel
from luthier.models.folding import folded

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.train.decoding import Answer

BATCH_TOKENS = 16384
"""Prompt and answer tokens generated together; bounds the cache."""


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token. Temperature 0 takes the likeliest one.

    Attributes:
        top_p: draw from the likeliest tokens that together have this probability.
        top_k: draw from so many of the likeliest tokens; 0 from all.
        seed: with the number of an answer it decides all of its draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0


def stop_tokens(model: LoadedModel) -> list[int]:
    """Return every token that ends an answer: the tokenizer's end token and those of the generation config."""
    config = model.module.generation_config
    ends = config.eos_token_id if config is not None and config.eos_token_id is not None else []
    ends = [ends] if isinstance(ends, int) else list(ends)
    own = model.tokenizer.eos_token_id
    closing = stop_token_ids(model.tokenizer)  # the end of a turn is not always the end token
    return sorted({e for e in [*ends, own, *closing] if isinstance(e, int) and e < model.vocabulary_rows})


def generate(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """Return the new tokens for each prompt, without the end token.

    Prompts are generated in batches of similar length; the result does not depend on how they are batched when the
    temperature is 0. An answer ends with the model's context; a prompt that fills it has an empty answer.
    What follows an empty prompt is what follows the token that begins a text (or ends one, where none begins it).
    """
    stops = set(stop_tokens(model))
    found = sample(model, prompts, 1, sampling, counts=False)
    return [[t for t in answer.tokens.tolist() if t not in stops] for [answer] in found]


def sample(
    model: LoadedModel, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, counts: bool = True
) -> list[list[Answer]]:
    """Return `count` answers to each prompt, with the tokens that end them.

    A prompt is read once, however many answers it gets. Answer g of prompt i draws the numbers of (seed, i·count + g),
    in whatever batch it is made.

    Args:
        counts: also return log-probabilities and entropies, where the model is one that our loop fits.
    """
    from luthier.train.decoding import Answer, Order, decode, decodes

    nothing = np.zeros(0, dtype=np.float32)
    answers = [[Answer(nothing.astype(np.int32), nothing, nothing, True)] * count for _ in prompts]
    stops = stop_tokens(model)
    prompts = askable(model, prompts)
    with model.evaluating(), model.computing():
        for rows, room in _batches([len(p) for p in prompts], sampling.max_new_tokens, model.context_length, count):
            asked = [prompts[r] for r in rows]
            if isinstance(model, CausalModel) and decodes(model):
                numbers = [range(r * count, (r + 1) * count) for r in rows]
                with folded(model.module):
                    new = decode(model, Order(asked, numbers, room, stops, counts), sampling)
            else:
                new = _generate_batch(model, asked, count, room, replace(sampling, seed=sampling.seed + rows[0]), stops)
            for row, found in zip(rows, new):
                answers[row] = found
    return answers


def askable(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the prompts with something to go on from in each."""
    return [prompt if len(prompt) else _beginning(model) for prompt in prompts]


def _beginning(model: LoadedModel) -> list[int]:
    """Return what stands for an empty prompt: a model can only go on from a token."""
    known = (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.pad_id)
    return next([token] for token in known if isinstance(token, int))


def _batches(
    lengths: list[int], new_tokens: int, context: int | None, count: int = 1
) -> Iterator[tuple[list[int], int]]:
    """Yield rows and the tokens they have room for; only rows with the same room share a batch."""
    rooms = [new_tokens if context is None else min(new_tokens, context - n) for n in lengths]
    order = sorted((i for i in range(len(lengths)) if rooms[i] > 0), key=lambda i: lengths[i], reverse=True)
    while order:
        room = rooms[order[0]]
        size = max(1, BATCH_TOKENS // ((lengths[order[0]] + room) * count))
        rows = [i for i in order[:size] if rooms[i] == room]
        yield rows, room
        order = order[len(rows) :]


def _generate_batch(
    model: LoadedModel, prompts: list[Sequence[int]], count: int, room: int, sampling: Sampling, stops: list[int]
) -> list[list[Answer]]:
    """Let transformers generate, for models that keep something else than keys and values."""
    from luthier.train.decoding import Answer

    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):  # left-padded, so that every prompt ends where generation begins
        tokens[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    draws = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        torch.manual_seed(sampling.seed)
        draws = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    out = model.module.generate(  # type: ignore[operator]
        input_ids=tokens.repeat_interleave(count, 0).to(model.device),
        attention_mask=mask.repeat_interleave(count, 0).to(model.device),
        max_new_tokens=room,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=model.pad_id,
        repetition_penalty=1.0,  # some models bring a penalty along, and temperature 0 means the likeliest token
        **draws,
    )
    made = [_with_end(row, stops) for row in out[:, width:].tolist()]
    answers = [Answer(np.array(t, dtype=np.int32), None, None, not t or t[-1] not in stops) for t in made]
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def _with_end(tokens: list[int], stops: list[int]) -> list[int]:
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in stops), tokens)
