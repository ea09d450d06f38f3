"""The experiments that ship: each can be run, and one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.run.experiments.contest import read_contest
from recipes import luthier

FOLDER = Path(__file__).parents[2] / "examples" / "experiments"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def test_the_questions_that_were_promised_are_there():
    names = {path.stem for path in EXAMPLES}
    assert names >= {"full-lora-qlora", "which-layers", "data-size", "instruction-length", "masked-instruction"}
    assert "rank-sweep" in names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_experiment_that_ships_can_be_run(path: Path):
    contest = read_contest(path)
    assert [v.refused for v in contest.variants] == [""] * len(contest.variants)
    assert len(contest.variants) > 1
    assert len(contest.seeds) == 3
    assert contest.budget is not None
    assert f"luthier compare examples/experiments/{path.name}" in path.read_text(encoding="utf-8")


def test_one_of_them_is_run_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = [
        "seeds=1",
        "budget.tokens=1200",
        "eval_data.limit=5",
        "evaluate.0.data.limit=1",
        "evaluate.1.data={limit: 2}",
    ]
    small[-1:] = ["evaluate.1.data={path: starter:stories, limit: 2}"]
    said = luthier(capsys, "compare", FOLDER / "masked-instruction.yaml", "--out", tmp_path / "out", *small, "--json")
    assert said.code == 0, said.err
    table = said.json
    assert [row["name"] for row in table["rows"]] == ["train_on_assistant", "train_on_all"]
    assert table["quality"] == "held-out answers"
    assert table["retained"] == "general ability (stories)"
    assert table["budget"] == {"tokens": 1200.0}
    assert table["differences"] == []
    rows = [row["measures"]["held-out answers"] for row in table["rows"]]
    assert rows[0]["before"] == rows[1]["before"]
    assert rows[0]["n"] == 5
    assert "held-out loss" not in table["rows"][0]["measures"]
    assert (tmp_path / "out" / "comparison.html").is_file()
