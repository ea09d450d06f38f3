"""What a process takes beside its tensors: libraries' own memory, and holes in the heap; fitted from past runs.

    peak = fixed + resident + moving + holes · kept

where `resident` stays from step to step (weights, moments), `moving` comes and goes (activations, gradients), and
`kept` is what one micro-batch keeps between its passes without checkpointing. On a CPU, glibc hands out what it has
freed in pieces that later tensors do not fit into; a training pass hands such pieces back to the system a few times
(core.heap), so that what is left are the holes of the last few blocks. On a GPU torch's own allocator leaves few.
`luthier plan --calibrate RUN…` writes the terms of this machine into the user's cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

Holes = Literal[
    "trained",
    "frozen",
    "beside",
    "recomputed",
    "narrow_trained",
    "narrow_frozen",
    "narrow_once",
    "narrow_beside",
    "narrow_recomputed",
    "returned",
]
"""Whose heap: where matrices are trained; where they are frozen; where besides LoRA's products are computed apart
(transposed matrices, dropout, DoRA); with checkpointing; the same of models too narrow for memory to be handed back,
where frozen weights leave fewer holes in a step of one micro-batch; and on a quantised base, where large pieces go back
to the system at once."""


@dataclass(frozen=True)
class Overhead:
    """Terms of one kind of device.

    Attributes:
        fixed_bytes: taken once.
        trained … returned: bytes of holes for each byte that a micro-batch keeps.
        start_seconds: that the first step takes longer.
        products, passes: seconds for each that matrix products, and passes over memory, are predicted to take.
        runs: from how many runs they were fitted; 0 for the ones that ship.
    """

    fixed_bytes: int = 0
    trained: float = 0.0
    frozen: float = 0.0
    beside: float = 0.0
    recomputed: float = 0.0
    narrow_trained: float = 0.0
    narrow_frozen: float = 0.0
    narrow_once: float = 0.0
    narrow_beside: float = 0.0
    narrow_recomputed: float = 0.0
    returned: float = 0.0
    start_seconds: float = 0.0
    products: float = 1.0
    passes: float = 1.0
    runs: int = 0

    def bytes_of(self, holes: Holes, kept: float) -> int:
        """Return what is taken beside the tensors."""
        return self.fixed_bytes + round(getattr(self, holes) * kept)


@dataclass(frozen=True)
class Observation:
    """One run: the closed form's parts and what was measured, in bytes and seconds."""

    resident: float
    moving: float
    kept: float
    holes: Holes
    peak: float
    product_seconds: float = 0.0
    pass_seconds: float = 0.0
    seconds: float = 0.0

    def predicted(self, terms: Overhead) -> float:
        """Return the peak with some terms."""
        return self.resident + self.moving + terms.bytes_of(self.holes, self.kept)

    def predicted_seconds(self, terms: Overhead) -> float:
        """Return the seconds with some terms."""
        return terms.start_seconds + terms.products * self.product_seconds + terms.passes * self.pass_seconds


SPRING = 0.02
"""How much a term weighs that is twice what it was before the fit: as much as a run that is 2 % off."""
NONE = Overhead()
SHIPPED = {
    "cpu": Overhead(
        fixed_bytes=42 * 2**20,
        trained=0.37,
        frozen=0.39,
        beside=0.68,
        recomputed=0.42,
        narrow_trained=0.63,
        narrow_frozen=0.87,
        narrow_once=0.22,
        narrow_beside=1.3,
        narrow_recomputed=0.64,
        returned=0.03,
        start_seconds=0.2,
        products=1.3,
        passes=3.3,
    ),
    "cuda": replace(Overhead(32 * 2**20), **dict.fromkeys(get_args(Holes), 0.03)),
}
"""The CPU's were fitted on random models (benchmarks/planner_cpu.py); the GPU's are a guess that no run has tested."""


def cache_folder() -> Path:
    """Return the user's cache folder for Luthier."""
    if sys.platform == "darwin":
        usual = Path.home() / "Library/Caches"
    else:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return usual / "luthier"


def calibration_file() -> Path:
    """Return where the terms of this machine are kept; deleting the file forgets them."""
    return cache_folder() / "calibration.json"


def overhead_of(device: str) -> Overhead:
    """Return this machine's terms for a kind of device, or those that ship."""
    try:
        kept = json.loads(calibration_file().read_text(encoding="utf-8"))[device]
        numbers = {f.name: float(kept[f.name]) for f in fields(Overhead) if f.type == "float"}
        return Overhead(int(kept["fixed_bytes"]), runs=int(kept["runs"]), **numbers)
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not ours to read
        return SHIPPED.get(device, NONE)


def keep(device: str, terms: Overhead) -> Path:
    """Write the terms of a kind of device, and return the file."""
    file = calibration_file()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**kept, device: asdict(terms)}, indent=2) + "\n", encoding="utf-8")
    return file


def fit(seen: Sequence[Observation], start: Overhead) -> Overhead:
    """Return the terms that make the relative errors of some runs smallest; what no run tells stays as it was.

    Least squares of the errors relative to the measured peak, so that a small model counts as much as a large one; each
    term is held to where it started by a weak spring, so that three runs of one kind cannot throw it far off.
    """
    if not seen:
        return start
    kinds = get_args(Holes)
    here = [start.fixed_bytes, *(getattr(start, kind) for kind in kinds)]
    rows = [[1 / o.peak, *(o.kept / o.peak if o.holes == kind else 0.0 for kind in kinds)] for o in seen]
    wanted = [(o.peak - o.resident - o.moving) / o.peak for o in seen]
    for place, value in enumerate(here):
        scale = SPRING / max(value, 0.1 if place else 2**20)
        rows.append([scale if other == place else 0.0 for other in range(len(here))])
        wanted.append(scale * value)
    fixed, *holes = (max(value, 0.0) for value in least_squares(rows, wanted))
    timed = [o for o in seen if o.seconds > start.start_seconds and o.product_seconds > 0]
    terms = _two_terms(timed, start.start_seconds) if timed else (start.products, start.passes)
    found = dict(zip(kinds, holes))
    return replace(start, fixed_bytes=round(fixed), **found, products=terms[0], passes=terms[1], runs=len(seen))


def least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Return x for which the sum of squares of rows · x − wanted is smallest; the rows must tell every x."""
    import numpy as np

    return [float(x) for x in np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]]


def _two_terms(timed: Sequence[Observation], once: float) -> tuple[float, float]:
    """Return the seconds for each predicted second of products and of passes; neither is below nothing."""
    rows = [(o.product_seconds / o.seconds, o.pass_seconds / o.seconds) for o in timed]
    aa, bb, ab = sum(a * a for a, _ in rows), sum(b * b for _, b in rows), sum(a * b for a, b in rows)
    rest = [1 - once / o.seconds for o in timed]
    a1, b1 = sum(a * r for (a, _), r in zip(rows, rest)), sum(b * r for (_, b), r in zip(rows, rest))
    whole = aa * bb - ab * ab
    if len(rows) >= 3 and whole > 1e-9 * aa * bb:
        products, passes = (a1 * bb - b1 * ab) / whole, (b1 * aa - a1 * ab) / whole
        if products > 0 and passes >= 0:
            return products, passes
    both = (a1 + b1) / sum((a + b) ** 2 for a, b in rows)
    return both, both
