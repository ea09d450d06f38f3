"""`luthier tune RECIPE`: search for the best values of a recipe's keys, or for where a learning rate may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier.cli.layout import print_table
from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import Failure
from luthier.run.examine import examine
from luthier.run.experiments.search import Found, in_words, search
from luthier.run.experiments.tuning import Tuning, read_tuning
from luthier.run.numbers import number, percent


def run(
    recipe: Path,
    overrides: Sequence[str],
    trials: int | None = None,
    out: Path | None = None,
    workers: int = 1,
    lr_range: bool = False,
    json: bool = False,
) -> None:
    """Carry out a search, or go on with it.

    Raises:
        UserError: the file or the space is wrong, or the folder holds another search.
        MissingExtra: Optuna is not installed.
        Failure: no trial was finished.
    """
    tuning = read_tuning(recipe, overrides)
    if lr_range:
        _range(tuning, out or Path("runs") / f"{recipe.stem}-lr-range", json)
        return
    if trials is not None:
        tuning = replace(tuning, trials=trials)
    place = out or Path("runs") / f"{recipe.stem}-tune"
    found = search(tuning, place, stderr().print, workers)
    if json:
        print_json(found.as_dict())
    else:
        _show(found)
    if found.best is None and not json:
        reasons = " ".join(dict.fromkeys(row.reason for row in found.rows if row.reason))
        raise Failure(f"None of {len(found.rows)} trials was finished. {reasons}".strip())


def _show(found: Found) -> None:
    console = stdout()
    done = [row for row in found.rows if row.state == "complete" and row.value is not None]
    sign = -1 if found.like.higher_is_better else 1
    rows = [
        [str(row.number), found.like.text(row.value), in_words(row.chosen)]
        for row in sorted(done, key=lambda row: sign * (row.value or 0.0))[:10]
    ]
    if rows:
        print_table(console, ["trial", found.tuning.measure, "with"], [list(row) for row in rows], right=(0, 1))
    console.print()
    console.print(", ".join(f"{count} {state}" for state, count in found.counts().items() if count))
    if found.importance:
        console.print("decides: " + ", ".join(f"{key} {percent(share)}" for key, share in found.importance.items()))
    if found.best is not None:
        console.print(f"best recipe: {found.recipe_path}   (luthier train {found.recipe_path})")
    console.print(str(found.out / "search.html"))


def _range(tuning: Tuning, out: Path, json: bool) -> None:
    from luthier.run.experiments.lr_range import ends_of, range_test, require_range, write_range

    require_range(tuning.recipe)
    ends = ends_of(tuning.recipe, tuning.lr_range)
    found = examine(tuning.draft)
    recipe = found.require().located()
    console = stderr()
    said = max(1, ends[2] // 10)
    test = range_test(
        recipe,
        found,
        ends,
        lambda step, rate, loss: (
            console.print(f"step {step}/{ends[2]}  learning rate {number(rate, 3)}  loss {loss:.4f}")
            if step % said == 0
            else None
        ),
    )
    page = write_range(test, out, recipe)
    if json:
        print_json({**test.as_dict(), "page": str(page)})
        return
    result = stdout()
    if test.suggestion is None:
        result.print("The loss never falls: begin with a lower rate (tune.lr_range.low=1e-8).")
    else:
        result.print(f"learning_rate: {number(test.suggestion, 2)}   (the middle of the longest fall; {test.ended})")
        if test.steepest is not None:
            result.print(f"the loss falls fastest at {number(test.steepest, 2)}")
    result.print(str(page))
