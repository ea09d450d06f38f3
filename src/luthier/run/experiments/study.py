"""The memory of a search: Optuna's study in a file of the search's folder.

What is tried next is a function of the seed, the trial's number and what the trials before it gave, so a search that
was killed goes on as it would have. SQLite's own locks and journal survive a kill -9.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import MissingExtra, Problem, RunError
from luthier.run.experiments.space import Choice, Range
from luthier.run.experiments.tuning import LOOKS, Tuning

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

STUDY = "study.db"
_TUNING = "luthier:tuning"
REASON = "reason"


def require_optuna() -> None:
    """Make sure that Optuna is there.

    Raises:
        MissingExtra: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MissingExtra("optuna", "tune", "Searching for the best recipe") from None


def open_study(tuning: Tuning, out: Path, higher_is_better: bool) -> optuna.Study:
    """Return the study of a folder, a new one or the one that was begun there.

    Raises:
        RunError: the folder holds another search.
        MissingExtra: Optuna is not installed.
    """
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{(out / STUDY).resolve()}",
        study_name="luthier",
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
        pruner=_pruner(tuning),
    )
    told = json.loads(json.dumps(tuning.as_dict(), default=str))
    known = study.user_attrs.get(_TUNING)
    if known is None:
        study.set_user_attr(_TUNING, told)
        start = _start(tuning)
        if start:
            study.enqueue_trial(start)
    elif known != told:
        differs = ", ".join(key for key in told if known.get(key) != told[key])
        what = f"The folder holds another search ({differs} differ)."
        raise RunError(Problem(what, str(out), "choose another folder with --out, or delete it"))
    return study


def ask(study: optuna.Study, tuning: Tuning) -> Trial:
    """Return the next trial with everything chosen."""
    number = len(study.get_trials(deepcopy=False))
    study.sampler = _sampler(tuning, number)
    trial = study.ask()
    choose(trial, tuning)
    return trial


def choose(trial: Trial, tuning: Tuning) -> dict[str, object]:
    """Return what a trial tries; what was chosen before a kill stays."""
    return {key: _suggest(trial, key, dimension) for key, dimension in tuning.space.items()}


def again(study: optuna.Study, frozen: FrozenTrial, tuning: Tuning) -> Trial:
    """Return a trial that a kill has left unfinished, to go on with."""
    import optuna

    study.sampler = _sampler(tuning, frozen.number)
    return optuna.trial.Trial(study, frozen._trial_id)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return how much each key decides, as shares; empty where there are too few trials to tell.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), which asks what sets the better trials apart.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in done}) < 4:
        return {}
    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # it says so where all trials tried the same
        return {}
    return {key: float(share) for key, share in found.items() if math.isfinite(share)}


def _suggest(trial: Trial, key: str, dimension: Range | Choice) -> object:
    if isinstance(dimension, Choice):
        # Optuna keeps plain values; anything longer goes by its JSON.
        plain = [_word(value) for value in dimension.values]
        return chosen_value(dimension, trial.suggest_categorical(key, plain))
    if dimension.whole:
        step = int(dimension.step or 1)
        return trial.suggest_int(key, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
    return trial.suggest_float(key, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def chosen_value(dimension: Range | Choice, kept: object) -> object:
    """Return a value as a recipe has it, of what the study keeps for it."""
    if not isinstance(dimension, Choice):
        return kept
    return next(value for value in dimension.values if _word(value) == kept)


def _word(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, sort_keys=True)


def _sampler(tuning: Tuning, number: int) -> optuna.samplers.BaseSampler:
    import optuna

    seed = zlib.crc32(f"{tuning.seed}/{number}".encode())
    if tuning.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=tuning.startup)


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    import optuna

    if tuning.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=tuning.startup, n_warmup_steps=1)
    if tuning.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=LOOKS, reduction_factor=2)
    return optuna.pruners.NopPruner()


def _start(tuning: Tuning) -> dict[str, object]:
    """Return the recipe's own values where they lie in the space: the first trial is the recipe as it is."""
    recipe = tuning.recipe.resolved().dump()
    start: dict[str, object] = {}
    for key, dimension in tuning.space.items():
        here: object = recipe
        for part in key.split("."):
            here = here.get(part) if isinstance(here, Mapping) else None
        if dimension.holds(here):
            start[key] = _word(here)
    return start
