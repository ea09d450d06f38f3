"""Intervals, differences, fronts, and the page: what a few seeds say and what they do not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from luthier.run.experiments.carry_out import write_table
from luthier.run.experiments.cell import Cell
from luthier.run.experiments.file import Budget
from luthier.run.experiments.outcome import Outcome
from luthier.run.experiments.ranking import COSTS, front, standings
from luthier.run.experiments.statistics import Spread, holm, paired, t_quantile, t_tail
from luthier.run.experiments.table import Plan, Table
from luthier.run.summary import Comparison

LOSS = "held-out loss"


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)]
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, quantile: float):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)
    assert t_tail(quantile, degrees) == pytest.approx(0.05, abs=1e-4)
    assert t_tail(0.0, degrees) == 1.0


def test_a_paired_difference_is_that_of_a_worked_example():
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.4641, p = 0.0742 (two degrees of freedom).
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert found.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert paired([3.0], [1.0]).p is None


def test_holm_asks_more_of_many_comparisons():
    assert holm({"a": 0.04}) == {"a"}
    assert holm({"a": 0.04, "b": 0.03}) == set()
    assert holm({"a": 0.04, "b": 0.01}) == {"a", "b"}


def cell(name: str, losses: list[float], memory: int = 100, seconds: float = 1.0, stories: float = 1.0) -> Cell:
    runs = []
    for seed, loss in enumerate(losses):
        measures = {
            LOSS: Comparison(LOSS, "loss", 3.0, loss, 20),
            "general stories": Comparison("general stories", "loss", 1.0, stories + seed / 100, 9),
        }
        runs.append(
            Outcome(
                name,
                f"runs/{name}/seed-{seed}",
                model="m",
                method={"kind": "lora"},
                trainable_parameters=10,
                total_parameters=100,
                peak_bytes=memory,
                train_seconds=seconds,
                steps=5,
                tokens=70,
                measures=measures,
                seed=seed,
            )
        )
    return Cell(name, runs, seeds=len(losses))


BEST = cell("best", [1.0, 1.1, 1.2], memory=300, seconds=3.0)
NEAR = cell("near", [1.02, 1.08, 1.25], memory=200, seconds=2.0)
FAR = cell("far", [2.0, 2.11, 2.19], memory=100, seconds=4.0)


def test_only_differences_that_the_seeds_show_are_called_one():
    found = standings([BEST, NEAR, FAR], LOSS)
    assert [found[name].verdict for name in ("best", "near", "far")] == ["best", "no difference shown", "worse"]
    assert found["far"].seeds == 3
    alone = standings([cell("a", [1.0]), cell("b", [2.0])], LOSS)
    assert alone["b"].verdict == "one seed"
    assert alone["b"].difference is not None
    assert alone["b"].difference.mean == 1.0


def test_pairs_are_of_the_same_seed_whatever_is_missing():
    late = Cell("late", [run for run in FAR.runs if run.seed == 2], seeds=3)
    found = standings([BEST, NEAR, late], LOSS)
    assert found["late"].seeds == 1
    assert found["late"].difference is not None
    assert found["late"].difference.mean == pytest.approx(2.19 - 1.2)
    lucky = Cell("lucky", [cell("lucky", [0.5]).runs[0]], seeds=3)
    assert standings([BEST, NEAR, lucky], LOSS)["best"].verdict == "best"  # not the one that lost two seeds


def test_on_the_front_stand_those_that_none_beats_at_the_same_cost():
    rows = [BEST, NEAR, FAR, cell("waste", [1.5], memory=250, seconds=9.0)]
    assert front(rows, LOSS, COSTS["memory"]) == ["far", "near", "best"]
    assert front(rows, LOSS, COSTS["seconds"]) == ["near", "best"]


def test_a_row_for_programs_has_means_intervals_and_every_seed():
    table = Table([BEST, NEAR, FAR], Plan("x", Budget("steps", 5)))
    row = table.as_dict()["rows"][1]  # type: ignore[index]
    assert (row["n_seeds"], row["seeds"], row["peak_bytes"], row["trainable_share"]) == (3, [0, 1, 2], 200, 0.1)
    assert row["quality"]["values"] == [1.02, 1.08, 1.25]
    assert row["quality"]["mean"] == pytest.approx(1.11667, abs=1e-4)
    low, high = row["quality"]["interval"]
    assert low < 1.02
    assert high > 1.2
    assert row["retained"]["mean"] == pytest.approx(1.01)
    assert row["measures"][LOSS]["after"] == row["quality"]["mean"]
    assert row["versus_best"]["verdict"] == "no difference shown"
    assert row["pareto"] == ["memory", "seconds"]
    assert table.as_dict()["quality"] == LOSS
    assert Spread.of([2.0]) == Spread(2.0, (2.0,), None)


def test_the_measure_that_is_named_ranks():
    assert Table([BEST, NEAR], Plan(quality="general stories")).quality == "general stories"
    assert Table([BEST, NEAR]).retained == "general stories"
    assert Table([BEST, NEAR], Plan(left_out=(LOSS,))).measures == ["general stories"]


def test_a_measure_on_other_cases_does_not_rank():
    other = cell("other", [0.1])
    other.runs[0].measures[LOSS] = Comparison(LOSS, "loss", 3.0, 0.1, 7)
    table = Table([BEST, other])
    assert table.quality == ""
    assert "held-out loss was measured on different numbers of cases" in table.differences
    assert table.standings == {}


def test_runs_off_their_budget_are_told():
    assert Table([BEST], Plan(budget=Budget("tokens", 69))).differences == []
    assert "tokens are not the budget's" in Table([BEST], Plan(budget=Budget("tokens", 71))).differences[0]
    assert "steps are not the budget's" in Table([BEST], Plan(budget=Budget("steps", 4))).differences[0]


def test_the_page_opens_alone_and_has_every_row_and_plot(tmp_path: Path):
    broken = Cell("broken", [], seeds=3, failures=("The loss of step 1 is <nan>.",) * 3)
    refused = Cell("refused", [], refused="Llama has no biases.")
    write_table(Table([BEST, NEAR, FAR, broken, refused], Plan("ranks & rates", Budget("seconds", 60))), tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "ranks &amp; rates" in page
    assert "1 min of training" in page
    for name in ("best", "near", "far", "broken", "refused"):
        assert f"</span>{name}" in page
    assert "3 of 3 failed: The loss of step 1 is &lt;nan&gt;." in page
    assert "left out: Llama has no biases." in page
    assert page.count("<figure") == 4  # against what was retained, memory, time and share
    assert page.count('class="whisker"') == 4 * 3
    assert page.count('class="pareto"') >= 2
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][3]["failures"] == 3
    assert "no difference shown" in (tmp_path / "comparison.md").read_text()


def test_runs_of_one_seed_are_held_against_each_other_by_the_same_cases(tmp_path: Path):
    def run(name: str, right: list[int]) -> Cell:
        stage = tmp_path / name / "00-sft"
        stage.mkdir(parents=True)
        score = sum(right) / len(right)
        cases = [[value, 1.0] for value in right]
        kept = {"metric": "accuracy", "score": score, "interval": [0, 1], "n": len(right), "cases": cases}
        kept |= {"aggregate": "mean", "higher_is_better": True}
        (stage / "eval_cases.json").write_text(json.dumps({"after": {"task": kept}}))
        measures = {"task": Comparison("task", "accuracy", 0.1, score, len(right))}
        return Cell(name, [Outcome(name, str(tmp_path / name), model="m", seed=0, measures=measures)])

    rows = [run("best", [1] * 30 + [0] * 10), run("near", [1] * 29 + [0] * 11), run("far", [1] * 8 + [0] * 32)]
    found = standings(rows, "task")
    assert [found[row.name].verdict for row in rows] == ["best", "no difference shown", "worse"]
    assert found["far"].basis == "cases"
    assert found["far"].difference is not None
    assert found["far"].difference.mean == pytest.approx(-22 / 40)
    (tmp_path / "far" / "00-sft" / "eval_cases.json").unlink()
    assert standings(rows, "task")["far"].verdict == "one seed"
