"""Log-probabilities under the model that a stage starts from, in one pass over the data and kept on disk.

The start never changes, so what it says of an answer is computed once and not at every step. The file knows which
weights and which examples it belongs to; one of others is computed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.core.rundir import write_atomic
from luthier.data.store import ExampleStore
from luthier.objectives.pairs import answer_logps
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

NAME = "reference"


def keep_reference_logps(
    model: LoadedModel, stores: Sequence[ExampleStore], file: Path, start: str, cut: Cut | None = None
) -> int:
    """Give every sequence of the stores `extras["reference"]`, Σ w·log p under the model as it stands; return how many.

    Args:
        file: where they are kept (safetensors, float32), and read from if it belongs to these weights and examples.
        start: what identifies the weights.
    """
    from safetensors import safe_open
    from safetensors.numpy import save

    origin = _origin(start, stores)
    if file.is_file():
        with safe_open(str(file), framework="np") as kept:
            if (kept.metadata() or {}).get("origin") == origin:
                for index, store in enumerate(stores):
                    store.extras[NAME] = kept.get_tensor(str(index))
                return sum(len(store.extras[NAME]) for store in stores)
    for store in stores:
        store.extras[NAME] = reference_logps(model, store, cut)
    found = {str(index): store.extras[NAME] for index, store in enumerate(stores)}
    write_atomic(file, save(found, metadata={"origin": origin}))
    return sum(len(values) for values in found.values())


def reference_logps(model: LoadedModel, store: ExampleStore, cut: Cut | None = None) -> np.ndarray:
    """Return Σ w·log p of every sequence of a store under the model as it stands, (S,) float32."""
    logps_S = np.zeros(int(store.sequences[-1]), dtype=np.float32)
    order = np.argsort(store.lengths, kind="stable")  # padded batches of one length hold little padding
    with model.evaluating():
        for group in _groups(store, order, cut or Cut(), padded=not model.packs):
            batch = model.collate([example for _, example in group])
            values = answer_logps(model, batch).float().cpu().numpy()
            done = 0
            for index, example in group:
                start = int(store.sequences[index])
                logps_S[start : start + example.sequences] = values[done : done + example.sequences]
                done += example.sequences
    return logps_S


def _groups(store: ExampleStore, order: np.ndarray, cut: Cut, padded: bool) -> Sequence[list[tuple[int, Example]]]:
    rows = [store[int(index)] for index in order]
    groups, done = [], 0
    for group in cut.apply(rows, padded=padded):
        groups.append([(int(order[done + i]), example) for i, example in enumerate(group)])
        done += len(group)
    return groups


def _origin(start: str, stores: Sequence[ExampleStore]) -> str:
    digest = hashlib.sha256(start.encode())
    for store in stores:
        for array in (store.tokens_T, store.codes_T, store.palette, store.borders, store.sequences):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
