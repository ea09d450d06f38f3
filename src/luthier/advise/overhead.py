"""What a process takes beside its tensors: libraries' own memory, and holes in the heap; fitted from past runs.

    peak = fixed + resident + heap · moving

where `resident` stays from step to step (weights, moments) and `moving` comes and goes (activations, gradients). On a
CPU, glibc keeps freed pieces, and what comes next does not always fit into them. On a GPU both terms are small.
`luthier plan --calibrate RUN…` writes the two numbers of this machine into the user's cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Overhead:
    """Terms of one kind of device.

    Attributes:
        fixed_bytes: taken once.
        heap: bytes held for each byte that comes and goes.
        speed: measured seconds divided by predicted ones, without it.
        runs: from how many runs they were fitted; 0 for the ones that ship.
    """

    fixed_bytes: int = 0
    heap: float = 1.0
    speed: float = 1.0
    runs: int = 0


@dataclass(frozen=True)
class Observation:
    """One run: the closed form's parts, what was measured, in bytes and seconds."""

    resident: float
    moving: float
    peak: float
    predicted_seconds: float = 0.0
    seconds: float = 0.0


NONE = Overhead()
SHIPPED = {"cpu": Overhead(24 * 2**20, 1.9), "cuda": Overhead(32 * 2**20, 1.03)}
"""Fitted on random models of 8 to 120 M parameters (benchmarks/planner_cpu.py)."""


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
        return Overhead(int(kept["fixed_bytes"]), float(kept["heap"]), float(kept["speed"]), int(kept["runs"]))
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
    """Return the terms that make the relative errors of some runs smallest; both are held to what is possible.

    Least squares of peak − resident = fixed + heap · moving, each run weighed by 1/peak², so that a small model counts
    as much as a large one. One run alone moves only the heap's term, and time is the median ratio.
    """
    if not seen:
        return start
    weight = [1 / max(run.peak, 1.0) ** 2 for run in seen]
    gap = [run.peak - run.resident for run in seen]
    total = sum(weight)
    mean_x = sum(w * run.moving for w, run in zip(weight, seen)) / total
    mean_y = sum(w * y for w, y in zip(weight, gap)) / total
    spread = sum(w * (run.moving - mean_x) ** 2 for w, run in zip(weight, seen))
    if len(seen) < 3 or spread <= 0:
        heap, fixed = (mean_y - start.fixed_bytes) / max(mean_x, 1.0), float(start.fixed_bytes)
    else:
        heap = sum(w * (run.moving - mean_x) * (y - mean_y) for w, run, y in zip(weight, seen, gap)) / spread
        fixed = mean_y - heap * mean_x
        if fixed < 0:
            fixed = 0.0
            heap = sum(w * run.moving * y for w, run, y in zip(weight, seen, gap)) / sum(
                w * run.moving**2 for w, run in zip(weight, seen)
            )
    ratios = sorted(run.seconds / run.predicted_seconds for run in seen if run.predicted_seconds and run.seconds)
    speed = ratios[len(ratios) // 2] if ratios else start.speed
    return Overhead(max(round(fixed), 0), min(max(heap, 1.0), 4.0), speed, len(seen))
