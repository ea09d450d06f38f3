"""Searching: what may be searched, trials that are pruned, killed and gone on with, and the range test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from luthier.core.errors import MissingExtra, RecipeError, RunError
from luthier.optim.schedules import Cosine
from luthier.run.config import load_recipe
from luthier.run.experiments import search as searching
from luthier.run.experiments.jobs import Job
from luthier.run.experiments.lr_range import RangeTest, Rising, longest_fall
from luthier.run.experiments.search import search
from luthier.run.experiments.space import Choice, Range, read_space
from luthier.run.experiments.study import open_study
from luthier.run.experiments.tuning import Tuning, read_tuning, require_search
from luthier.run.plots import smooth
from recipes import luthier, pairs, write_recipe, write_rows

Folder = Callable[[str], Path]
SPACE = {"learning_rate": "1e-3..1e-1", "method.rank": [2, 4]}


def write(folder: Path, model: Path, tune: object = None, **keys: object) -> Path:
    """Write a recipe with a section `tune`."""
    write_rows(folder / "held.jsonl", pairs(6, seed=9))
    values = {"eval_data": "held.jsonl", "samples": 0, "run": None, "learning_rate": None, "max_steps": 8, **keys}
    path = write_recipe(folder, model, **values)
    path.write_text(json.dumps({**json.loads(path.read_text()), **({} if tune is None else {"tune": tune})}))
    return path


# ---------------------------------------------------------------------- the space


def test_ranges_and_choices_are_read_in_every_form():
    given = {
        "learning_rate": "1e-5..1e-2",
        "weight_decay": {"low": 0.0, "high": 0.1},
        "batch_size": {"low": 4, "high": 16, "step": 4},
        "warmup_steps": "0..20",
        "method": ["lora", {"kind": "lora", "rank": 2}],
    }
    space, problems = read_space(given, "here")
    assert problems == []
    assert space["learning_rate"] == Range(1e-5, 1e-2, log=True)
    assert space["weight_decay"] == Range(0.0, 0.1)
    assert space["batch_size"] == Range(4, 16, step=4.0, whole=True)
    assert space["warmup_steps"] == Range(0, 20, whole=True)
    assert space["method"] == Choice(("lora", {"kind": "lora", "rank": 2}))
    assert [space["batch_size"].holds(v) for v in (4, 8, 9, 17, True)] == [True, True, False, False, False]


WRONG: list[tuple[dict, str]] = [
    ({"lerning_rate": "1e-3..1e-2"}, 'Did you mean "learning_rate"'),
    ({"method.rnak": [1, 2]}, 'Did you mean "rank"'),
    ({"method.rank": [0, 4]}, "at least 1"),
    ({"learning_rate": "1e-2..1e-3"}, "not below high"),
    ({"learning_rate": "fast"}, "is no range"),
    ({"learning_rate": [1e-3]}, "at least two values"),
    ({"learning_rate": {"low": 1e-3, "hihg": 1}}, 'Did you mean "high"'),
    ({"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "lies above 0"),
    ({"eval_data": ["a", "b"]}, "luthier compare"),
    ({"seed": [1, 2]}, "luthier compare"),
    ({}, "space holds keys"),
]


@pytest.mark.parametrize(("space", "told"), WRONG, ids=[told for _, told in WRONG])
def test_a_wrong_space_is_told_before_anything_is_trained(
    space: dict, told: str, family_folder: Folder, tmp_path: Path
):
    with pytest.raises(RecipeError) as caught:
        require_search(read_tuning(write(tmp_path, family_folder("llama"), {"space": space})))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("tune", "keys", "told"),
    [
        ({"trails": 3}, {}, 'Did you mean "trials"'),
        ({"trials": 0}, {}, "at least 1"),
        ({"pruner": "medain"}, {}, 'Did you mean "median"'),
        ({"measure": "acc"}, {}, 'Nothing called "acc"'),
        ({"budget": {"step": 3}}, {}, 'Did you mean "steps"'),
        ({}, {"eval_data": None}, "eval_fraction: 0.1"),
        (["x"], {}, "tune holds"),
    ],
)
def test_a_wrong_section_is_told(tune: object, keys: dict, told: str, family_folder: Folder, tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        require_search(read_tuning(write(tmp_path, family_folder("llama"), tune, **keys)))
    assert told in str(caught.value)


def test_without_a_space_the_usual_one_of_the_method_is_searched(family_folder: Folder, tmp_path: Path):
    path = write(tmp_path, family_folder("llama"))
    tuning = read_tuning(path)
    require_search(tuning)
    assert set(tuning.space) == {"learning_rate", "method.rank", "batch_size", "warmup_ratio"}
    rate = tuning.space["learning_rate"]
    assert isinstance(rate, Range)
    assert rate.low < tuning.recipe.method.default_learning_rate < rate.high
    full = read_tuning(path, ["method=full"])
    require_search(full)
    assert "method.rank" not in full.space


def test_overrides_change_the_recipe_and_with_their_section_the_search(family_folder: Folder, tmp_path: Path):
    path = write(tmp_path, family_folder("llama"), {"space": SPACE})
    told = ["tune.trials=3", "tune.space.batch_size=[2, 4]", "weight_decay=0.1", "tune.budget.steps=24"]
    tuning = read_tuning(path, told)
    assert (tuning.trials, tuning.recipe.weight_decay, tuning.recipe.max_steps) == (3, 0.1, 24)
    assert tuning.space["batch_size"] == Choice((2, 4))
    assert tuning.values({}, Path("x"))["eval_steps"] == 3  # eight looks


# ---------------------------------------------------------------------- the search


def test_a_search_that_was_killed_goes_on_and_writes_the_best_recipe(
    family_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, family_folder("llama"), {"space": SPACE, "trials": 2, "startup": 2}, max_steps=6)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "luthier", "tune", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = out / "trials" / "trial-0000"
    deadline = time.monotonic() + 120
    while not (first / "resolved.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = (first / "resolved.json").stat().st_mtime_ns
    said = luthier(capsys, "tune", path, "--out", out, "--json")
    assert said.code == 0, said.err
    assert (first / "resolved.json").stat().st_mtime_ns == begun
    found = said.json
    assert found["counts"]["complete"] + found["counts"]["pruned"] == 2
    assert [row["number"] for row in found["trials"]] == [0, 1]
    # The first trial is the recipe as it is, as far as the space holds it.
    values = [row["value"] for row in found["trials"] if row["state"] == "complete"]
    assert found["best"]["value"] == min(values)
    row = found["trials"][found["best"]["number"]]
    report = json.loads((Path(row["run"]) / "report.json").read_text())
    assert report["eval"]["after"]["held-out loss"]["value"] == row["value"]
    assert len(row["looks"]) == 6
    best = load_recipe(out / "best.yaml")
    assert best.learning_rate == pytest.approx(row["chosen"]["learning_rate"])
    assert best.method.model_dump()["rank"] == row["chosen"]["method.rank"]
    assert best.run is None
    assert best.eval_steps is None
    page = (out / "search.html").read_text()
    assert "Trials in their order" in page
    assert 'class="plot axes"' in page
    assert "http" not in page.replace("http-equiv", "").replace("arXiv", "")
    # Another search does not go into the same folder; more trials of this one do.
    other = luthier(capsys, "tune", path, "--out", out, "tune.seed=5")
    assert other.code == 2
    assert "another search (seed differ)" in other.err


def tuning_of(folder: Path, family_folder: Folder, **section: object) -> Tuning:
    return read_tuning(write(folder, family_folder("llama"), {"space": SPACE, **section}))


class Made:
    """Trials that are made up: a run's folder with a curve, without a process."""

    def __init__(self, losses: Callable[[dict], list[float]]) -> None:
        self.losses, self.stopped = losses, []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Job, "start", lambda job: self.start(job))
        monkeypatch.setattr(Job, "stop", lambda job: self.stopped.append(job.run.path))
        monkeypatch.setattr(Job, "has_ended", lambda job: self.ended(job))
        monkeypatch.setattr(searching.time, "sleep", lambda _: None)

    def start(self, job: Job) -> None:
        job.process = SimpleNamespace(poll=lambda: None, returncode=0)  # type: ignore[assignment]
        recipe = dict(job.values)
        stage = job.run.path / "00-sft"
        stage.mkdir(parents=True)
        job.run.resolved.write_text(json.dumps({"recipe": recipe}))
        (stage / "metrics.jsonl").write_text("")

    def ended(self, job: Job) -> bool:
        """Add one look at each call; a run that was told to stop leaves, a whole one writes its report."""
        metrics = job.run.path / "00-sft" / "metrics.jsonl"
        losses = self.losses(dict(job.values))
        count = len(metrics.read_text().splitlines())
        if job.run.path in self.stopped:
            return True
        if count < len(losses):
            with metrics.open("a") as stream:
                stream.write(json.dumps({"step": count + 1, "eval_loss": losses[count], "step_seconds": 1.0}) + "\n")
            return False
        after = {"held-out loss": {"metric": "loss", "value": losses[-1], "n": 3}}
        job.run.report.write_text(json.dumps({"status": "finished", "eval": {"before": {}, "after": after}}))
        return True


def falling(values: dict) -> list[float]:
    """A curve that is the better the nearer the rate is to 0.01, and the larger the rank."""
    size = abs(np.log10(values["learning_rate"]) + 2) - 0.01 * values["method"]["rank"]
    return [3.0 + size - 0.1 * look for look in range(8)]


def test_trials_that_lag_behind_are_stopped_and_the_best_is_found(
    family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = Made(falling)
    made.patch(monkeypatch)
    found = search(tuning_of(tmp_path, family_folder, trials=14, startup=4), tmp_path / "out", lambda _: None)
    counts = found.counts()
    assert counts["complete"] + counts["pruned"] == 14
    assert counts["pruned"] == len(made.stopped) >= 2
    best = found.best
    assert best is not None
    assert abs(np.log10(best.chosen["learning_rate"]) + 2) < 0.4  # type: ignore[arg-type]
    assert set(found.importance) == set(SPACE)
    pruned = next(row for row in found.rows if row.state == "pruned")
    assert pruned.value is None
    assert 2 <= len(pruned.looks) < 8
    assert pruned.looks == pytest.approx(
        falling({"learning_rate": pruned.chosen["learning_rate"], "method": {"rank": pruned.chosen["method.rank"]}})[
            : len(pruned.looks)
        ]
    )


def test_a_search_that_is_interrupted_tries_what_it_would_have_tried(
    family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = Made(falling)
    made.patch(monkeypatch)
    whole = search(tuning_of(tmp_path, family_folder, trials=5, startup=2), tmp_path / "whole", lambda _: None)
    for trials in (2, 5):
        cut = search(tuning_of(tmp_path, family_folder, trials=trials, startup=2), tmp_path / "cut", lambda _: None)
    assert [row.chosen for row in cut.rows] == [row.chosen for row in whole.rows]
    assert len({row.chosen["learning_rate"] for row in whole.rows}) == 5
    other = search(tuning_of(tmp_path, family_folder, trials=5, startup=2, seed=1), tmp_path / "x", lambda _: None)
    assert [row.chosen for row in other.rows] != [row.chosen for row in whole.rows]
    with pytest.raises(RunError, match="another search"):
        search(tuning_of(tmp_path, family_folder, seed=1), tmp_path / "cut", lambda _: None)


def test_one_that_fails_does_not_end_the_rest(family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Made(falling)
    made.patch(monkeypatch)
    ended = made.ended

    def break_first(job: Job) -> bool:
        return True if job.name == "trial-0000" else ended(job)

    monkeypatch.setattr(Job, "has_ended", break_first)
    told: list[str] = []
    found = search(tuning_of(tmp_path, family_folder, trials=3), tmp_path / "out", told.append)
    assert [row.state for row in found.rows] == ["failed", "complete", "complete"]
    assert "trial 0 failed: the run is not finished" in told


def test_without_optuna_the_extra_is_named(family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"luthier\[tune\]"):
        open_study(tuning_of(tmp_path, family_folder), tmp_path / "out", False)


def test_a_base_and_a_section_make_a_search_of_their_own(family_folder: Folder, tmp_path: Path):
    write(tmp_path, family_folder("llama"))
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({"base": "recipe.json", "recipe": {"seed": 3}, "tune": {"space": SPACE}}))
    tuning = read_tuning(path)
    require_search(tuning)
    assert tuning.recipe.seed == 3
    path.write_text(yaml.safe_dump({"base": "recipe.json", "seed": 3}))
    with pytest.raises(RecipeError, match='no key "seed"'):
        read_tuning(path)


# ---------------------------------------------------------------------- the range test


def test_the_rate_of_the_test_rises_exponentially_to_the_peak():
    rising = Rising(start=1e-4)
    factors = [rising.factor(step, 9, 0) for step in range(9)]
    assert factors[0] == pytest.approx(1e-4)
    assert factors[-1] == 1.0
    assert np.diff(np.log(factors)) == pytest.approx([np.log(10) / 2] * 8)
    assert type(Cosine()) is not type(rising)


def test_the_suggestion_stands_in_the_fall_and_not_on_the_plateau():
    rates = np.logspace(-6, 0, 100)
    place = np.log10(rates)
    clean = 5 - 3 / (1 + np.exp(-4 * (place + 3))) + np.exp(6 * (place + 0.7))
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, 100)
    test = RangeTest(rates, noisy, smooth(noisy, 11), "all steps")
    assert test.steepest == pytest.approx(1e-3, rel=0.8)
    assert test.suggestion is not None
    assert 2e-4 < test.suggestion < 8e-3
    flat = RangeTest(rates, np.full(100, 5.0), np.full(100, 5.0), "all steps")
    assert (flat.valley, flat.steepest, flat.suggestion) == (None, None, None)
    assert longest_fall(np.array([3.0, 5.0, 4.0, 4.5, 2.0, 1.0, 6.0])) == (1, 5)


def test_the_range_test_trains_nothing_that_stays_and_needs_no_optuna(
    family_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = write(tmp_path, family_folder("llama"), {"lr_range": {"low": 1e-4, "high": 1.0, "steps": 30}})
    said = luthier(capsys, "tune", path, "--lr-range", "--out", tmp_path / "range", "--json")
    assert said.code == 0, said.err
    points = said.json["points"]
    assert points[0]["learning_rate"] == pytest.approx(1e-4)
    assert points[-1]["learning_rate"] <= 1.0
    assert {path.name for path in (tmp_path / "range").iterdir()} == {"lr_range.json", "lr_range.html"}
    assert "What the loss did" in (tmp_path / "range" / "lr_range.html").read_text()
    assert not (tmp_path / "runs").exists()
    again = luthier(capsys, "tune", path, "--lr-range", "--out", tmp_path / "range", "--json")
    assert again.json == said.json  # the same seed, the same test
    wrong = luthier(capsys, "tune", path, "--lr-range", "tune.lr_range.low=2")
    assert wrong.code == 2
    assert "low below high" in wrong.err
