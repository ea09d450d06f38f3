"""Whether the frozen blocks below everything trained may be run once for each row: tried on a few rows, then kept.

In the first epoch the states are computed and kept in one pass; later epochs begin above them. Rows held out are kept
as well, because they are measured again and again.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.batch import Batch, Example
from luthier.models.frozen_prefix import FrozenPrefix, answering, frozen_depth
from luthier.models.hidden_store import HiddenStore
from luthier.models.layers import block_modules

if TYPE_CHECKING:
    from luthier.train.engine import Engine

SHARE_OF_DISK = 0.5
"""Of the free space; checkpoints need some too."""
_TRIED = 3


def keep_frozen_states(engine: Engine, folder: Path, parts: Sequence[Sequence[Example]]) -> str:
    """Let the engine's model keep the states below what is trained; return what to tell the user, if anything.

    Args:
        folder: where the states lie; what an interrupted run has left there is used.
        parts: all rows that will pass through the model, in any order.
    """
    model = engine.model
    rows = list(itertools.islice(itertools.chain.from_iterable(parts), _TRIED))
    if not rows:
        return ""
    batch = model.collate(list(engine.prepared(rows)))
    with torch.random.fork_rng(devices=[]), _all_trained(engine):
        blocks, states, in_tuple = frozen_depth(model.module, lambda: _loss(engine, batch))
        if model.trims and len(blocks) == len(block_modules(model.module)):
            model.trims = False  # the states are to be those of every token
            blocks, states, in_tuple = frozen_depth(model.module, lambda: _loss(engine, batch))
        if states is None:
            return ""
        depth = f"{len(blocks)} of {len(block_modules(model.module))} blocks"
        again = frozen_depth(model.module, lambda: _loss(engine, batch))
        reason = _try(engine, batch, blocks, (states, again[1]), in_tuple)
    if reason:
        return f"The frozen {depth} run in every epoch: {reason}."
    width, dtype = states.shape[-1], states.dtype
    lengths = {example.tokens.tobytes(): len(example) for part in parts for example in part}
    needed = sum(lengths.values()) * width * dtype.itemsize
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = sum(file.stat().st_size for file in folder.glob("*"))
    free = shutil.disk_usage(folder.parent).free + held
    if needed > SHARE_OF_DISK * free:
        room = f"keeping what they give takes {_size(needed)}, {_size(free)} are free"
        return f"The frozen {depth} run in every epoch: {room}."
    identity = f"{model.fingerprint}/{len(blocks)}/{'packed' if model.packs else 'padded'}"
    store = HiddenStore(folder, width, dtype, identity, limit_bytes=int(SHARE_OF_DISK * free))
    model.prefix = FrozenPrefix(blocks, in_tuple, store)
    return f"The frozen {depth} run once for each row; what they give is on disk until the run ends ({_size(needed)})."


def drop_frozen_states(engine: Engine) -> str:
    """Let the model compute everything again and delete what was kept; return what went wrong, if anything."""
    prefix = engine.model.prefix
    if prefix is None:
        return ""
    engine.model.prefix = None
    prefix.store.close()
    shutil.rmtree(prefix.store.folder, ignore_errors=True)
    if prefix.store.fault:
        return (
            f"Not all states of frozen blocks were kept ({prefix.store.fault}); the rest was computed in every epoch."
        )
    return ""


@contextmanager
def _all_trained(engine: Engine) -> Iterator[None]:
    """Run the body with everything marked that any step trains; some methods free other blocks in other steps."""
    parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
    wanted = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, wanted):
            parameter.requires_grad_(flag)


def _loss(engine: Engine, batch: Batch) -> Tensor:
    return engine.objective.loss_sum(engine.model, batch).total


def _try(
    engine: Engine, batch: Batch, blocks: list[torch.nn.Module], states: tuple[Tensor, Tensor | None], in_tuple: int
) -> str:
    """Return why the states cannot stand for the blocks; empty where they can."""
    first, second = states
    if second is None or second.shape != first.shape or not _alike(first, second):
        return "they draw random numbers (dropout)"
    if first.shape[:2] != batch.tokens.shape:
        return "their states are not one for each token"
    with engine.model.evaluating():
        plain = _loss(engine, batch)
        with answering(blocks, first, in_tuple):
            served = _loss(engine, batch)
    return "" if _alike(plain, served) else "the model computes something else without them"


def _alike(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-5 if one.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((one.float() - other.float()).abs().max() <= tolerance * one.float().abs().max().clamp_min(1e-6))


def _size(count: float) -> str:
    """Return bytes in words: `213 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
