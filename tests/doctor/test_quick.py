"""The quick look before every check and every run: copies and leaks among all rows, the rest in a sample."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.data.records import Labelled, PromptAnswer, Record
from luthier.doctor.quick import quick_look, spread, summary


def asked(i: int, answer: str = "") -> PromptAnswer:
    return PromptAnswer(f"How many legs have {i} cats?", answer or f"They have {4 * i}.", "", "", (), False, f"a:{i}")


def test_copies_and_leaks_are_found_among_all_rows() -> None:
    records: list[Record] = [asked(i) for i in range(3000)]
    records[2900] = asked(17)
    found = quick_look(records, [asked(5000), asked(41)])
    assert [f.kind for f in found.findings] == ["duplicate", "leak"]
    assert "a:17" in found.findings[0].message
    assert found.notes == ["copies and leaks were looked for in all rows, everything else in 200 of them"]
    assert summary(found).startswith("1 duplicate, 1 leak")


def test_small_data_are_looked_at_whole() -> None:
    records: list[Record] = [asked(i) for i in range(50)]
    records[33] = asked(33, "As an AI language model, I cannot count legs.")
    found = quick_look(records)
    assert [(f.kind, f.line) for f in found.findings] == [("refusal", 33)]
    assert found.notes == []
    assert quick_look([]).findings == []


def test_labelled_rows_with_the_same_text_and_another_label_are_no_copies() -> None:
    rows: list[Record] = [Labelled("good", "", "a", "f:1"), Labelled("good", "", "b", "f:2")]
    assert quick_look(rows).findings == []


def test_a_sample_is_spread_evenly() -> None:
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []


def test_check_says_what_a_quick_look_found(tmp_path: Path) -> None:
    rows = [{"prompt": f"How many legs have {i} cats?", "answer": f"They have {4 * i}."} for i in range(40)]
    rows.append(rows[3])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "recipe.yaml").write_text("model: starter\nmethod: lora\nobjective: sft\ndata: rows.jsonl\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "recipe.yaml"), "--json"])
    told = json.loads(result.stdout)["doctor"]
    assert told["summary"].startswith("1 duplicate")
    assert [f["line"] for f in told["findings"]] == [41]
