"""Choosing rows: by what a model loses on them, by what they cover, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.core.batch import Example
from luthier.core.errors import UserError
from luthier.doctor.row_scores import Journal, RowScore, alone
from luthier.doctor.selection import Pool, choose, quality
from luthier.doctor.with_model import Reader
from luthier.models.load import load_model

WORDS = [
    "river",
    "stone",
    "cloud",
    "maple",
    "amber",
    "quiet",
    "harbour",
    "lantern",
    "meadow",
    "copper",
    "violet",
    "thunder",
]


def pool(texts: list[str], means: list[float] | None = None, ifds: list[float] | None = None) -> Pool:
    found = Pool()
    for number, text in enumerate(texts):
        mean, ifd = (values[number] if values else float("nan") for values in (means, ifds))
        found.add(number, text, mean, ifd, keeps_grams=True)
    return found


def select(*words: object) -> dict:
    result = CliRunner().invoke(app, ["select", *map(str, words), "--json"])
    if isinstance(result.exception, UserError):
        return {"problems": [p.what for p in result.exception.problems], "exit": result.exception.exit_code}
    return json.loads(result.stdout)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(tmp_path: Path, count: int = 30) -> tuple[Path, list[dict]]:
    draw = np.random.default_rng(0)
    rows = [
        {"instruction": f"Tell of {' and '.join(draw.choice(WORDS, 4))}.", "input": "", "output": f"{' '.join(draw.choice(WORDS, 6))}.", "id": i}
        for i in range(count)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def test_a_choice_by_diversity_covers_every_topic_before_it_repeats_one() -> None:
    topics = [
        "the old lighthouse keeper polished his brass lamp",
        "seven green parrots argued over a mango",
        "glaciers carve deep valleys out of granite",
    ]
    found = pool([f"{topic} on day {day}" for day in range(20) for topic in topics])
    chosen = choose(found, 3, ("diversity",))
    assert {int(index) % 3 for index in chosen} == {0, 1, 2}


def test_a_greedy_choice_is_that_of_looking_at_every_row_in_every_round() -> None:
    draw = np.random.default_rng(3)
    found = pool([" ".join(draw.choice(WORDS, 8)) for _ in range(60)])
    chosen = choose(found, 12, ("diversity",)).tolist()
    counts: dict[int, int] = {}
    for row in found.grams:
        for gram in row.tolist():
            counts[gram] = counts.get(gram, 0) + 1
    covered: set[int] = set()

    def adds(index: int) -> float:
        return sum(counts[g] ** -0.5 for g in found.grams[index].tolist() if g not in covered)

    for step, index in enumerate(chosen):
        best = max(adds(i) for i in range(60) if i not in chosen[:step])
        assert adds(index) == pytest.approx(best, rel=1e-4)
        covered |= set(found.grams[index].tolist())


def test_questions_that_do_not_help_come_last_and_the_most_demanding_first() -> None:
    found = pool([*"abcd"], [1.0] * 4, [0.2, 1.4, 0.9, 1.1])
    assert choose(found, 4, ("ifd",)).tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(("prefer", "first"), [("low", 0), ("middle", 2), ("high", 4)])
def test_which_perplexity_is_best_is_the_users_wish(prefer: str, first: int) -> None:
    found = pool([*"abcde"], [1.0, 2.0, 3.1, 4.0, 9.0], [0.5] * 5)
    assert choose(found, 1, ("perplexity",), prefer).tolist() == [first]  # type: ignore[arg-type]


def test_a_seed_decides_ties_and_nothing_else() -> None:
    found = pool([f"row {i}" for i in range(50)], [1.0] * 50, [0.5] * 50)
    first, again, other = (choose(found, 10, ("random",), seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert quality(found, ("ifd",), "middle", 0).max() == 1.0


def test_the_score_is_the_models_own_loss_with_and_without_the_question() -> None:
    import torch

    from luthier.doctor.row_scores import beginning, measure

    model = load_model("starter")
    asked = model.tokenizer("Who came to Leo?", add_special_tokens=False)["input_ids"]
    answer = model.tokenizer("It was Bella.", add_special_tokens=False)["input_ids"]
    tokens = np.array([*asked, *answer], dtype=np.int32)
    weights = np.array([0.0] * len(asked) + [1.0] * len(answer), dtype=np.float32)
    (score,) = measure([Example(tokens, weights)], Reader("starter", model.tokenizer, 256, model))

    def loss(ids: list[int], count: int) -> float:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return -float(sum(logits[i - 1, ids[i]] for i in range(len(ids) - count, len(ids))))

    assert score.tokens == len(answer)
    assert score.loss == pytest.approx(loss([*asked, *answer], len(answer)), rel=1e-4)
    assert score.alone == pytest.approx(loss([beginning(model.tokenizer), *answer], len(answer)), rel=1e-4)
    assert score.ifd == pytest.approx(score.loss / score.alone)


def test_each_answer_of_a_conversation_stands_alone() -> None:
    weights = np.array([0, 0, 1, 1, 0, 1], dtype=np.float32)
    pieces = alone(Example(np.arange(10, 16, dtype=np.int32), weights), begin=1)
    assert [piece.tokens.tolist() for piece in pieces] == [[1, 12, 13], [1, 15]]


def test_chosen_rows_are_written_as_they_stand_in_their_order_with_the_score_of_all(tmp_path: Path) -> None:
    path, rows = written(tmp_path)
    with path.open("a") as stream:
        stream.write(json.dumps(rows[4]) + "\n" + json.dumps({"instruction": "And?", "output": ""}) + "\n")
    out = tmp_path / "best.jsonl"
    told = select(path, "--best", 10, "--out", out)
    kept = rows_of(out)
    assert told["kept"] == len(kept) == 10
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)
    assert all(row == rows[row["id"]] for row in kept)
    assert told["left_out"] == {"not_chosen": 20, "copies": 1, "unscored": 0, "empty_answer": 1}
    scores = rows_of(Path(told["scores"]))
    assert len(scores) == 30
    assert {score["line"] - 1 for score in scores if score["kept"]} == {row["id"] for row in kept}
    assert all(score["loss"] > 0 and score["ifd"] > 0 for score in scores)


def test_scores_are_paid_once_also_after_a_kill(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    out = tmp_path / "best.jsonl"
    first = select(path, "--best", 10, "--out", out)
    journal = tmp_path / "best.jsonl.journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:20]) + "\n" + lines[20][:15])  # killed while it was written
    before = out.read_text()
    again = select(path, "--best", 10, "--out", out, "--force")
    assert (first["known_before"], again["known_before"]) == (0, 19)
    assert out.read_text() == before
    assert select(path, "--best", "20%", "--out", out, "--force")["known_before"] == 30


def test_scores_of_another_model_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"model": "a"})
    journal.add(["x"], [RowScore(1.0, 2.0, 3)])
    journal.close()
    assert Journal(path, {"model": "a"}).known == {"x": RowScore(1.0, 2.0, 3)}
    other = Journal(path, {"model": "b"})
    assert (other.known, other.was_other) == ({}, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--best", "0", "--out", "o.jsonl"], "neither a number of rows nor a share"),
        (["--best", "120%", "--out", "o.jsonl"], "neither a number of rows nor a share"),
        (["--best", "2.5", "--out", "o.jsonl"], "neither a number of rows nor a share"),
        (["--best", "5", "--out", "o.jsonl", "--by", "idf"], 'There is no score "idf".'),
        (["--best", "5", "--out", "o.jsonl", "--by", "random,ifd"], "goes by nothing else"),
        (["--best", "5", "--out", "o.csv"], "written as JSONL"),
        (["--best", "5", "--out", "rows.jsonl", "--force"], "overwrite the data"),
        (["--best", "5", "--out", "taken.jsonl"], "exists already"),
        (["--best", "5", "--out", "o.jsonl", "--model", "nowhere/at/all"], "no such model folder"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    Path("taken.jsonl").write_text("")
    told = select("rows.jsonl", *words)
    assert told["exit"] == 2
    assert said in told["problems"][0]
    assert not Path("o.jsonl").exists()


@pytest.mark.parametrize(
    "row", [{"text": "once upon a time"}, {"text": "fine film", "label": "good"}, {"prompt": "p?", "chosen": "a", "rejected": "b"}]
)  # fmt: skip
def test_rows_without_questions_and_answers_are_refused(row: dict, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    told = select(tmp_path / "rows.jsonl", "--best", 1, "--out", tmp_path / "o.jsonl", "--by", "diversity")
    assert "what is chosen is questions with their answers" in told["problems"][0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Leo."}]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Leo."}]},
        {"instruction": "Who?", "context": "", "response": "Leo."},
        {"question": "Who?", "answer": "Leo."},
    ],
)
def test_every_format_of_questions_and_answers_is_taken(row: dict, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert select(tmp_path / "rows.jsonl", "--best", 1, "--out", tmp_path / "o.jsonl", "--by", "diversity")["kept"] == 1
    assert rows_of(tmp_path / "o.jsonl") == [row]
