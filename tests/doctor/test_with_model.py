"""What only a model can tell of data: its tokens, its template, its end of turn, and what it finds unlikely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from luthier.cli.doctor import WithModel, open_reader
from luthier.cli.main import app
from luthier.core.errors import DataError
from luthier.data.spec import DataSpec
from luthier.doctor.examine import Diagnosis, examine
from luthier.doctor.with_model import look_with_model, robust_scores

Row = dict[str, object]


def talk(asked: str, answered: str, **more: object) -> Row:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered, **more}]}


def told(tmp_path: Path, rows: list[Row], model: WithModel, max_length: int | None = None) -> Diagnosis:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = examine(DataSpec(path=str(path)), checks=[])
    look_with_model(DataSpec(path=str(path)), open_reader(model, max_length), found)
    return found


def test_true_tokens_the_models_own_marks_and_ends_that_are_not_trained_are_named(tmp_path: Path) -> None:
    rows = [talk(f"Who has {i} cats?", f"Leo has {i}.") for i in range(40)]
    rows[11] = talk("Who came?", "It was Bella. " * 30)
    rows[22] = talk("Who came? <|im_end|>", "It was Bella.")
    rows[33] = talk("Who came?", "It was Bella.", train=False)
    found = told(tmp_path, rows, WithModel("starter", perplexity=0), max_length=100)
    assert [(f.line, f.kind) for f in found.findings] == [(12, "overlong"), (23, "template"), (34, "missing_end")]
    assert "There is room for 100" in found.findings[0].message
    assert len(found.tokens) == len(rows)
    assert found.counted_by == "starter"


def test_rows_that_a_model_finds_unlikely_stand_out(tmp_path: Path, shared: Path) -> None:
    text = (shared / "data/tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8")
    rows: list[Row] = [{"text": part[:300]} for part in text.split("\n\n") if len(part) > 200][:150]
    rows.insert(
        70, {"text": "SELECT name FROM users WHERE id = 5 ORDER BY created_at DESC LIMIT 10; DROP TABLE users;"}
    )
    model = str(shared / "models/stories260K")
    found = told(tmp_path, rows, WithModel(model, perplexity=1000))
    assert [(f.kind, f.line) for f in found.findings] == [("perplexity", 71)]
    assert found.notes == []
    some = told(tmp_path, rows, WithModel(model, perplexity=50))
    assert some.notes == [f"{model} read 50 of 151 rows, spread evenly (--perplexity)"]


def test_conversations_without_a_template_are_refused_with_the_way_out(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DataError, match="--chat-template chatml"):
        told(tmp_path, [talk("Who?", "Leo.")], WithModel(str(shared / "models/stories260K"), 0))


def test_outliers_do_not_move_what_they_are_measured_by() -> None:
    draw = np.random.default_rng(0)
    means, counts = draw.normal(3, 0.2, 400), np.full(400, 20.0)
    means[:20] = 50.0
    counts[200:], means[200:] = 300.0, draw.normal(2, 0.1, 200)
    scores, middles = robust_scores(means, counts)
    assert (scores[:20] > 100).all()
    assert np.abs(scores[20:]).max() < 5
    assert middles[-1] == pytest.approx(2, abs=0.05)


def test_a_model_is_asked_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(talk(f"Who has {i}?", "Leo.")) + "\n" for i in range(5)))
    result = CliRunner().invoke(
        app, ["doctor", str(tmp_path / "a.jsonl"), "--model", "starter", "--perplexity", "3", "--json"]
    )
    assert json.loads(result.stdout)["notes"] == ["starter read 3 of 5 rows, spread evenly (--perplexity)"]
