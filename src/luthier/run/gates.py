"""Gates of a finished run: judged once, written into its report, and asked for before anything is made of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.core.errors import GateFailure, Problem, RunError
from luthier.core.rundir import RunDir, last_stage, read_json
from luthier.run.limits import Gate, judge_gates
from luthier.run.screen import Screen
from luthier.run.summary import mapping

IGNORE = "--ignore-gate"


def judged(gates: Sequence[Gate], part: Mapping[str, object], screen: Screen) -> dict[str, object]:
    """Return what the gates say of a stage's part of the report, as a part of it; nothing where there are none."""
    if not gates:
        return {}
    verdict = judge_gates(gates, mapping(part.get("eval")))
    for fault in verdict.warnings:
        screen.note(f"a gate was not passed: {fault}; going on, as the recipe says")
    passed = [str(condition["task"]) for condition in verdict.checked if condition["passed"]]
    if passed and verdict.passed:
        screen.fact("gate", f"passed: {', '.join(passed)}")
    warnings = part.get("warnings")
    told = [f"A gate was not passed: {fault}." for fault in (*verdict.faults, *verdict.warnings)]
    return {"gate": verdict.as_dict(), "warnings": [*(warnings if isinstance(warnings, list) else []), *told]}


def failed_gate(run: RunDir) -> list[str]:
    """Return what a finished run did not come to, of what its gate asks for."""
    run = RunDir(last_stage(run.path))
    gate = mapping(read_json(run.report).get("gate")) if run.report.is_file() else {}
    conditions = gate.get("conditions")
    if gate.get("passed") is not False or not isinstance(conditions, list):
        return []
    failed = (mapping(c) for c in conditions if mapping(c).get("action") == "stop")
    return [str(fault) for condition in failed for fault in condition.get("faults") or ()]  # type: ignore[union-attr]


def pass_gate(run: RunDir) -> None:
    """Make sure that a finished run passed its gate.

    Raises:
        GateFailure: it did not.
    """
    faults = failed_gate(run)
    if faults:
        what = f"The gate was not passed: {'; '.join(faults)}."
        raise GateFailure(f"{what} The run is finished, and everything is saved in {run.path}.")


def require_gate(run: RunDir, verb: str, ignores: bool) -> list[str]:
    """Return what was not passed and is to be ignored.

    Raises:
        RunError: the run did not pass its gate, and nobody said that this does not matter.
    """
    faults = failed_gate(run)
    if faults and not ignores:
        what = f"The run did not pass its gate: {'; '.join(faults)}."
        remedy = f"train it better, or {verb} it all the same: add {IGNORE}"
        raise RunError(Problem(what, str(run.path), remedy))
    return faults
