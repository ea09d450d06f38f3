"""Which keys may differ in a comparison, and what has to hold so that all of it is measured on the same cases."""

from __future__ import annotations

from collections.abc import Collection

from luthier.core.errors import Problem, did_you_mean
from luthier.run.config import Recipe

HOW = (
    "method",
    "learning_rate",
    "optimizer",
    "schedule",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "dtype",
    "micro_batch_size",
    "packing",
    "gradient_checkpointing",
    "cache_frozen",
)
"""How is trained: these leave what is trained on, how much, and what is measured as they are."""
WHAT = (
    "data",
    "objective",
    "train_on",
    "max_length",
    "on_overlong",
    "batch_size",
    "regularizers",
    "mix",
    "curriculum",
)
"""What is trained on: with these, runs see different rows or tokens, so a budget has to make them equal."""
LENGTH = ("epochs", "max_steps")
"""How long is trained: the question of an experiment itself, or set by its budget."""
SHAPE = ("train_on", "max_length", "on_overlong")
"""Keys that also shape the held-out rows, whose loss then says nothing; whole answers are measured beside it."""
_INSTEAD = {
    "model": "use models for several models",
    "seed": "use seeds: [0, 1, 2]",
    "eval_data": "set it for all, under recipe: what is measured must be the same",
    "eval_fraction": "set it for all, under recipe: what is measured must be the same",
    "evaluate": "set it for all, under recipe: what is measured must be the same",
}


def may_differ() -> list[str]:
    """Return the keys of a recipe that may differ."""
    return [key for key in (*HOW, *WHAT, *LENGTH) if key in Recipe.model_fields]


def key_problem(key: str, place: str, has_budget: bool, varied: Collection[str]) -> Problem | None:
    """Return why a key, perhaps with dots, may not differ here; None where it may.

    Args:
        varied: the top keys that differ in the whole experiment.
    """
    top = key.partition(".")[0]
    if top not in Recipe.model_fields:
        what = f'There is no key "{key}".{did_you_mean(top, may_differ())}'
        return Problem(what, place, f"these may differ: {', '.join(may_differ())}")
    if top in HOW:
        return None
    if top in LENGTH:
        what = f"{key} may not differ where a budget says how long is trained."
        return Problem(what, place, "take budget away, or the key") if has_budget else None
    if top in WHAT:
        if has_budget or set(varied) & set(LENGTH):
            return None
        what = f"With {key}, runs are trained on different rows, so they need an equal budget."
        return Problem(what, place, "add budget: {steps: 200} (or tokens, seconds, epochs)")
    what = f"{key} may not differ: the rows of the table could not be held against each other."
    return Problem(what, place, _INSTEAD.get(top, f"set {top} for all, under recipe"))


def held_out_problems(shared: Recipe, varied: Collection[str], place: str) -> list[Problem]:
    """Return why the recipes of an experiment would not be measured on the same cases."""
    if shared.eval_fraction > 0 and "data" in varied:
        what = "The held-out rows are a share of data (eval_fraction), so they would differ as data does."
        return [Problem(what, place, "name them instead, under recipe: eval_data: FILE")]
    shaping = sorted(set(varied) & set(SHAPE))
    if shaping and shared.eval_data is None and not shared.evaluate:
        what = f"{', '.join(shaping)} shapes the held-out rows too, so nothing is measured that is the same for all."
        return [Problem(what, place, "add rows to measure whole answers on, under recipe: eval_data: FILE")]
    return []
