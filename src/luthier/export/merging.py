"""Merge adapters into a folder, open it again, and measure what the merge did.

How far its updates ΔW are from each parent's, how far it is from the weighted sum Σ w_i ΔW_i, and how much of each
parent's behaviour is left: the KL divergence of the next token, on text that the base itself writes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.errors import Failure
from luthier.core.rundir import write_json
from luthier.export.adapters import AdapterSet, Combination, seeded, update
from luthier.export.folders import require_free

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

REPORT = "merge.json"
SUM_TOLERANCE = 1e-4
"""Relative distance that a linear merge may have from the weighted sum: float32 rounding of a product and a sum."""
RELOAD_TOLERANCE = 1e-3
"""Nats by which a log-probability may differ when the written folder is opened again."""
_TEXTS, _TOKENS = 4, 32


@dataclass(frozen=True)
class Parent:
    """One of the adapters that were merged.

    Attributes:
        distance: ‖ΔW_merged − ΔW_parent‖ / ‖ΔW_parent‖ over all matrices; 0 is the parent itself.
        cosine: between the two updates; 1 points the same way.
        kl: mean divergence of the next token, in nats, parent against merged.
    """

    name: str
    folder: str
    weight: float
    distance: float
    cosine: float
    kl: float


@dataclass(frozen=True)
class Merge:
    """What a merge did.

    Attributes:
        from_sum: ‖ΔW_merged − Σ w_i ΔW_i‖ / ‖Σ w_i ΔW_i‖; rounding for linear, what was trimmed or mixed for the rest.
        kl_from_base: mean divergence of the next token, base against merged.
        reload_difference: largest change of a log-probability when the written folder is opened again.
    """

    method: str
    rank: int
    base_model: str
    base_fingerprint: str
    from_sum: float
    kl_from_base: float
    reload_difference: float
    parents: list[Parent] = field(default_factory=list)


def merge_adapters(
    base: LoadedModel,
    folders: dict[str, Path],
    weights: Sequence[float],
    out: Path,
    method: Combination = "linear",
    *,
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> Merge:
    """Merge adapters of one base into a new folder, open it again, and say what the merge did.

    Args:
        folders: the adapters' folders by name; each with one of `weights`.

    Raises:
        RunError: the adapters cannot be merged, or the folder exists or cannot be written.
        Failure: what was written is not what was merged; nothing is kept.
    """
    require_free(out)
    adapters = AdapterSet(base)
    for name, folder in folders.items():
        adapters.add(name, folder)
    merged, again = _free_name("merged", folders), _free_name("reloaded", folders)
    adapters.merge(merged, list(folders), weights, method, density=density, rank=rank, seed=seed)
    try:
        adapters.save(merged, out)
        base.tokenizer.save_pretrained(out)
        adapters.add(again, out)
        report = _measure(adapters, merged, again, dict(zip(folders, weights)), method)
        write_json(out / REPORT, asdict(report))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def _measure(adapters: AdapterSet, merged: str, again: str, weights: dict[str, float], method: Combination) -> Merge:
    geometry, from_sum = _distances(adapters, again, weights)
    texts = _written_by(adapters)
    adapters.off()
    base_logps = _logps(adapters.base, texts)
    adapters.use(merged)
    before = _logps(adapters.base, texts)
    adapters.use(again)
    after = _logps(adapters.base, texts)
    difference = float((after - before).abs().max())
    if not difference <= RELOAD_TOLERANCE:
        raise Failure(
            f"The written adapter differs by {difference:.4f} nats when it is opened again; nothing was kept."
        )
    is_sum = method == "linear" and adapters.rank(again) >= sum(adapters.rank(name) for name in weights)
    if is_sum and not from_sum <= SUM_TOLERANCE:
        raise Failure(f"The merged update is {from_sum:.1e} away from the weighted sum; nothing was kept.")
    parents = []
    for name, weight in weights.items():
        adapters.use(name)
        distance, cosine = geometry[name]
        kl = _divergence(_logps(adapters.base, texts), after)
        parents.append(Parent(name, str(adapters.folders[name]), weight, distance, cosine, kl))
    adapters.off()
    return Merge(
        method=method,
        rank=adapters.rank(again),
        base_model=adapters.base.path,
        base_fingerprint=adapters.base.fingerprint,
        from_sum=from_sum,
        kl_from_base=_divergence(base_logps, after),
        reload_difference=difference,
        parents=parents,
    )


def _distances(
    adapters: AdapterSet, merged: str, weights: dict[str, float]
) -> tuple[dict[str, tuple[float, float]], float]:
    """Return each parent's (relative distance, cosine), and the relative distance from the weighted sum.

    One matrix at a time: all updates of a large model at once would be as large as the model.
    """
    parents = {name: dict.fromkeys(("gap", "own", "dot"), 0.0) for name in weights}
    gap = whole = size = 0.0
    for _, layer in adapters.layers():
        found = {name: update(layer, name) for name in (merged, *weights)}
        shape = next((delta for delta in found.values() if delta is not None), None)
        if shape is None:
            continue
        deltas = {name: torch.zeros_like(shape) if d is None else d for name, d in found.items()}
        result, total = deltas.pop(merged), torch.zeros_like(shape)
        for name, delta in deltas.items():
            total += weights[name] * delta
            parents[name]["gap"] += _square(result - delta)
            parents[name]["own"] += _square(delta)
            parents[name]["dot"] += float((result.double() * delta).sum())
        gap += _square(result - total)
        whole += _square(total)
        size += _square(result)
    geometry = {
        name: (math.sqrt(p["gap"] / max(p["own"], 1e-30)), p["dot"] / max(math.sqrt(p["own"] * size), 1e-30))
        for name, p in parents.items()
    }
    return geometry, math.sqrt(gap / max(whole, 1e-30))


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _written_by(adapters: AdapterSet) -> Tensor:
    """Return a few sequences (B, T) that the base itself samples: text on which its probabilities mean something."""
    base = adapters.base
    adapters.off()
    special = (base.tokenizer.bos_token_id, base.tokenizer.eos_token_id)
    start = next((token for token in special if isinstance(token, int)), 0)
    tokens = torch.full((_TEXTS, 1), start, device=base.device)
    length = min(_TOKENS, base.context_length or _TOKENS)
    with seeded(0), base.evaluating(), base.computing():
        while tokens.shape[1] < length:
            logits = base.module(input_ids=tokens, use_cache=False).logits[:, -1].float()
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return tokens


def _logps(base: LoadedModel, tokens: Tensor) -> Tensor:
    with base.evaluating(), base.computing():
        return base.module(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)


def _divergence(logps: Tensor, others: Tensor) -> float:
    """Return the mean of KL(p ‖ q) over positions, in nats."""
    return float((logps.exp() * (logps - others)).sum(-1).mean())


def _free_name(wanted: str, taken: dict[str, Path]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted
