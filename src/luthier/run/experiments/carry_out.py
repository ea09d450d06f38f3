"""Make the runs of an experiment and lay them side by side: what is finished is not repeated, the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import Interrupted, Problem, RunError
from luthier.core.rundir import RunDir, read_json, write_atomic, write_json
from luthier.run.experiments.cell import Cell
from luthier.run.experiments.contest import Contest, Variant
from luthier.run.experiments.jobs import Job, expected_bytes, run_all, usual_workers
from luthier.run.experiments.outcome import outcome_of
from luthier.run.experiments.page import write_page
from luthier.run.experiments.table import Plan, Table
from luthier.run.launch import taken


@dataclass
class _Row:
    """A cell at work."""

    variant: Variant
    jobs: list[Job]
    failures: dict[str, str] = field(default_factory=dict)

    def cell(self) -> Cell:
        """Return what there is of it by now."""
        done = [job for job in self.jobs if job.name not in self.failures and job.is_finished]
        return Cell(
            self.variant.name,
            [outcome_of(job.run, job.name) for job in done],
            self.variant.changes,
            max(1, len(self.jobs)),
            self.variant.refused,
            tuple(self.failures.values()),
        )


def carry_out(contest: Contest, out: Path, tell: Callable[[str], None], workers: int | None = None) -> Table:
    """Make the runs that are missing and return the table; it is written after every run.

    Args:
        out: the folder of the runs and of the table.
        tell: hears what is going on.
        workers: runs at once; None takes as many as there are cores for.

    Raises:
        RunError: the folder holds a run of another recipe.
        Interrupted: the user stopped it; called again it goes on.
    """
    rows = [_Row(variant, _jobs(variant, contest.seeds, out)) for variant in contest.variants]
    jobs = [job for row in rows for job in row.jobs]
    others = [job.run for job in jobs if _is_other(job)]
    if others:
        remedy = "choose another folder with --out, or delete it"
        raise RunError(*(Problem("The folder holds a run of another recipe.", str(r.path), remedy) for r in others))
    number = {id(job): index for index, job in enumerate(jobs, 1)}
    of_job = {id(job): row for row in rows for job in row.jobs}

    def said(job: Job, what: str) -> None:
        tell(f"{number[id(job)]}/{len(jobs)} {job.name}: {what}")

    def ends(job: Job, failure: str) -> None:
        if failure:
            of_job[id(job)].failures[job.name] = failure
        said(job, f"failed. {failure}" if failure else "done")
        write_table(_table(contest, rows), out)

    for row in rows:
        if row.variant.refused:
            tell(f"{row.variant.name}: left out. {row.variant.refused}")
    for job in jobs:
        if job.is_finished:
            said(job, "finished before")
    models = list({variant.recipe.model.path: variant.recipe.model for variant in contest.variants}.values())
    # Two at once slow each other down a little, which would be unfair where seconds are counted.
    allowed = workers or (
        1 if contest.budget is not None and contest.budget.unit == "seconds" else usual_workers(models)
    )
    guess = expected_bytes(models)
    waiting = [job for job in jobs if not job.is_finished]
    try:
        run_all(
            waiting,
            allowed,
            lambda job: said(job, "goes on" if job.is_begun else "starts"),
            ends,
            lambda: max((c.peak_bytes or 0 for c in (row.cell() for row in rows)), default=0) or guess,
        )
    except Interrupted as stopped:
        raise Interrupted(f"{stopped} Go on with: luthier compare {contest.path}") from None
    table = _table(contest, rows)
    write_table(table, out)
    return table


def compare_runs(paths: Sequence[Path]) -> Table:
    """Return the table of runs that exist, from their reports.

    Raises:
        RunError: one of them is no run, or not finished.
    """
    rows, problems = [], []
    for path in paths:
        try:
            run = RunDir.open(path)
        except RunError as error:
            problems += error.problems
            continue
        if not (run.report.is_file() and read_json(run.report).get("status") == "finished"):
            remedy = f"go on with it: luthier resume {path}"
            problems.append(Problem("The run is not finished.", str(path), remedy))
            continue
        rows.append(outcome_of(run, path.resolve().name))
    if problems:
        raise RunError(*problems)
    return Table.of_runs(rows)


def write_table(table: Table, out: Path) -> None:
    """Write comparison.md, comparison.json and comparison.html into a folder.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    write_atomic(out / "comparison.md", table.markdown())
    write_json(out / "comparison.json", table.as_dict())
    write_page(table, out)


def _table(contest: Contest, rows: Sequence[_Row]) -> Table:
    plan = Plan(contest.path.stem, contest.budget, contest.quality, contest.retained, contest.left_out)
    return Table([row.cell() for row in rows], plan)


def _jobs(variant: Variant, seeds: Sequence[int], out: Path) -> list[Job]:
    if variant.refused:
        return []
    jobs = []
    for seed in seeds or [None]:
        run = RunDir(out / variant.name if seed is None else out / variant.name / f"seed-{seed}")
        values = {**variant.recipe.dump(), "run": str(run.path)} | ({} if seed is None else {"seed": seed})
        name = variant.name if seed is None else f"{variant.name}/seed-{seed}"
        jobs.append(Job(name, run, values, out / "recipes"))
    return jobs


def _is_other(job: Job) -> bool:
    if not job.is_begun:
        return bool(taken(job.run.path))
    return read_json(job.run.resolved).get("recipe") != json.loads(json.dumps(job.values))
