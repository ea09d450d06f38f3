"""Fit this machine's overhead to runs whose plan.json holds what was predicted and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

from luthier.advise.overhead import Holes, Observation, Overhead, fit, keep, overhead_of
from luthier.core.errors import Problem, UserError
from luthier.core.rundir import RunDir, read_json
from luthier.run.summary import as_float, mapping

_NUMBERS = ("resident", "moving", "kept", "product_seconds", "pass_seconds")


def calibrate(runs: Sequence[Path]) -> dict[str, object]:
    """Fit, keep and return the terms of each kind of device that the runs used, with errors before and after.

    Raises:
        UserError: no run, or one without a measured plan.
    """
    if not runs:
        remedy = "name finished runs: luthier plan --calibrate runs/*"
        raise UserError(Problem("There is nothing to calibrate with.", "--calibrate", remedy))
    seen: dict[str, list[Observation]] = {}
    for path in runs:
        device, one = observe(path)
        seen.setdefault(device, []).append(one)
    told: dict[str, object] = {}
    for device, some in seen.items():
        before, after = overhead_of(device), fit(some, overhead_of(device))
        keep(device, after)
        told[device] = {**asdict(after), "error_before": worst(some, before), "error_after": worst(some, after)}
    return told


def observe(path: Path) -> tuple[str, Observation]:
    """Return (cpu or cuda, what a finished run says).

    Raises:
        UserError: there is no plan.json with measured values.
    """
    run = RunDir.open(path)
    kept = read_json(run.plan) if run.plan.is_file() else {}
    measured = mapping(kept.get("measured"))
    peak = as_float(measured.get("peak_bytes"))
    if not peak:
        remedy = "let it finish, or leave it out"
        raise UserError(Problem("This run has no plan that was measured.", str(run.plan), remedy))
    found, steps = mapping(kept.get("fit")), as_float(measured.get("steps")) or 1.0
    holes = found.get("holes")
    device = "cpu" if as_float(measured.get("baseline_bytes")) else "cuda"
    one = Observation(
        **{name: as_float(found.get(name)) or 0.0 for name in _NUMBERS},
        holes=cast("Holes", holes if holes in get_args(Holes) else "frozen"),
        peak=peak,
        seconds=(as_float(measured.get("cpu_seconds")) or 0.0) * (as_float(kept.get("steps")) or 0.0) / steps,
    )
    return device, one


def worst(some: Sequence[Observation], terms: Overhead) -> float:
    """Return the largest relative error of the peak with some terms."""
    return max(abs(one.predicted(terms) / one.peak - 1) for one in some)
