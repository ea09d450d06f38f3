"""Start a run in a folder of its own, or go on with one: locks, first files, the final report."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from luthier.core.errors import Failure, Interrupted, LuthierError, Problem, RunError, UserError
from luthier.core.rundir import RunDir, StageDir, disk_error, write_atomic, write_json
from luthier.run.config import Recipe, parse_recipe
from luthier.run.environment import collect_environment
from luthier.run.report import write_report
from luthier.run.screen import Screen


def start(recipe: Recipe, screen: Screen) -> RunDir:
    """Train a recipe in a new run folder.

    If the input turns out to be wrong before the first step, the new folder is removed again.

    Raises:
        RunError: the folder exists already, or cannot be written.
    """
    run = _new_run(recipe)
    screen.fact("run", str(run.path))
    try:
        return _carry_out(recipe, run, screen)
    except (UserError, Failure):
        if not any(stage.metrics.exists() for stage in run.stages()):
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def resume(path: Path, screen: Screen) -> RunDir:
    """Go on with an interrupted run from its last checkpoint, or from the start when there is none.

    Raises:
        RunError: no run there, already finished, or at work in another process.
    """
    run = RunDir.open(path)
    kept = json.loads(run.resolved.read_text(encoding="utf-8"))
    base = Path(kept["base"]) if kept.get("base") else None
    if run.report.is_file() and json.loads(run.report.read_text(encoding="utf-8")).get("status") == "finished":
        raise RunError(
            Problem(
                "This run is finished; there is nothing to resume.", str(path), f"see it with `luthier show {path}`"
            )
        )
    recipe = parse_recipe(kept["recipe"], base=base)
    screen.fact("run", str(run.path))
    return _carry_out(recipe, run, screen)


def _carry_out(recipe: Recipe, run: RunDir, screen: Screen) -> RunDir:
    with _locked(run):
        stage = run.stage(0, recipe.objective.kind)
        started = time.monotonic()
        try:
            from luthier.run.stage import run_stage  # imports torch: only now, when the recipe is known to be right

            part = run_stage(recipe, run, stage, screen)
        except Interrupted:
            _write_status(recipe, run, stage, {"status": "interrupted"})
            screen.note(f"go on with: luthier resume {run.path}")
            raise
        except LuthierError as error:
            if stage.metrics.exists():
                _write_status(recipe, run, stage, {"status": "failed", "error": str(error)})
            raise
        _write_status(recipe, run, stage, {"status": "finished", **part, "seconds": time.monotonic() - started})
        screen.fact("report", str(run.report_page))
    return run


def _write_status(recipe: Recipe, run: RunDir, stage: StageDir, part: dict[str, object]) -> None:
    report = {
        "run": run.path.name,
        "method": recipe.method.kind,
        "objective": recipe.objective.kind,
        "model": recipe.model.path,
        "stage": stage.path.name,
        **part,
        "environment": json.loads(run.environment.read_text(encoding="utf-8")),
    }
    write_json(run.report, report)
    write_report(run)


def _new_run(recipe: Recipe) -> RunDir:
    path = Path(recipe.run) if recipe.run else _free_name(Path("runs") / recipe.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        holds_run = (path / "resolved.json").is_file()
        remedy = f"go on with it: luthier resume {path}; or " if holds_run else ""
        raise RunError(
            Problem(
                "The run folder exists already and is not empty.", str(path), f"{remedy}choose another with run=PATH"
            )
        )
    run = RunDir(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        write_atomic(run.recipe, yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True))
        write_json(run.environment, collect_environment())
        # Last: a folder counts as a run from this file on.
        write_json(run.resolved, {"recipe": recipe.dump(), "base": str(recipe.base.resolve()) if recipe.base else None})
    except LuthierError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def _free_name(path: Path) -> Path:
    if not path.exists():
        return path
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")


@contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    """Hold the run for this process; the lock vanishes with the process, however it ends."""
    with (run.path / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                Problem("Another process is at work on this run.", str(run.path), "wait for it, or stop it first")
            ) from error
        stream.write(str(os.getpid()))
        stream.flush()
        yield
