"""Search for the best recipe: trials in processes of their own, watched while they run, stopped where they lag."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import Interrupted, RecipeError
from luthier.core.rundir import RunDir, write_atomic, write_json
from luthier.evaluate.tasks.base import Task
from luthier.run.experiments.contest import measure_names
from luthier.run.experiments.jobs import PATIENCE_SECONDS, Job, interruptible, stop_all
from luthier.run.experiments.outcome import outcome_of
from luthier.run.experiments.study import REASON, again, ask, choose, chosen_value, importances, open_study
from luthier.run.experiments.tuning import Tuning, require_search
from luthier.run.numbers import number
from luthier.run.summary import Comparison, read_curves
from luthier.run.yaml_lines import write_yaml

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial


@dataclass
class _Running:
    """A trial at work.

    Attributes:
        looks: the held-out losses that the study has heard.
        is_pruned: it has been told to stop.
    """

    trial: Trial
    job: Job
    chosen: dict[str, object]
    looks: list[float] = field(default_factory=list)
    is_pruned: bool = False


@dataclass(frozen=True)
class TrialRow:
    """One trial as a page or a program reads it.

    Attributes:
        state: complete, pruned, failed or unfinished.
        value: the measure after training; of a pruned trial None.
        looks: held-out losses while it ran.
    """

    number: int
    state: str
    value: float | None
    chosen: dict[str, object]
    looks: list[float]
    run: str
    seconds: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**vars(self), "chosen": dict(self.chosen)}


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: None where no trial was finished.
        importance: how much each key decides.
    """

    tuning: Tuning
    like: Comparison
    rows: list[TrialRow]
    importance: dict[str, float]
    out: Path

    @property
    def best(self) -> TrialRow | None:
        done = [row for row in self.rows if row.state == "complete" and row.value is not None]
        sign = -1 if self.like.higher_is_better else 1
        return min(done, key=lambda row: sign * (row.value or 0.0), default=None)

    @property
    def recipe_path(self) -> Path:
        """The best recipe, once there is one."""
        return self.out / "best.yaml"

    def counts(self) -> dict[str, int]:
        """Return how many trials ended how."""
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in ("complete", "pruned", "failed", "unfinished")}

    def as_dict(self) -> dict[str, object]:
        """Return the search for programs."""
        best = self.best
        return {
            "measure": self.tuning.measure,
            "higher_is_better": self.like.higher_is_better,
            "best": None if best is None else {**best.as_dict(), "recipe": str(self.recipe_path)},
            "counts": self.counts(),
            "importance": self.importance,
            "space": {key: dimension.as_dict() for key, dimension in self.tuning.space.items()},
            "trials": [row.as_dict() for row in self.rows],
            "out": str(self.out),
        }


def search(tuning: Tuning, out: Path, tell: Callable[[str], None], workers: int = 1) -> Found:
    """Make the trials that are missing and return what they found; tables and page are written after each.

    Args:
        out: the folder of the study and its trials.
        tell: hears what is going on.
        workers: trials at once. With more than one, what is tried depends on which of them ends first.

    Raises:
        RunError: the folder holds another search.
        Interrupted: the user stopped it; called again it goes on.
    """
    require_search(tuning)
    like = _like(tuning)
    study = open_study(tuning, out, like.higher_is_better)
    if not tuning.prunes and tuning.pruner != "none":
        tell("No trial is stopped early: the held-out loss is measured at the end only. Set eval_steps to change that.")
    unfinished = [t for t in study.get_trials(deepcopy=False) if t.state.name == "RUNNING"]
    working: list[_Running] = []
    with interruptible():
        try:
            while True:
                while len(working) < workers:
                    begun = _begin(study, tuning, out, unfinished, tell)
                    if begun is None:
                        break
                    working.append(begun)
                if not working:
                    break
                time.sleep(PATIENCE_SECONDS)
                for running in list(working):
                    _look(running, like, tuning, tell)
                    if running.job.has_ended():
                        working.remove(running)
                        _end(study, running, tuning, tell)
                        write_found(read_found(study, tuning, like, out))
        except KeyboardInterrupt:
            stop_all([running.job for running in working])
            raise Interrupted(f"Stopped. Go on with: luthier tune {tuning.path}") from None
    found = read_found(study, tuning, like, out)
    write_found(found)
    return found


def _begin(
    study: optuna.Study, tuning: Tuning, out: Path, unfinished: list[FrozenTrial], tell: Callable[[str], None]
) -> _Running | None:
    """Start the next trial, one that a kill left behind first; None where all have been made."""
    while unfinished or len(study.get_trials(deepcopy=False)) - _waiting(study) < tuning.trials:
        trial = again(study, unfinished.pop(0), tuning) if unfinished else ask(study, tuning)
        chosen = choose(trial, tuning)
        run = RunDir(out / "trials" / f"trial-{trial.number:04d}")
        name = f"trial {trial.number}"
        try:
            job = Job(run.path.name, run, tuning.values(chosen, run.path), out / "recipes")
        except RecipeError as error:  # values that do not go together, each being right for itself
            _fail(study, trial, " ".join(problem.what for problem in error.problems), name, tell)
            continue
        verb = "goes on" if job.is_begun else "starts"
        tell(f"{name} of {tuning.trials} {verb}: {in_words(chosen)}")
        if not job.is_finished and not job.is_elsewhere:
            job.start()
        return _Running(trial, job, chosen)
    return None


def _waiting(study: optuna.Study) -> int:
    """Return the trials that are queued and have not begun."""
    return sum(trial.state.name == "WAITING" for trial in study.get_trials(deepcopy=False))


def _look(running: _Running, like: Comparison, tuning: Tuning, tell: Callable[[str], None]) -> None:
    """Let the study hear the held-out losses that are new, and stop a trial that lags behind."""
    stages = running.job.run.stages()
    curve = read_curves(stages[-1]).get("eval_loss") if stages else None
    if curve is None or running.is_pruned:
        return
    known = running.trial.study.get_trials(deepcopy=False)[running.trial.number].intermediate_values
    for index in range(len(running.looks), len(curve.values)):
        loss = float(curve.values[index])
        running.looks.append(loss)
        if index not in known and math.isfinite(loss):
            # A study that wants more hears less loss as more.
            running.trial.report(-loss if like.higher_is_better else loss, index)
    is_last = running.job.process is None or running.job.process.poll() is not None
    if tuning.prunes and running.looks and not is_last and running.trial.should_prune():
        running.is_pruned = True
        running.job.stop()
        tell(f"trial {running.trial.number} lags behind (held-out loss {number(running.looks[-1])}): stopped")


def _end(study: optuna.Study, running: _Running, tuning: Tuning, tell: Callable[[str], None]) -> None:
    from optuna.trial import TrialState

    job, name = running.job, f"trial {running.trial.number}"
    if not job.is_finished and running.is_pruned:
        study.tell(running.trial, state=TrialState.PRUNED)
        return
    if job.process is not None and job.process.returncode == Interrupted.exit_code:
        raise KeyboardInterrupt  # somebody stopped the run itself
    if not job.is_finished:  # one that was told to stop may have been finished by then
        failure = "" if job.process is None else job.failure()
        _fail(study, running.trial, failure or "the run is not finished", name, tell)
        return
    measured = outcome_of(job.run, job.name).measures.get(tuning.measure)
    value = measured.after if measured is not None else None
    if value is None or not math.isfinite(value):
        _fail(study, running.trial, f'"{tuning.measure}" is not a number', name, tell)
        return
    study.tell(running.trial, value)
    tell(f"{name} done: {tuning.measure} {measured.text(value) if measured else value}")


def _fail(study: optuna.Study, trial: Trial, reason: str, name: str, tell: Callable[[str], None]) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr(REASON, reason)
    study.tell(trial, state=TrialState.FAIL)
    tell(f"{name} failed: {reason}")


def _like(tuning: Tuning) -> Comparison:
    """Return the measure's metric and direction: of a task as the recipe says, of held-out rows by its name."""
    named = zip(measure_names(tuning.recipe), tuning.recipe.evaluate)
    task = next((task for name, task in named if name == tuning.measure), None)
    if isinstance(task, Task):
        return Comparison(tuning.measure, task.metric, None, None, higher=task.higher_is_better)
    metric = task.metric if task is not None else tuning.measure.removeprefix("held-out ").replace(" ", "_")
    return Comparison(tuning.measure, str(metric), None, None)


def read_found(study: optuna.Study, tuning: Tuning, like: Comparison, out: Path) -> Found:
    """Return what the study holds by now."""
    rows = []
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in words:
            continue
        sign = -1 if like.higher_is_better else 1
        looks = [sign * value for _, value in sorted(trial.intermediate_values.items())]
        run = RunDir(out / "trials" / f"trial-{trial.number:04d}")
        curve = [read_curves(stage).get("step_seconds") for stage in run.stages()]
        seconds = sum(float(c.values.sum()) for c in curve if c is not None)
        value = trial.value if trial.state.name == "COMPLETE" else None
        reason = str(trial.user_attrs.get(REASON, ""))
        rows.append(
            TrialRow(
                trial.number, words[trial.state.name], value, dict(trial.params), looks, str(run.path), seconds, reason
            )
        )
    return Found(tuning, like, rows, importances(study), out)


def write_found(found: Found) -> None:
    """Write search.json, the page, and the best recipe, ready to be run."""
    from luthier.run.experiments.tuning_page import write_page

    best = found.best
    if best is not None:
        values = {key: value for key, value in found.tuning.values(_given(found, best), Path()).items() if key != "run"}
        if found.tuning.recipe.eval_steps is None:
            values.pop("eval_steps", None)
        count = sum(found.counts().values())
        value = found.like.text(best.value)
        head = f"# The best of {count} trials: {found.tuning.measure} {value} (trial {best.number}).\n"
        head += f"# Train with it: luthier train {found.recipe_path}\n"
        write_atomic(found.recipe_path, head + write_yaml(values))
    write_json(found.out / "search.json", found.as_dict())
    write_page(found)


def _given(found: Found, row: TrialRow) -> dict[str, object]:
    """Return what a trial chose, as a recipe has it."""
    return {key: chosen_value(found.tuning.space[key], value) for key, value in row.chosen.items()}


def in_words(chosen: dict[str, object]) -> str:
    """Return what a trial chose in one line."""
    return ", ".join(f"{key} {number(v, 3) if isinstance(v, float) else v}" for key, v in chosen.items())
