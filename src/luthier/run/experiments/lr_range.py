"""The learning-rate range test: one short run whose rate rises step by step until the loss breaks away.

Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186. The rate rises exponentially, as in
fastai. Two readings of the smoothed loss are given: where it falls fastest (steepest), and the middle of its longest
fall (valley), which is the suggestion: it depends less on single points.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from luthier import __version__
from luthier.core.errors import NonFiniteError, Problem, RecipeError
from luthier.core.rundir import RunDir, write_atomic, write_json
from luthier.optim.schedules import Schedule
from luthier.run.config import Recipe
from luthier.run.examine import Examined
from luthier.run.experiments.page import templates
from luthier.run.experiments.scatter import Curve, curves
from luthier.run.numbers import number
from luthier.run.plots import smooth
from luthier.run.screen import Screen

STEPS = 100
_BREAKS_AT = 4.0
"""The test ends when the smoothed loss is so many times its lowest."""
_BEGINS_AT = 0.1
"""The fall begins where this share of it is done."""
_LEAST_FALL = 0.02
"""A loss that falls by less than this share does not fall."""
_MEMORY = 0.9
"""Of the running mean that is watched for the end."""


class Rising(Schedule):
    """A rate that rises exponentially from `start` of the peak to the peak; it belongs to the test alone."""

    start: float

    def factor(self, step: int, total: int, warmup: int) -> float:
        return self.start ** (1 - step / max(total - 1, 1))


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw: rates, losses and smoothed losses (N,), and why it ended."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    ended: str

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate."""
        until = int(self.smoothed.argmin()) + 1
        if until < 3 or self.valley is None:
            return None
        slopes = np.gradient(self.smoothed[:until], np.log(self.rates[:until]))
        return float(self.rates[int(slopes.argmin())])

    @property
    def valley(self) -> float | None:
        """The rate in the middle of the longest fall of the smoothed loss; None where it never falls."""
        lowest = int(self.smoothed.argmin())
        least, most = float(self.smoothed[lowest]), float(self.smoothed[: lowest + 1].max())
        if most - least < _LEAST_FALL * abs(most):
            return None
        # The plateau before the fall goes down a little by chance, and is no part of it.
        above = np.flatnonzero(self.smoothed[: lowest + 1] > most - _BEGINS_AT * (most - least))
        first = int(above[-1])
        start, end = (first + index for index in longest_fall(self.smoothed[first : lowest + 1]))
        if end - start < 3:
            return None
        third = (end - start) / 3
        return float(self.rates[start + int(third) + int(third / 2)])

    @property
    def suggestion(self) -> float | None:
        return self.valley or self.steepest

    def as_dict(self) -> dict[str, object]:
        """Return the test for programs."""
        points = [
            {"learning_rate": float(rate), "loss": float(loss), "smoothed": float(smoothed)}
            for rate, loss, smoothed in zip(self.rates, self.losses, self.smoothed)
        ]
        return {
            "suggestion": self.suggestion,
            "valley": self.valley,
            "steepest": self.steepest,
            "lowest": float(self.rates[int(self.smoothed.argmin())]),
            "ended": self.ended,
            "points": points,
        }


def longest_fall(values: np.ndarray) -> tuple[int, int]:
    """Return where the longest run of ever smaller values, others between them allowed, begins and ends."""
    lengths = np.ones(len(values), dtype=int)
    before = np.arange(len(values))
    for index in range(1, len(values)):
        higher = np.flatnonzero(values[:index] > values[index])
        if len(higher):
            best = int(higher[lengths[higher].argmax()])
            lengths[index], before[index] = lengths[best] + 1, best
    end = start = int(lengths.argmax())
    while before[start] != start:
        start = int(before[start])
    return start, end


def require_range(recipe: Recipe) -> None:
    """Make sure that the objective has a loss whose fall says something.

    Raises:
        RecipeError: it has rewards instead.
    """
    if recipe.objective.data_form == "prompt":
        what = "The loss of an objective with rewards says nothing of how fast the model learns."
        remedy = "search learning_rate instead: luthier tune, without --lr-range"
        raise RecipeError(Problem(what, recipe.place("objective"), remedy))


def ends_of(recipe: Recipe, given: Mapping[str, float]) -> tuple[float, float, int]:
    """Return the lowest and highest rate and the steps: as given, else around the method's usual rate.

    Raises:
        RecipeError: the lowest is not below the highest.
    """
    usual = recipe.method.default_learning_rate * recipe.objective.learning_rate_factor
    low, high = float(given.get("low", usual / 100)), float(given.get("high", usual * 1000))
    steps = int(given.get("steps", STEPS))
    if not low < high or steps < 10:
        what = f"The test runs from {low:g} to {high:g} in {steps} steps."
        raise RecipeError(Problem(what, "tune.lr_range", "give low below high, and at least 10 steps"))
    return low, high, steps


def range_test(
    recipe: Recipe, found: Examined, ends: tuple[float, float, int], tell: Callable[[int, float, float], None]
) -> RangeTest:
    """Train for some steps with a rising rate, and forget what was trained.

    Args:
        recipe: with absolute paths.
        tell: hears step, rate and loss.
    """
    from luthier.run.assemble import assemble, choose_method, keep_reference, name_classes, open_tokenizer
    from luthier.run.datasets import render_stage
    from luthier.run.opened import load_for
    from luthier.run.teacher import open_teacher
    from luthier.run.training_loop import one_step

    low, high, steps = ends
    recipe = recipe.model_copy(update={"learning_rate": high, "max_steps": steps, "warmup_steps": 0, "samples": 0})
    with tempfile.TemporaryDirectory(prefix="luthier-range-") as folder:
        screen, run = Screen(quiet=True), RunDir(Path(folder))
        stage_folder = run.stage(0, "range")
        stage_folder.path.mkdir(parents=True)
        rendering = open_tokenizer(recipe, found)
        data = render_stage(rendering, found, run, screen)
        several = data.classes is not None and data.classes.is_multi
        model = load_for(recipe, rendering.tokenizer, name_classes(recipe, stage_folder, data), several)
        model.packs = model.packs and recipe.packing
        open_teacher(recipe, model, screen)
        keep_reference(recipe, stage_folder, data, model, screen)
        stage = assemble(choose_method(recipe, stage_folder, data, model), stage_folder, screen, data, model)
        stage.engine.schedule = Rising(start=low / high)
        rates: list[float] = []
        losses: list[float] = []
        ended, running, lowest = "all steps", 0.0, math.inf
        for step in range(1, steps + 1):
            try:
                row = one_step(stage)
            except NonFiniteError:
                ended = f"the loss was no number at step {step}"
                break
            rates.append(row["learning_rate"])
            losses.append(row["loss"])
            running = _MEMORY * running + (1 - _MEMORY) * row["loss"]
            mean = running / (1 - _MEMORY**step)
            lowest = min(lowest, mean)
            tell(step, row["learning_rate"], row["loss"])
            if mean > _BREAKS_AT * lowest:
                ended = f"the loss broke away at step {step}"
                break
    if len(rates) < 3:
        what = f"Nothing can be read off {len(rates)} steps: {ended}."
        raise RecipeError(Problem(what, "tune.lr_range", "begin with a lower rate: tune.lr_range.low=1e-8"))
    values = np.array(losses)
    return RangeTest(np.array(rates), values, smooth(values, max(3, len(values) // 10) | 1), ended)


def write_range(test: RangeTest, out: Path, recipe: Recipe) -> Path:
    """Write lr_range.json and lr_range.html into a folder, and return the page."""
    write_json(out / "lr_range.json", test.as_dict())
    suggestion = test.suggestion
    page = templates().get_template("lr_range.html").render(
        title="Learning-rate range test",
        method=recipe.method.title,
        model=recipe.model.path,
        test=test,
        suggestion=number(suggestion, 2) if suggestion is not None else "",
        steepest=number(test.steepest, 2) if test.steepest is not None else "",
        plot=_plot(test),
        points=len(test.rates),
        version=__version__,
    )  # fmt: skip
    write_atomic(out / "lr_range.html", page)
    return out / "lr_range.html"


def _plot(test: RangeTest) -> Markup:
    marks = [
        (rate, name) for name, rate in (("suggestion", test.valley), ("steepest", test.steepest)) if rate is not None
    ]
    # What comes after the loss broke away would press the rest flat.
    top = float(np.quantile(test.smoothed[: int(test.smoothed.argmin()) + 1], 1.0)) * 1.15
    shown = (Curve("each step", test.rates, test.losses, "faint"), Curve("smoothed", test.rates, test.smoothed, "line"))
    return curves("Loss against the learning rate", "nats per token, log scale", shown, marks, top)
