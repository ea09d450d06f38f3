"""The rows that `luthier judge` reads: a file, the samples of runs, or prompts that a model answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.judging_result import progress_of
from luthier.core.errors import Problem, RunError, UserError
from luthier.core.rundir import RunDir, final_checkpoint

if TYPE_CHECKING:
    from luthier.evaluate.judging.rows import Columns, Tasks
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Writer:
    """Who writes the answers, where the rows are prompts."""

    target: str
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Rows:
    """What is judged: a file, or runs, and where prompt and answers stand."""

    data: Sequence[str]
    prompt: str | None
    answers: str | None
    limit: int | None
    writer: Writer | None = None


def read_rows(rows: Rows, scores: bool, rewrites: bool) -> Tasks:
    """Read the rows of a file, or the samples of runs."""
    from luthier.data.spec import resolve_path
    from luthier.evaluate.judging.rows import Columns, read_tasks, tasks_of
    from luthier.run.opened import is_run

    names = tuple(name.strip() for name in (rows.answers or "").split(",") if name.strip())
    columns = Columns(rows.prompt, names)
    least = 0 if rewrites or rows.writer is not None else 1 if scores else 2
    if rows.writer is None and all(is_run(name) for name in rows.data) and len(rows.data) <= 2:
        return tasks_of(_samples(rows.data)[: rows.limit], " and ".join(rows.data), columns)
    if len(rows.data) != 1:
        what = f"{len(rows.data)} names were given. Two are for the samples of two runs."
        raise UserError(Problem(what, "luthier judge", "name one file, or one or two runs"))
    if least == 2:
        least = _compared(Path(rows.data[0]), columns)
    return read_tasks(resolve_path(rows.data[0]), columns, rows.limit, least)


def with_samples_of(tasks: Tasks, writer: Writer, journal: Path, least: int) -> Tasks:
    """Let a model answer the prompts; rows with fewer different answers than `least` are left out."""
    from luthier.evaluate.judging.sampling import with_samples
    from luthier.rewards.judging.journal import Journal
    from luthier.run.opened import open_target
    from luthier.train.generate import Sampling

    sampling = Sampling(writer.max_new_tokens, writer.temperature, seed=writer.seed)
    kept = Journal(journal)
    try:
        model, _ = open_target(writer.target)
        require_words(model, writer.target, "answer")
        identity = identity_of(writer.target, model)
        with progress_of(None, None, "answering") as progress:
            made = with_samples(model, identity, tasks.tasks, writer.samples, sampling, kept, progress)
    finally:
        kept.close()
    good = tuple(task for task in made if len(task.answers) >= least)
    why = f"prompt from {tasks.why.partition(';')[0].removeprefix('prompt from ')}; answers of {writer.target}"
    return replace(tasks, tasks=good, why=why, alike=len(made) - len(good))


def identity_of(target: str, model: LoadedModel) -> str:
    """Return what tells a model apart from others, and a run from itself after more training."""
    from luthier.run.opened import is_run

    if not is_run(target):
        return model.fingerprint
    checkpoint = final_checkpoint(RunDir(Path(target)))
    return f"{model.fingerprint} {checkpoint} {(checkpoint / 'DONE').stat().st_mtime_ns}"


def require_words(model: LoadedModel, name: str, verb: str) -> None:
    """Refuse a model that scores or classifies.

    Raises:
        UserError: it writes no text.
    """
    if "ForSequenceClassification" in type(model.module).__name__:
        what = f"The model gives numbers or classes, and cannot {verb}."
        raise UserError(Problem(what, name, "name a model that writes"))


def _compared(path: Path, columns: Columns) -> int:
    """Return 1 where the rows have one answer each, which are scored, and 2 where there is more to compare."""
    from luthier.evaluate.judging.rows import read_tasks

    first = read_tasks(path, columns, limit=1, answers=1)
    return 1 if first.tasks and len(first.tasks[0].answers) == 1 else 2


def _samples(runs: Sequence[str]) -> list[dict[str, object]]:
    """Return the samples of a run before and after training, or of two runs after training, side by side.

    Raises:
        RunError: a run has no samples, or two have none in common.
    """
    found = [_samples_of(RunDir.open(Path(name))) for name in runs]
    if len(found) == 1:
        return [{"prompt": s["prompt"], "before": s["before"], "after": s["after"]} for s in found[0]]
    theirs = {str(s["prompt"]): s["after"] for s in found[1]}
    both = [
        {"prompt": s["prompt"], "a": s["after"], "b": theirs[p]} for s in found[0] if (p := str(s["prompt"])) in theirs
    ]
    if not both:
        what = "The two runs have no sample with the same prompt."
        raise RunError(Problem(what, " and ".join(runs), "train them with the same held-out rows and samples"))
    return both


def _samples_of(run: RunDir) -> list[dict[str, object]]:
    files = [stage.samples for stage in run.stages() if stage.samples.is_file()]
    rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()] if files else []
    rows = [row for row in rows if {"prompt", "before", "after"} <= row.keys()]
    if not rows:
        what = "The run has no samples of before and after."
        raise RunError(Problem(what, str(run.path), "let it train to its end with samples: 50, or judge a file"))
    return rows
