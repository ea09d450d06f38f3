"""The blocks below everything that is trained, run once for each sequence.

Where nothing trained stands below block k, the states that enter it are the same in every epoch. They are computed and
kept in one pass, and from then on the blocks below hand on what they are given, the last of them what was kept. How
many blocks that is, is not read off names: a forward pass says which states no trained tensor has touched.

Shape legend: B rows, T positions, L length of a sequence, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from luthier.models.layers import block_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.core.batch import Batch
    from luthier.models.hidden_store import HiddenStore


@dataclass
class FrozenPrefix:
    """The frozen blocks of a model and the states that leave them.

    Attributes:
        blocks: the leading blocks that no trained tensor influences.
        in_tuple: how many items the blocks return, 0 for the states alone. The others (attention weights) become None.
        store: what is known already.
    """

    blocks: list[nn.Module]
    in_tuple: int
    store: HiddenStore

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[None]:
        """Run the body, the model's forward pass over the batch, with the frozen blocks answered from the store."""
        keys = digests(batch)
        states_BTH = self._kept(batch, keys)
        if states_BTH is not None:
            with answering(self.blocks, states_BTH.to(batch.tokens.device), self.in_tuple):
                yield
            return
        last = self.blocks[-1]
        own = last.forward

        def computed(*args: object, **kwargs: object) -> object:
            out = own(*args, **kwargs)
            states = self._keep(batch, keys, _states(out))
            return _wrapped(states, self.in_tuple)

        with _forward(last, computed):
            yield

    def _kept(self, batch: Batch, keys: list[str]) -> Tensor | None:
        """Return the states (B, T, H) of a batch, zeros at padding; None unless every sequence is known."""
        if not all(key in self.store for key in keys):
            return None
        width = self.store.width
        # Zeros only where a padded batch is not filled: what is read over need not be cleared first.
        new = torch.empty if batch.is_packed else torch.zeros
        states_BTH = new(*batch.tokens.shape, width, dtype=self.store.dtype)
        places = [states_BTH[row, start : start + length] for row, start, length in sequences(batch)]
        return states_BTH if all(self.store.read(key, place) for key, place in zip(keys, places)) else None

    def _keep(self, batch: Batch, keys: list[str], states_BTH: Tensor) -> Tensor:
        """Keep what is new; return the states with what was known already in its place."""
        result_BTH = states_BTH
        for key, (row, start, length) in zip(keys, sequences(batch)):
            here = slice(start, start + length)
            known_LH = torch.empty(length, self.store.width, dtype=self.store.dtype)
            if self.store.read(key, known_LH):
                if result_BTH is states_BTH:
                    result_BTH = states_BTH.clone()
                result_BTH[row, here] = known_LH.to(states_BTH)
            else:
                self.store.write(key, states_BTH[row, here])
        return result_BTH


def frozen_depth(model: PreTrainedModel, forward: Callable[[], object]) -> tuple[list[nn.Module], Tensor | None, int]:
    """Return the leading blocks that no trained tensor influences, the states after them, and items in their tuple.

    Args:
        forward: runs the model over a batch once, with gradients.
    """
    found: list[tuple[Tensor, int] | None] = []

    def note(module: nn.Module, args: object, out: object) -> None:
        items = out if isinstance(out, tuple) else (out,)
        states = items[0]
        found.append((states, len(items) if isinstance(out, tuple) else 0) if isinstance(states, Tensor) else None)

    blocks = block_modules(model)
    # A hook may read states on their way (a side network): such a block has to run.
    hooked = [any(m._forward_hooks or m._forward_pre_hooks for m in block.modules()) for block in blocks]
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        with torch.enable_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    depth = 0
    if len(found) == len(blocks):
        for entry, has_hook in zip(found, hooked):
            if entry is None or has_hook or entry[0].requires_grad or entry[0].dim() != 3:
                break
            depth += 1
    last = found[depth - 1] if depth else None
    return (blocks[:depth], last[0].detach(), last[1]) if last is not None else ([], None, 0)


@contextmanager
def answering(blocks: list[nn.Module], states_BTH: Tensor, in_tuple: int) -> Iterator[None]:
    """Run the body with `blocks` doing nothing, but the last of them giving `states_BTH`."""

    def hand_on(*args: object, **kwargs: object) -> object:
        return _wrapped(args[0] if args else kwargs["hidden_states"], in_tuple)

    def give(*args: object, **kwargs: object) -> object:
        return _wrapped(states_BTH, in_tuple)

    if len(blocks) == 1:
        with _forward(blocks[0], give):
            yield
        return
    with _forward(blocks[0], hand_on), answering(blocks[1:], states_BTH, in_tuple):
        yield


@contextmanager
def _forward(module: nn.Module, function: Callable[..., object]) -> Iterator[None]:
    """Give a module another forward for the body; one that it had been given before comes back."""
    before = vars(module).get("forward")
    module.forward = function  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before  # type: ignore[method-assign]


def sequences(batch: Batch) -> list[tuple[int, int, int]]:
    """Return (row, first position, length) of each sequence of a batch, or beginning with all its endings."""
    if not batch.is_packed:
        return [(row, 0, length) for row, length in enumerate(batch.pieces)]
    starts = np.concatenate([[0], np.cumsum(batch.pieces)])[:-1]
    return [(0, int(start), length) for start, length in zip(starts, batch.pieces)]


def digests(batch: Batch) -> list[str]:
    """Return what identifies each sequence of a batch: its tokens, where its second text begins, how it branches."""
    tokens = batch.tokens.cpu().numpy().astype(np.int32)
    second = batch.extras["second"].tolist() if "second" in batch.extras else [None] * len(batch.pieces)
    marks = [f"{mark}{endings}" for mark, endings in zip(second, batch.branches)] if batch.branches else second
    return [
        hashlib.blake2b(tokens[row, start : start + length].tobytes() + str(mark).encode(), digest_size=16).hexdigest()
        for (row, start, length), mark in zip(sequences(batch), marks)
    ]


def _wrapped(states: object, in_tuple: int) -> object:
    return (states, *[None] * (in_tuple - 1)) if in_tuple else states


def _states(out: object) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[return-value]
