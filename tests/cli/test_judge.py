"""`luthier judge`: both orders, flaky endpoints, kill -9, constitutions, local judges: nothing lost or paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import families
from judge_server import FAULTS, JudgeServer, Messages, always_first, longer_wins, score_by_length, serving
from luthier.data.load import load_records
from luthier.data.records import Preference, PromptAnswer, answer_of
from luthier.data.spec import DataSpec
from luthier.evaluate.judging.rows import Columns, Task, read_tasks
from luthier.evaluate.judging.verdicts import compare
from luthier.rewards.judging.endpoint import Address, Endpoint
from luthier.rewards.judging.journal import Journal
from luthier.rewards.judging.judge import Judge
from made_run import make_run
from recipes import luthier, write_rows

ROWS = [{"prompt": f"question {i}", "a": "x" * (i + 1), "b": "y" * (2 * i + 1)} for i in range(12)]
"""b is longer but in the first row, whose answers are equally long."""


@pytest.fixture(autouse=True)
def _patient_and_poor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    draw = "luthier.rewards.judging.endpoint.Address.__init__"
    before = Address.__init__

    def hurried(self: Address, *args: object, **kwargs: object) -> None:
        before(self, *args, **{**kwargs, "backoff": 0.01})  # type: ignore[arg-type]

    monkeypatch.setattr(draw, hurried)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ask(server: JudgeServer, out: Path, *words: object) -> list[object]:
    return ["--endpoint", server.url, "--model", "judge", "--out", out, *words]


# ---------------------------------------------------------------------- both orders


def test_pairs_are_asked_in_both_orders_and_dpo_reads_what_comes_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "out" / "prefs.jsonl"
    with serving(JudgeServer(longer_wins)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out, "--json", "--price-in", 2, "--price-out", 10))
    assert said.code == 0, said.err
    result = said.json
    assert (result["kept"], result["ties"], result["disagreed"], result["undecided"]) == (11, 1, 0, 0)
    assert result["first_share"] == 0.5
    assert (result["requests"], result["from_journal"], result["retried"]) == (24, 0, 0)
    assert (result["tokens_in"], result["tokens_out"]) == (2400, 240)
    assert result["cost"] == result["cost_now"] == pytest.approx(2400 * 2e-6 + 240 * 10e-6)
    assert read(out)[0] == {"prompt": "question 1", "chosen": "yyy", "rejected": "xx"}
    records = load_records(DataSpec(path=str(out)), objective="preference").records
    assert len(records) == 11
    assert all(isinstance(r, Preference) for r in records)


def test_a_judge_that_always_says_a_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    with serving(JudgeServer(always_first)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out))
    assert said.code == 0
    assert read(out) == []
    assert "won 100% of verdicts" in said.out
    assert "orders disagree" in said.out


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["A", "B", "tie", "?"]), min_size=2, max_size=2), st.booleans())
def test_a_pair_counts_only_when_both_orders_name_the_same_answer(verdicts: list[str], swap: bool) -> None:
    class Scripted:
        def __init__(self) -> None:
            self.left = list(verdicts)

        def ask(self, messages: Messages, key: str = "") -> object:
            from luthier.rewards.judging.endpoint import Reply

            return Reply(json.dumps({"winner": self.left.pop(0) if self.left else "?"}))

        def stop(self) -> None: ...

        def close(self) -> None: ...

    judge = Judge(Scripted(), "m", 0.0, Journal(None), attempts=1)  # type: ignore[arg-type]
    asked = PromptAnswer("p", "", "", "", (), False, "1")
    answers = ("one", "two") if not swap else ("two", "one")
    task = Task({"prompt": "p"}, "p", asked, answers, answers, {}, "1")
    outcome = compare(judge, [task], "r", 1, lambda done, total: None)
    expected = {("A", "B"): 0, ("B", "A"): 1}.get(tuple(verdicts))
    assert outcome.kept + outcome.ties + outcome.disagreed + outcome.undecided == 1
    assert [row["chosen"] for row in outcome.rows] == ([] if expected is None else [answers[expected]])
    assert outcome.ties == (verdicts == ["tie", "tie"])
    assert outcome.undecided == ("?" in verdicts)


# ---------------------------------------------------------------------- nothing lost, nothing paid twice


def test_a_flaky_endpoint_loses_nothing_and_is_paid_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    plan = [(), *((fault,) for fault in FAULTS), ("500", "cut"), ("429", "garbage", "hang-up")]
    with serving(JudgeServer(longer_wins, plan=plan)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out, "--json", "--timeout", 1.5))
        assert said.code == 0, said.err
        assert said.json["kept"] == 11
        assert said.json["retried"] == sum(server.requests.values()) - 24
        assert said.json["retried"] > 10
        first = read(out)
        again = luthier(capsys, "judge", data, *ask(server, out, "--json"))
    assert len(server.paid) == 24
    assert set(server.paid.values()) == {1}
    assert (again.json["requests"], again.json["from_journal"]) == (0, 24)
    assert read(out) == first


def test_kill_9_and_the_same_command_again_pay_for_nothing_twice(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    plan = [(), ("500",), ("429",), (), ("cut",)]
    environment = {**os.environ, "OPENAI_API_KEY": ""}
    with serving(JudgeServer(longer_wins, plan=plan)) as server:
        words = [str(w) for w in ask(server, out, "--json", "--concurrency", 3, "--timeout", 20)]
        command = [sys.executable, "-m", "luthier", "judge", str(data), *words]
        for answered in (7, 15):
            server.hold_after, server.holding = answered, 0
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            until = time.monotonic() + 60
            # Every worker waits for the server: what was answered is on disk, since that comes before the next request.
            while server.holding < 3 and time.monotonic() < until:
                time.sleep(0.01)
            assert server.holding >= 3, process.communicate(timeout=5)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not out.exists()
            assert len(read(tmp_path / "prefs.jsonl.journal")) == sum(server.paid.values()) >= answered
        server.hold_after = None
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["kept"] == 11
    assert len(read(out)) == 11
    assert len(server.paid) == 24
    assert set(server.paid.values()) == {1}


def test_ctrl_c_waits_for_answers_on_their_way_and_says_how_to_go_on(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"

    def slowly(messages: Messages) -> str:
        time.sleep(0.1)
        return longer_wins(messages)

    with serving(JudgeServer(slowly)) as server:
        words = [str(w) for w in ask(server, out, "--concurrency", 2)]
        command = [sys.executable, "-m", "luthier", "judge", str(data), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while sum(server.paid.values()) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 130
        kept = len(read(tmp_path / "prefs.jsonl.journal"))
        assert kept == sum(server.paid.values()) < 24
        assert f"{kept} answers are kept in" in error


def test_an_endpoint_that_falls_silent_leaves_rows_open_for_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    plan = [*[()] * 7, ["500"] * 3, *[()] * 100]
    with serving(JudgeServer(longer_wins, plan=plan)) as server:
        words = ask(server, out, "--retries", 1, "--concurrency", 1)
        said = luthier(capsys, "judge", data, *words)
        assert said.code == 1
        assert "1 rows are open" in said.err
        assert "run the same command again" in said.err
        assert len(read(out)) == 10
        assert luthier(capsys, "judge", data, *words).code == 0
        assert len(read(out)) == 11
    assert set(server.paid.values()) == {1}


def test_an_endpoint_that_is_not_there_ends_soon_and_keeps_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    with serving(JudgeServer(longer_wins)) as server:
        server.status = (503, {}, "")
        said = luthier(capsys, "judge", data, *ask(server, out, "--retries", 1, "--concurrency", 1))
    assert said.code == 1
    assert "did not answer in 2 tries: status 503" in said.err
    assert "the same command goes on" in said.err
    assert len(server.headers) == 6  # three questions in a row, twice each
    assert not out.exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_the_users_to_mend_and_asked_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-key")
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "prefs.jsonl"
    with serving(JudgeServer(longer_wins)) as server:
        server.status = (status, {}, '{"error": {"message": "no: sk-secret-key"}}')
        words = ask(server, out, "--api-key-env", "JUDGE_KEY", "--concurrency", 1)
        said = luthier(capsys, "judge", data, *words)
    assert said.code == 2
    assert f"status {status}: no: ***" in said.err
    assert len(server.headers) == 1
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"sk-secret-key" not in written + said.err.encode() + said.out.encode()


def test_rows_with_the_same_content_are_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", [ROWS[5]] * 6), tmp_path / "prefs.jsonl"
    with serving(JudgeServer(longer_wins)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out, "--json"))
    assert said.json["requests"] == 2
    assert said.json["tokens_in"] == 200
    assert len(read(out)) == 6


def test_a_file_that_judge_did_not_write_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", ROWS), tmp_path / "mine.jsonl"
    out.write_text("mine\n")
    with serving(JudgeServer(longer_wins)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out))
        assert said.code == 2
        assert "--force" in said.err
        assert out.read_text() == "mine\n"
        assert luthier(capsys, "judge", data, *ask(server, out, "--force")).code == 0
    assert len(read(out)) == 11


# ---------------------------------------------------------------------- scores, rubrics, forms of rows


def test_rows_with_one_answer_are_scored_by_the_rubric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "p", "answer": "x" * n} for n in (3, 30, 7)]
    data, out, rubric = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "scored.jsonl", tmp_path / "r.md"
    rubric.write_text("Only haiku count.")
    with serving(JudgeServer(score_by_length)) as server:
        said = luthier(capsys, "judge", data, *ask(server, out, "--rubric", rubric, "--json"))
    assert said.code == 0, said.err
    assert [row["score"] for row in read(out)] == [3, 10, 7]
    assert read(out)[0] == {"prompt": "p", "answer": "xxx", "score": 3}
    assert all("Only haiku count." in body["messages"][0]["content"] for body in server.bodies)


CHOSEN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
REJECTED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
FORMS: list[tuple[dict[str, object], str, tuple[str, ...]]] = [
    ({"prompt": "hi", "a": "x", "b": "y"}, "hi", ("x", "y")),
    ({"instruction": "do", "input": "this", "response_a": "x", "response_b": "y"}, "do\nthis", ("x", "y")),
    ({"question": "hi", "answers": ["x", "y", "x", "z"]}, "hi", ("x", "y", "z")),
    ({"prompt": "hi", "chosen": "x", "rejected": "y"}, "hi", ("x", "y")),
    ({"chosen": CHOSEN, "rejected": REJECTED}, "hi", ("yes", "no")),
    ({"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]}, "hi", ("yes", "no")),
    ({"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}, "hi", ("yes", "no")),
    ({"prompt": CHOSEN[:1], "responses": ["x", "y"]}, "hi", ("x", "y")),
]


@pytest.mark.parametrize(("row", "prompt", "answers"), FORMS, ids=[str(list(row)) for row, _, _ in FORMS])
def test_pairs_are_recognised_however_they_are_written(
    tmp_path: Path, row: dict[str, object], prompt: str, answers: tuple[str, ...]
) -> None:
    found = read_tasks(write_rows(tmp_path / "rows.jsonl", [row]), answers=2)
    (task,) = found.tasks
    assert (task.prompt, task.answers) == (prompt, answers)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": CHOSEN}, ("hi", ("yes",))),
        ({"prompt": "hi", "completion": "yes"}, ("hi", ("yes",))),
        ({"instruction": "hi", "input": "", "output": "yes"}, ("hi", ("yes",))),
    ],
    ids=["messages", "pair", "alpaca"],
)
def test_single_answers_are_recognised_too(tmp_path: Path, row: dict, expected: tuple[str, tuple[str, ...]]) -> None:
    (task,) = read_tasks(write_rows(tmp_path / "rows.jsonl", [row])).tasks
    assert (task.prompt, task.answers) == expected
    assert not any("yes" in str(value) for value in task.given.values())


@pytest.mark.parametrize(("row", "prompt", "answers"), FORMS, ids=[str(list(row)) for row, _, _ in FORMS])
def test_what_is_written_is_read_as_the_preference_that_was_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], prompt: str, answers: tuple[str, ...]
) -> None:
    def last_wins(messages: Messages) -> str:
        later = sorted(answers, reverse=True)
        text = messages[0]["content"]
        first = min(later, key=lambda a: (f"\n{a}\n" not in text, text.find(f"\n{a}\n")))
        present = [a for a in later if f"\n{a}\n" in text]
        return json.dumps({"winner": "A" if first == present[0] else "B"})

    data, out = write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "prefs.jsonl"
    with serving(JudgeServer(last_wins)) as server:
        assert luthier(capsys, "judge", data, *ask(server, out)).code == 0
    records = load_records(DataSpec(path=str(out)), objective="preference").records
    assert len(records) == len(answers) * (len(answers) - 1) // 2
    for record in records:
        assert isinstance(record, Preference)
        assert answer_of(record.chosen) > answer_of(record.rejected)


def test_empty_answers_are_left_out_and_said(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "a": "x", "b": ""}, {"prompt": "p", "a": "x", "b": "y"}]
    found = read_tasks(write_rows(tmp_path / "rows.jsonl", rows), answers=2)
    assert [task.answers for task in found.tasks] == [("x", "y")]
    assert "left out" in str(found.warnings[0])
    lists = [{"prompt": "p", "answers": ["x", " "]}, {"prompt": "p", "answers": ["x", "", "z"]}]
    found = read_tasks(write_rows(tmp_path / "lists.jsonl", lists), answers=2)
    assert [task.answers for task in found.tasks] == [("x", "z")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"q": "hi", "left": "x", "right": "y"}])
    (task,) = read_tasks(rows, Columns("q", ("left", "right")), answers=2).tasks
    assert (task.prompt, task.answers, dict(task.given)) == ("hi", ("x", "y"), {"q": "hi"})


@pytest.mark.parametrize(
    ("row", "words", "said"),
    [
        ({"prompt": "hi"}, (), "no columns that hold"),
        ({"prompt": "hi", "a": "x", "b": "y"}, ("--answers", "a,c"), 'no column "c"'),
        ({"a": "x", "b": "y"}, (), "no prompt"),
        ({"prompt": "hi", "a": "x", "b": "x"}, (), "nothing to judge"),
    ],
    ids=["no answers", "no column", "no prompt", "all alike"],
)
def test_rows_that_cannot_be_judged_are_told_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict, words: tuple[str, ...], said: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [row])
    with serving(JudgeServer(longer_wins)) as server:
        shown = luthier(capsys, "judge", data, *ask(server, tmp_path / "out.jsonl", *words))
    assert shown.code == 2
    assert said in shown.err
    assert server.headers == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "There is no judge"),
        (("--endpoint", "http://127.0.0.1:1", "--judge", "starter", "--model", "m"), "several judges"),
        (("--endpoint", "http://127.0.0.1:1"), "not named"),
        (("--endpoint", "http://127.0.0.1:1", "--model", "m", "--rate", "0"), "--rate has to be"),
        (("--endpoint", "http://127.0.0.1:1", "--model", "m", "--scale", "10,1"), "no scale"),
        (("--judge", "starter", "--price-in", "3"), "no effect"),
        (("--reward", "exactmatch"), "no reward"),
        (("--reward", "exact_match", "--constitution", "c.md"), "cannot rewrite"),
        (("--endpoint", "nowhere", "--model", "m"), "no address"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    shown = luthier(capsys, "judge", data, "--out", tmp_path / "out.jsonl", *words)
    assert shown.code == 2
    assert said in shown.err


def test_the_samples_of_a_run_and_of_two_runs_can_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name).path for name in ("one", "two")]
    samples = runs[1] / "00-sft" / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"after": "', '"after": "Longer: '))
    with serving(JudgeServer(longer_wins)) as server:
        one = luthier(capsys, "judge", runs[0], *ask(server, tmp_path / "one.jsonl", "--json"))
        two = luthier(capsys, "judge", *runs, *ask(server, tmp_path / "two.jsonl", "--json"))
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert two.json["kept"] == two.json["rows"] > 0
    assert all(row["chosen"].startswith("Longer: ") for row in read(tmp_path / "two.jsonl"))


# ---------------------------------------------------------------------- constitutions


def reviser(messages: Messages) -> str:
    """Answer prompts, criticise, and revise by adding a word."""
    if len(messages) == 1 and "[answer " not in messages[0]["content"]:
        return "first answer"
    if len(messages) == 1:
        return "It could be kinder."
    return "<think>hm</think>kind answer"


def test_a_constitution_makes_rows_to_copy_and_rows_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ("rude answer", None, "kind answer")
    rows = [{"prompt": f"p{i}", "answer": answer} for i, answer in enumerate(answers, 1)]
    data, out, principles = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "cai.jsonl", tmp_path / "c.md"
    principles.write_text("- Be kind.\n- Be short.\n")
    with serving(JudgeServer(reviser, plan=[(), ("500",)])) as server:
        words = ask(server, out, "--constitution", principles, "--json")
        said = luthier(capsys, "judge", data, *words)
        assert said.code == 0, said.err
        assert luthier(capsys, "judge", data, *words).json["requests"] == 0
    result = said.json
    assert (result["kept"], result["answers"], result["unchanged"]) == (2, 3, 1)
    assert read(out) == [
        {"prompt": "p1", "chosen": "kind answer", "rejected": "rude answer"},
        {"prompt": "p2", "chosen": "kind answer", "rejected": "first answer"},
    ]
    assert read(tmp_path / "cai.sft.jsonl") == [{"prompt": f"p{i}", "answer": "kind answer"} for i in (1, 2, 3)]
    assert len(load_records(DataSpec(path=str(out)), objective="preference")) == 2
    assert len(load_records(DataSpec(path=str(tmp_path / "cai.sft.jsonl")))) == 3
    assert set(server.paid.values()) == {1}
    asked = " ".join(body["messages"][0]["content"] for body in server.bodies)
    assert "Be kind." in asked or "Be short." in asked


def test_several_rounds_take_the_principles_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p1", "answer": "rude"}])
    (tmp_path / "c.md").write_text("- Be kind.\n- Be short.\n")
    with serving(JudgeServer(reviser)) as server:
        words = ask(server, tmp_path / "cai.jsonl", "--constitution", tmp_path / "c.md", "--rounds", 2)
        assert luthier(capsys, "judge", data, *words).code == 0
    critiques = [b["messages"][0]["content"] for b in server.bodies if len(b["messages"]) == 1]
    assert sorted("kind." in c for c in critiques) == [False, True]


def test_a_local_model_can_criticise_and_rewrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "w5 w6", "answer": "w7"}, {"prompt": "w8"}])
    (tmp_path / "c.md").write_text("- w9 w10\n")
    out = tmp_path / "cai.jsonl"
    words = ["--judge", family_folder("llama"), "--constitution", tmp_path / "c.md", "--max-tokens", 4]
    said = luthier(capsys, "judge", data, "--out", out, *words, "--json")
    assert said.code == 0, said.err
    assert said.json["answers"] + said.json["undecided"] == 2
    again = luthier(capsys, "judge", data, "--out", out, *words, "--json")
    assert again.json["requests"] == 0


# ---------------------------------------------------------------------- judges without an endpoint


def test_a_function_judges_without_an_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text("def score(prompts, answers, rows):\n    return [len(a) for a in answers]\n")
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    said = luthier(capsys, "judge", "pairs.jsonl", "--reward", "rewards.py:score", "--out", "p.jsonl", "--json")
    assert (said.json["kept"], said.json["ties"]) == (11, 1)
    assert read(tmp_path / "p.jsonl")[1]["score_chosen"] == 5.0
    words = ["--reward", "{kind: regex, pattern: yyy}", "--out", "q.jsonl", "--json", "--margin", "0.5"]
    assert luthier(capsys, "judge", "pairs.jsonl", *words).json["kept"] == 11
    words = ["--reward", "rewards.py:score", "--out", "s.jsonl", "--score", "--json"]
    assert luthier(capsys, "judge", "pairs.jsonl", *words).json["kept"] == 24
    (tmp_path / "rewards.py").write_text("def score(prompts, answers, rows):\n    return [1.0]\n")
    broken = luthier(capsys, "judge", "pairs.jsonl", "--reward", "rewards.py:score", "--out", "t.jsonl")
    assert broken.code == 2
    assert "rewards.py:1: score returned 1 numbers for 24 answers" in broken.err


def test_a_local_model_judges_by_its_log_probabilities_or_as_a_reward_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    settings = families.config("llama", num_labels=1)
    scored = tmp_path / "reward-model"
    families.enlarge(AutoModelForSequenceClassification.from_config(settings)).save_pretrained(scored)
    families.tokenizer().save_pretrained(scored)
    rows = [{"prompt": f"w{i} ", "a": f"w{i + 1} w{i + 2}", "b": f"w{i + 3}"} for i in range(5, 15)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    for name, model in (("logprob", family_folder("llama")), ("model", scored)):
        out = tmp_path / f"{name}.jsonl"
        said = luthier(capsys, "judge", data, "--judge", model, "--out", out, "--json")
        assert said.code == 0, said.err
        assert said.json["kept"] == 10
        assert all(row["score_chosen"] > row["score_rejected"] for row in read(out))
    assert read(tmp_path / "logprob.jsonl") != read(tmp_path / "model.jsonl")


def test_an_endpoint_that_is_opened_is_closed_with_the_judge(tmp_path: Path) -> None:
    with serving(JudgeServer(longer_wins)) as server:
        endpoint = Endpoint(Address(server.url, "judge"))
        Judge(endpoint, "judge", 0.0, Journal(None)).close()
        assert endpoint._wire._client.is_closed


# ---------------------------------------------------------------------- answers of a model


def test_a_model_answers_prompts_and_the_same_command_judges_the_same_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    rows = [{"prompt": f"w{i} w{i + 1} "} for i in range(5, 25)]
    data, out, again = write_rows(tmp_path / "prompts.jsonl", rows), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    writer = ["--sample", family_folder("llama"), "--samples", 3, "--max-new-tokens", 6, "--seed", 4]
    words = [*writer, "--reward", "{kind: length, at_most: 1, slack: 100}", "--json"]
    said = luthier(capsys, "judge", data, "--out", out, *words)
    assert said.code == 0, said.err
    assert said.json["rows"] + said.json["alike"] == 20
    assert said.json["kept"] > 20
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in read(out))
    journal = tmp_path / "a.jsonl.journal"
    kept, judged = journal.read_bytes(), read(out)
    journal.write_bytes(kept[: len(kept) // 2])
    assert luthier(capsys, "judge", data, "--out", out, *words).json["kept"] == said.json["kept"]
    assert read(out) == judged
    luthier(capsys, "judge", data, "--out", again, *words, "--seed", 5)
    assert read(again) != judged
    records = load_records(DataSpec(path=str(out)), objective="preference").records
    assert len(records) == len(judged)


def test_one_sample_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "w5"}])
    words = ["--out", tmp_path / "o.jsonl", "--reward", "exact_match", "--sample", "starter", "--samples", 1]
    said = luthier(capsys, "judge", data, *words)
    assert said.code == 2
    assert "--samples 2" in said.err


def test_the_starter_is_no_run_wherever_runs_lie_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.run.opened import is_run

    make_run(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert [is_run(name) for name in ("one", "two", "starter")] == [True, True, False]
