"""Start a run in a folder of its own, or go on with one: locks, first files, the final report."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from luthier.core.component import Component
from luthier.core.errors import Failure, Interrupted, LuthierError, Problem, RunError, UserError
from luthier.core.rundir import PIPELINE, RESOLVED, RunDir, StageDir, disk_fault, read_json, write_atomic, write_json
from luthier.run.config import Recipe
from luthier.run.environment import collect_environment
from luthier.run.examine import Examined, examine
from luthier.run.gates import judged, pass_gate
from luthier.run.mistakes import mistakes
from luthier.run.opened import kept_recipe
from luthier.run.report import write_report
from luthier.run.screen import Screen
from luthier.run.yaml_lines import write_yaml


def start(found: Examined, screen: Screen) -> RunDir:
    """Train a recipe that was examined, in a new run folder.

    If the input turns out to be wrong before the first step, the new folder is removed again.

    Raises:
        UserError: with everything that is wrong, the run folder's place included.
    """
    path = place_for(found.recipe.run, found.recipe.name) if found.recipe is not None else Path()
    recipe = found.require(*(taken(path) if found.recipe is not None else ())).located()
    run = RunDir(path)
    try:
        with disk_faults(path):
            write_first_files(recipe, run)
        screen.fact("run", str(run.path))
        for note in mistakes(found):
            screen.warn(note)
        return carry_out(recipe, found, run, screen)
    except (UserError, Failure) as error:
        if not any(True for stage in run.stages() for _ in stage.read_metrics()):
            shutil.rmtree(run.path, ignore_errors=True)
        elif isinstance(error, RunError):
            screen.note(f"what was done is kept; go on with: luthier resume {run.path}")
        raise


def resume(path: Path, screen: Screen) -> RunDir:
    """Go on with an interrupted run from its last checkpoint, or from the start when there is none.

    Raises:
        RunError: no run there, already finished, or at work in another process.
    """
    run = RunDir.open(path)
    if run.report.is_file() and read_json(run.report).get("status") == "finished":
        remedy = f"see it with `luthier show {path}`"
        raise RunError(Problem("This run is finished; there is nothing to resume.", str(path), remedy))
    with locked(run):
        pass  # a run at work elsewhere is told before its data are read
    found = examine(kept_recipe(run))
    recipe = found.require()
    screen.fact("run", str(run.path))
    return carry_out(recipe, found, run, screen)


def carry_out(recipe: Recipe, found: Examined, run: RunDir, screen: Screen) -> RunDir:
    """Train what is left to train, and write what came of it.

    Raises:
        GateFailure: it is finished and did not come to what its gate asks for.
    """
    with locked(run):
        stage = run.stage(0, _kind(recipe.objective))
        screen.keep_log(stage.log)
        started = time.monotonic()
        try:
            part = _train(recipe, found, run, stage, screen)
        except Interrupted:
            _write_status(recipe, run, stage, {"status": "interrupted"})
            screen.note(f"go on with: luthier resume {run.path.parent if run.is_stage else run.path}")
            raise
        except LuthierError as error:
            if isinstance(error, UserError):
                error.problems = [_placed(problem, recipe) for problem in error.problems]
            if stage.metrics.exists():
                # On a full disk this fails as well, and the first message is the one that counts.
                with suppress(RunError):
                    _write_status(recipe, run, stage, {"status": "failed", "error": str(error)})
            raise
        part |= judged(recipe.gate, part, screen)
        with disk_faults(run.path):
            _write_status(recipe, run, stage, {"status": "finished", **part, "seconds": time.monotonic() - started})
        screen.fact("report", str(run.report_page))
    pass_gate(run)
    return run


def _placed(problem: Problem, recipe: Recipe) -> Problem:
    """Return a problem whose place is a key, such as `method.targets`, with the line of that key."""
    known = problem.where.partition(".")[0] in Recipe.model_fields
    return replace(problem, where=recipe.place(problem.where)) if known else problem


def _train(recipe: Recipe, found: Examined, run: RunDir, stage: StageDir, screen: Screen) -> dict[str, object]:
    from luthier.run.stage import run_stage  # imports torch: only now, when the recipe is known to be right

    with disk_faults(stage.path):
        write_json(run.environment, collect_environment())  # now that torch is loaded, it knows threads and devices
        return run_stage(recipe, found, run, stage, screen)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn whatever a full or unwritable disk raises into the user's message."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        fault = disk_fault(path, error)
        if fault is None:
            raise
        raise fault from error


def _write_status(recipe: Recipe, run: RunDir, stage: StageDir, part: dict[str, object]) -> None:
    report = {
        "run": run.path.name,
        "method": _kind(recipe.method),
        "objective": _kind(recipe.objective),
        "model": recipe.model.path,
        "stage": stage.path.name,
        **part,
        "environment": read_json(run.environment),
    }
    write_json(run.report, report)
    write_report(run)


def _kind(component: Component) -> str:
    return str(component.model_dump()["kind"])


_FIRST_FILES = {"recipe.yaml", ".recipe.yaml.tmp", ".resolved.json.tmp", ".pipeline.json.tmp"}


def place_for(run: str | None, name: str) -> Path:
    """Return the folder of a new run: where the recipe says, else a free name under runs/."""
    return Path(run).expanduser() if run else _free_name(Path("runs") / name)


def taken(path: Path) -> list[Problem]:
    """Return what stands in the way of a new run; a start that was cut off leaves nothing to keep."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return [
            Problem(f"There cannot be such a run folder: {reason}.", str(path)[:80], "choose another with run=PATH")
        ]
    inside = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not path.is_dir() or inside - _FIRST_FILES:
        remedy = f"go on with it: luthier resume {path}; or " if inside & {RESOLVED, PIPELINE} else ""
        what = "The run folder exists already and is not empty." if path.is_dir() else "The run folder is a file."
        return [Problem(what, str(path), f"{remedy}choose another with run=PATH")]
    return []


def write_first_files(recipe: Recipe, run: RunDir) -> None:
    write_atomic(run.recipe, write_yaml(recipe.dump()))
    # Last: a folder counts as a run from this file on.
    write_json(run.resolved, {"recipe": recipe.dump()})


def _free_name(path: Path) -> Path:
    if not path.exists():
        return path
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run for this process; the lock vanishes with the process, however it ends."""
    with disk_faults(run.path):
        stream = (run.path / ".lock").open("a", encoding="utf-8")  # what another process wrote into it stays
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                Problem("Another process is at work on this run.", str(run.path), "wait for it, or stop it first")
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))  # so that a page written by this process does not say that another is at work
        stream.flush()
        yield
