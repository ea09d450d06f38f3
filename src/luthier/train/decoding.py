"""The decode loop: prompts are read once, their keys and values stand in tables with room for the answers, and rows
that have ended are taken out.

Every row draws from numbers of its own, made from (seed, row), so that an answer depends on what else is in its batch
only by the rounding of matrix products.

Shape legend: P prompts, B rows at work, R rows asked for, T prompt positions, V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from luthier.models import attention
from luthier.models.loaded import PACKABLE_LAYERS
from luthier.models.virtual_tokens import virtual_tokens

if TYPE_CHECKING:
    from luthier.models.causal import CausalModel
    from luthier.models.loaded import LoadedModel
    from luthier.train.generate import Sampling

_UNKNOWN_WISHES = (
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "begin_suppress_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "watermarking_config",
)
COMPACT_BELOW = 0.8
"""Rows are taken out when no more than this share still writes: copying the tables costs about one step."""


class Table(CacheLayerMixin):
    """Keys and values of one layer, (B, K, room, D); new ones are written in place."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._made(key_states), self._made(value_states)
        self.is_initialized = True

    def _made(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:2], self.room, like.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write behind what there is, and return everything so far."""
        end = self.length + key_states.shape[2]
        if end > self.room:  # virtual tokens come first, and nobody counted them
            self.room = end
            if self.is_initialized:
                self.pick(torch.arange(key_states.shape[0], device=key_states.device), end)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def pick(self, rows: Tensor, room: int) -> None:
        """Keep these rows (one may come several times), with room for so many positions."""
        self.room = room
        assert self.keys is not None
        assert self.values is not None
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], room, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class Tables(Cache):
    """The tables of all layers."""

    def __init__(self, layers: int, room: int) -> None:
        super().__init__(layers=[Table(room) for _ in range(layers)])

    def pick(self, rows: Tensor, new_tokens: int) -> None:
        """Keep these rows in every layer, with room for so many more tokens."""
        for layer in self.layers:
            assert isinstance(layer, Table)
            if layer.is_initialized:
                layer.pick(rows, layer.length + new_tokens)


@dataclass
class Answer:
    """What a model wrote.

    Attributes:
        tokens: (N,) int32, with the token that ends it if it ended.
        logps: (N,) float32 log-probabilities under the model at the temperature that was drawn at (0: as it is); what
            top_p, top_k and suppressed tokens left out is not redistributed. None where nobody counted.
        entropies: (N,) float32, of the distributions that were drawn from, before top_p and top_k.
        is_truncated: it had to stop before it ended.
        claimed: (N,) float32 log-probabilities that another engine gave, which wrote the answer; NaN where it gave
            none. They are compared with ours, and never learnt from.
    """

    tokens: np.ndarray
    logps: np.ndarray | None
    entropies: np.ndarray | None
    is_truncated: bool
    claimed: np.ndarray | None = None


def decodes(model: LoadedModel) -> bool:
    """Return whether the loop fits a model: a decoder whose layers all attend, with keys and values to keep.

    A generation config that asks for more than what we draw by (forced tokens, forbidden n-grams) is not for the loop.
    """
    config = model.module.config.get_text_config()
    wishes = model.module.generation_config
    if wishes is not None and any(getattr(wishes, name, None) for name in _UNKNOWN_WISHES):
        return False
    kinds = set(getattr(config, "layer_types", None) or PACKABLE_LAYERS)
    is_stateful = bool(getattr(model.module, "_is_stateful", False))
    has_layers = isinstance(getattr(config, "num_hidden_layers", None), int)
    return kinds <= PACKABLE_LAYERS and not is_stateful and has_layers and not getattr(config, "is_encoder_decoder", 0)


def uniform(seed: int, row: int, count: int) -> np.ndarray:
    """Return (count,) numbers in [0, 1) that belong to a row."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, row])).random(count, dtype=np.float32)


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        prompts: none is empty.
        rows: of each prompt the numbers of the answers wanted; they decide what is drawn.
        room: new tokens at most.
        stops: tokens that end an answer.
        counts: also return log-probabilities and entropies.
    """

    prompts: Sequence[Sequence[int]]
    rows: Sequence[Sequence[int]]
    room: int
    stops: Sequence[int]
    counts: bool


def decode(model: CausalModel, order: Order, sampling: Sampling) -> list[list[Answer]]:
    """Return for each prompt its answers."""
    rows, room = order.rows, order.room
    prompt_of = [index for index, wanted in enumerate(rows) for _ in wanted]
    chance_RN = torch.from_numpy(
        np.stack([uniform(sampling.seed, row, room) for wanted in rows for row in wanted])
        if sampling.temperature > 0
        else np.zeros((len(prompt_of), room), dtype=np.float32)
    ).to(model.device)
    state = _read(model, order.prompts, torch.tensor(prompt_of, device=model.device), room)
    written = _Written(len(prompt_of), room, model.device, order.counts)
    is_stop_V = torch.zeros(model.head.weight_VH.shape[0], dtype=torch.bool, device=model.device)
    is_stop_V[[stop for stop in order.stops if stop < len(is_stop_V)]] = True
    wishes = getattr(model.module.generation_config, "suppress_tokens", None)
    suppressed = torch.tensor(list(wishes or ()), dtype=torch.long, device=model.device)
    at_work = torch.arange(len(prompt_of), device=model.device)
    writes_B = torch.ones(len(prompt_of), dtype=torch.bool, device=model.device)
    for step in range(room):
        logits_BV = state.logits_BV
        allowed_BV = logits_BV.index_fill(1, suppressed, -torch.inf) if len(suppressed) else logits_BV
        tokens_B = draw(allowed_BV, chance_RN[at_work, step], sampling)
        written.put(step, at_work, writes_B, tokens_B, logits_BV, sampling.temperature)
        writes_B = writes_B & ~is_stop_V[tokens_B]
        count = int(writes_B.sum())
        if count == 0 or step + 1 == room:
            break
        if count <= COMPACT_BELOW * len(writes_B):
            kept = writes_B.nonzero()[:, 0]
            state.keep(kept, room - step - 1)
            at_work, tokens_B, writes_B = at_work[kept], tokens_B[kept], writes_B[kept]
        state.go_on(model, tokens_B)
    answers = iter(written.answers(is_stop_V))
    return [[next(answers) for _ in wanted] for wanted in rows]


# ---------------------------------------------------------------------- the model


@dataclass
class _State:
    """Where the rows stand: what they have read, what they may see, and what may come next."""

    tables: Tables
    mask_BS: Tensor
    length: int
    positions_B1: Tensor
    logits_BV: Tensor
    is_plain: bool

    def keep(self, rows: Tensor, new_tokens: int) -> None:
        """Go on with these rows only."""
        self.tables.pick(rows, new_tokens)
        self.mask_BS, self.positions_B1 = self.mask_BS[rows], self.positions_B1[rows]

    def go_on(self, model: CausalModel, tokens_B: Tensor) -> None:
        """Read one more token in each row."""
        self.positions_B1 = self.positions_B1 + 1
        self.length += 1
        mask = self.mask_BS[:, : self.length]
        # A ready mask spares transformers the making of one for every token.
        mask = mask[:, None, None].bool() if self.is_plain else mask
        self.logits_BV = _logits(model, tokens_B[:, None], mask, self.positions_B1, self.tables)


def _read(model: CausalModel, prompts: Sequence[Sequence[int]], prompt_of: Tensor, room: int) -> _State:
    """Read every prompt once, and give each row a copy of what was read."""
    width = max(map(len, prompts))
    tokens = np.full((len(prompts), width), model.pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width + room), dtype=np.int64)
    for row, prompt in enumerate(prompts):  # padded on the left, so that every prompt ends where its answer begins
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    mask_PS = torch.from_numpy(mask).to(model.device)
    positions = (mask_PS[:, :width].cumsum(1) - 1).clamp(min=0)
    config = model.module.config.get_text_config()
    tables = Tables(int(config.num_hidden_layers), width)
    tokens_PT = torch.from_numpy(tokens).to(model.device)
    logits_PV = _logits(model, tokens_PT, mask_PS[:, :width], positions, tables)
    tables.pick(prompt_of, room)
    place = positions[prompt_of, -1:]
    return _State(tables, mask_PS[prompt_of], width, place, logits_PV[prompt_of], _is_plain(model))


def _is_plain(model: CausalModel) -> bool:
    """Return whether every layer sees all there is, through our attention and with nothing before the sequence."""
    config = model.module.config.get_text_config()
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    windows = windows or (bool(getattr(config, "sliding_window", None)) and not getattr(config, "layer_types", None))
    ours = config._attn_implementation in (attention.NAME, "sdpa")
    return model.packs and ours and not windows and virtual_tokens(model.module) is None


def _logits(model: CausalModel, tokens: Tensor, mask: Tensor, positions: Tensor, tables: Tables) -> Tensor:
    """Return float32 logits (B, V) of what follows the last token."""
    out = model.module.base_model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=tables, use_cache=True
    )
    return model.head.logits(out.last_hidden_state[:, -1])


# ---------------------------------------------------------------------- drawing


def draw(logits_BV: Tensor, chance_B: Tensor, sampling: Sampling) -> Tensor:
    """Return the next tokens (B,), each where its number falls in the cumulated probabilities."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_k and sampling.top_k < scaled_BV.shape[-1]:
        least_B1 = scaled_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
    probs_BV = scaled_BV.softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        outside_BV[:, 0] = False
        probs_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV.masked_fill(outside_BV, 0.0))
    summed_BV = probs_BV.cumsum(-1)
    total_B = summed_BV[:, -1]
    # Below the sum, whatever rounding says: the first place above the number is then a token that has a probability.
    wanted_B = torch.minimum(chance_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(summed_BV, wanted_B[:, None], right=True)[:, 0]


class _Written:
    """What the rows have written so far."""

    def __init__(self, rows: int, room: int, device: torch.device, counts: bool) -> None:
        self.tokens_RN = torch.zeros(rows, room, dtype=torch.long, device=device)
        self.lengths_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.counts = counts
        self.logps_RN = torch.zeros(rows, room if counts else 0, device=device)
        self.entropies_RN = torch.zeros(rows, room if counts else 0, device=device)

    def put(
        self, step: int, rows: Tensor, writes_B: Tensor, tokens_B: Tensor, logits_BV: Tensor, temperature: float
    ) -> None:
        """Write one token in each row that still writes."""
        self.tokens_RN[rows, step] = tokens_B
        self.lengths_R[rows] += writes_B
        if self.counts:
            scaled_BV = logits_BV / (temperature or 1.0)
            logps_BV = scaled_BV.log_softmax(-1)
            self.logps_RN[rows, step] = logps_BV.gather(1, tokens_B[:, None])[:, 0]
            self.entropies_RN[rows, step] = -(logps_BV.exp() * logps_BV).sum(-1)

    def answers(self, is_stop_V: Tensor) -> list[Answer]:
        """Return the rows, each up to its end."""
        last_R = self.tokens_RN.gather(1, (self.lengths_R - 1).clamp(min=0)[:, None])[:, 0]
        ended = (is_stop_V[last_R] & (self.lengths_R > 0)).tolist()
        lengths = self.lengths_R.tolist()
        tokens = self.tokens_RN.cpu().numpy().astype(np.int32)
        logps, entropies = self.logps_RN.cpu().numpy(), self.entropies_RN.cpu().numpy()
        return [
            Answer(
                tokens[row, :n],
                logps[row, :n] if self.counts else None,
                entropies[row, :n] if self.counts else None,
                not ended[row],
            )
            for row, n in enumerate(lengths)
        ]
