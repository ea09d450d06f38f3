"""The page on which people compare answers: blind, by keyboard, and nothing that was said is lost or counted twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import RunError
from luthier.data.load import load_records
from luthier.data.spec import DataSpec
from luthier.serve.label.journal import Journal
from luthier.serve.label.pairs import Pair, is_swapped, make_pair, order_for, read_pairs, write_pairs
from luthier.serve.label.results import krippendorff_alpha, tally
from luthier.serve.label.server import Desk, make_app
from recipes import luthier, write_recipe, write_rows

PORT = 7899
HOST = {"host": f"127.0.0.1:{PORT}"}
SECRET = "a token that is long enough"
Capture = pytest.CaptureFixture[str]


def some_pairs(count: int = 24) -> list[Pair]:
    return [make_pair({"prompt": f"Tell of {i}."}, f"Tell of {i}.", f"good {i}", f"bad {i}") for i in range(count)]


@contextmanager
def desk(folder: Path, count: int = 24) -> Iterator[tuple[Desk, TestClient]]:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "out.jsonl.judgements.jsonl")
    made = Desk(some_pairs(count), journal, folder / "out.jsonl", SECRET)
    try:
        yield made, TestClient(make_app(made, PORT), headers={**HOST, "x-token": SECRET})
    finally:
        journal.close()


def state(client: TestClient, who: str) -> dict[str, Any]:
    return client.get("/state", params={"annotator": who}).json()


def say(client: TestClient, who: str, now: dict[str, Any], choice: str) -> dict[str, Any]:
    pair = now["pair"]["id"] if now["pair"] else ""
    body = {"annotator": who, "number": now["number"], "pair": pair, "choice": choice}
    answer = client.post("/judge", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def side_of(now: dict[str, Any], word: str) -> str:
    return "left" if now["pair"]["left"].startswith(word) else "right"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_twenty_comparisons_a_reload_and_a_second_annotator(tmp_path: Path) -> None:
    with desk(tmp_path) as (made, client):
        now = state(client, "Ada")
        for _ in range(12):
            now = say(client, "Ada", now, side_of(now, "good"))
        assert state(client, "Ada") == now  # a reload shows where it stood
        for _ in range(8):
            now = say(client, "Ada", now, side_of(now, "good"))
        other = state(client, "Bo")
        assert other["done"] == 0
        for _ in range(20):
            other = say(client, "Bo", other, side_of(other, "good"))
        assert state(client, "Ada")["done"] == 20
        assert other["tally"]["people"] == {"Ada": 20, "Bo": 20}
        assert other["tally"]["agreement"] == 1.0
        rows = lines(made.out)
    assert all(row["chosen"].startswith("good") and row["rejected"].startswith("bad") for row in rows)
    assert len(rows) == other["tally"]["written"]
    for objective in ("preference", "rated"):  # dpo, kto and reward read it as it is
        found = load_records(DataSpec(path=str(tmp_path / "out.jsonl")), objective=objective)  # type: ignore[arg-type]
        assert len(found) == len(rows) * (2 if objective == "rated" else 1)


def test_a_key_pressed_twice_and_a_request_sent_again_count_once(tmp_path: Path) -> None:
    with desk(tmp_path) as (made, client):
        first = state(client, "Ada")
        once = say(client, "Ada", first, "left")
        assert say(client, "Ada", first, "left") == once
        assert say(client, "Ada", first, "right") == once
        assert len(lines(made.journal.path)) == 1
        undone = say(client, "Ada", once, "undo")
        assert say(client, "Ada", once, "undo") == undone
        assert undone["pair"] == first["pair"]
        assert undone["done"] == 0
        assert [row["choice"] for row in lines(made.journal.path)][-1] == "undo"


def test_ties_skips_and_disagreement_are_counted_and_not_written(tmp_path: Path) -> None:
    with desk(tmp_path, count=3) as (made, client):
        ada, bo = state(client, "Ada"), state(client, "Bo")
        for _ in range(3):
            ada = say(client, "Ada", ada, side_of(ada, "good"))
        for _ in range(3):
            bo = say(client, "Bo", bo, side_of(bo, "bad"))
        assert lines(made.out) == []
        assert bo["tally"]["ties"] == 3
        assert bo["tally"]["agreement"] == 0.0
        cy = state(client, "Cy")
        for choice in ("tie", "skip", side_of(cy, "good")):
            cy = say(client, "Cy", cy, choice if choice != "left" and choice != "right" else side_of(cy, "good"))
        assert len(lines(made.out)) == 1
        assert cy["tally"]["skipped"] == 1


def test_neither_the_page_nor_what_it_is_sent_says_where_an_answer_came_from(tmp_path: Path) -> None:
    with desk(tmp_path) as (_, client):
        now = state(client, "Ada")
        assert set(now["pair"]) == {"id", "prompt", "left", "right"}
        page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text


def test_sides_and_order_are_shuffled_and_stay_the_same_for_a_person() -> None:
    pairs = some_pairs(200)
    sides = [is_swapped("Ada", pair) for pair in pairs]
    assert 60 < sum(sides) < 140
    assert sides == [is_swapped("Ada", pair) for pair in pairs]
    assert sides != [is_swapped("Bo", pair) for pair in pairs]
    assert order_for("Ada", pairs) == order_for("Ada", pairs) != order_for("Bo", pairs)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({**HOST, "x-token": "wrong"}, 403),
        ({**HOST, "x-token": ""}, 403),
        ({"host": "evil.example:7899", "x-token": SECRET}, 403),
        ({**HOST, "x-token": SECRET, "origin": "http://evil.example"}, 403),
        ({**HOST, "x-token": SECRET, "origin": f"http://127.0.0.1:{PORT}"}, 200),
        ({"host": f"localhost:{PORT}", "x-token": SECRET}, 200),
    ],
    ids=str,
)
def test_only_this_machine_with_the_token_gets_in(headers: dict[str, str], status: int, tmp_path: Path) -> None:
    with desk(tmp_path) as (made, _):
        bare = TestClient(make_app(made, PORT))
        assert bare.get("/state", params={"annotator": "Ada"}, headers=headers).status_code == status
        assert bare.get("/", headers=headers).status_code == status


def test_large_and_wrong_requests_change_nothing(tmp_path: Path) -> None:
    with desk(tmp_path) as (made, client):
        assert client.post("/judge", json={"annotator": "x" * 5000}).status_code == 413
        good = {"annotator": "Ada", "number": 0, "pair": some_pairs()[0].id, "choice": "left"}
        for wrong in ({"annotator": ""}, {"annotator": "a\nb"}, {"choice": "both"}, {"number": -1}):
            assert client.post("/judge", json={**good, **wrong}).status_code == 422
        assert client.post("/judge", json={**good, "pair": "nothing"}).status_code == 200
        assert lines(made.journal.path) == []


def test_a_torn_line_is_cut_off_and_two_servers_cannot_share_a_journal(tmp_path: Path) -> None:
    with desk(tmp_path) as (made, client):
        say(client, "Ada", state(client, "Ada"), "left")
        with pytest.raises(RunError, match="Another process"):
            Journal(made.journal.path)
    with made.journal.path.open("ab") as stream:
        stream.write(b'{"annotator": "Ada", "num')
    again = Journal(made.journal.path)
    assert again.said("Ada").lines == 1
    again.close()
    assert made.journal.path.read_bytes().endswith(b"}\n")


KEYS = st.tuples(st.sampled_from(["Ada", "Bo"]), st.sampled_from(["a", "b", "tie", "skip", "undo"]))


@settings(max_examples=25, deadline=None)
@given(keys=st.lists(KEYS, max_size=40))
def test_what_is_on_disk_is_what_was_said(
    keys: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "said.jsonl"
    pairs, journal = some_pairs(8), Journal(path)
    for who, choice in keys:
        person = journal.said(who)
        following = next((p.id for p in order_for(who, pairs) if p.id not in person.judged), "")
        if following or choice == "undo":
            journal.add(who, person.lines, following, choice)
    journal.close()
    again = Journal(path)
    assert again.people == {who: person for who, person in journal.people.items() if person.lines}
    assert tally(pairs, again.people) == tally(pairs, journal.people)
    again.close()


def test_alpha_is_that_of_krippendorffs_book() -> None:
    """The nominal example of Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C."""
    table = [
        "1 2 3 3 2 1 4 1 2 * * *",
        "1 2 3 3 2 2 4 1 2 5 * 3",
        "* 3 3 3 2 3 4 2 2 5 1 *",
        "1 2 3 3 2 4 4 1 2 5 1 *",
    ]
    units = [[v for v in column if v != "*"] for column in zip(*(row.split() for row in table))]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"]]) is None


def test_pairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_pairs(tmp_path / "p.jsonl", some_pairs(5))
    assert read_pairs(tmp_path / "p.jsonl") == some_pairs(5)
    (tmp_path / "p.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match="no pair"):
        read_pairs(tmp_path / "p.jsonl")


# ---------------------------------------------------------------------- the program itself


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "luthier", "label", "--out", str(folder / "prefs.jsonl"), "--port", "0", *words]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    address = ""
    for line in child.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            address = found.group()
            break
    try:
        yield child, address
    finally:
        child.kill()
        child.wait()


def client_of(address: str) -> Any:
    import httpx

    base, _, token = address.partition("/?token=")
    return httpx.Client(base_url=base, headers={"x-token": token}, timeout=10)


def test_a_killed_server_has_lost_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "a": f"good {i}", "b": f"bad {i}"} for i in range(20)]
    data = write_rows(tmp_path / "ab.jsonl", rows)
    with served(tmp_path, "--data", str(data)) as (child, address):
        client = client_of(address)
        now = client.get("/state", params={"annotator": "Ada"}).json()
        for _ in range(9):
            body = {"annotator": "Ada", "number": now["number"], "pair": now["pair"]["id"], "choice": "left"}
            now = client.post("/judge", json=body).json()
        child.send_signal(signal.SIGKILL)
        child.wait()
    with served(tmp_path, "--data", str(data)) as (child, again):
        assert again.partition("token=")[2] == address.partition("token=")[2]  # the open page goes on
        client = client_of(again)
        assert client.post("/judge", json=body).json()["number"] == 9  # what was sent before the kill counts once
        now = client.get("/state", params={"annotator": "Ada"}).json()
        assert now["done"] == 9
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 0
        assert child.stdout is not None
        assert "9 preferences" in child.stdout.read()
    assert len(lines(tmp_path / "prefs.jsonl")) == 9
    assert (tmp_path / ".prefs.jsonl.token").stat().st_mode & 0o077 == 0


def test_two_runs_answer_the_prompts_that_were_held_out(family_folder: Any, tmp_path: Path, capsys: Capture) -> None:
    for name in ("one", "two"):
        recipe = write_recipe(tmp_path / name, family_folder("llama"), eval_fraction=0.3, seed=len(name))
        assert luthier(capsys, "train", recipe, f"learning_rate={0.03 if name == 'two' else 0.001}").code == 0
    runs = [str(tmp_path / name / "run") for name in ("one", "two")]
    with served(tmp_path, *runs, "--limit", "4", "--max-new-tokens", "5", "--temperature", "1") as (_, address):
        now = client_of(address).get("/state", params={"annotator": "Ada"}).json()
        assert 1 <= now["total"] <= 4
        assert now["pair"]["left"] != now["pair"]["right"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to compare"),
        (["a", "b", "c"], "name one or two"),
        (["--data", "missing.jsonl"], "no such file"),
        (["starter"], "no prompts of its own"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_said(
    words: list[str], expected: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = luthier(capsys, "label", *words)
    assert said.code == 2
    assert expected in said.err
    assert "Traceback" not in said.err


def test_a_file_of_somebody_else_is_not_written_over(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "p.jsonl").write_text("mine\n")
    said = luthier(capsys, "label", "starter", "--out", tmp_path / "p.jsonl")
    assert said.code == 2
    assert (tmp_path / "p.jsonl").read_text() == "mine\n"


# ---------------------------------------------------------------------- in a browser


def _chromium() -> str:
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), "")
    if not found:
        pytest.skip("no Chromium on this machine")
    return found


def test_a_person_works_by_keyboard_through_a_reload_and_a_killed_server(tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    browser_path = _chromium()
    rows = [{"prompt": f"p{i}", "a": f"good {i}", "b": f"bad <b>{i}</b>"} for i in range(24)]
    data = str(write_rows(tmp_path / "ab.jsonl", rows))

    def wait(page: Any, count: int) -> None:
        until = time.monotonic() + 10
        while page.inner_text("#count").split()[:1] != [str(count)]:
            assert time.monotonic() < until, page.inner_text("#count")
            time.sleep(0.01)

    with api.sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        with served(tmp_path, "--data", data) as (child, address):
            page.goto(address)
            page.fill("#name", "Ada")
            page.keyboard.press("Enter")
            for count in range(12):
                wait(page, count)
                page.keyboard.press("12ts"[count % 4])
            wait(page, 12)
            page.reload()
            wait(page, 12)
            child.send_signal(signal.SIGKILL)
            child.wait()
        port = re.search(r":(\d+)/", address)
        assert port is not None
        with served(tmp_path, "--data", data, "--port", port[1]) as (_, again):
            page.goto(f"{again}&annotator=Ada")
            for count in range(12, 20):
                wait(page, count)
                page.keyboard.press("1")
            wait(page, 20)
            other = browser.new_context(locale="zh-CN").new_page()
            other.goto(again)
            other.fill("#name", "小明")
            other.keyboard.press("Enter")
            for count in range(20):
                wait(other, count)
                other.keyboard.press("2")
            wait(other, 20)
            assert "一样好" in other.inner_text("#tie")
        browser.close()
    said = lines(tmp_path / "prefs.jsonl.judgements.jsonl")
    assert [sum(row["annotator"] == who for row in said) for who in ("Ada", "小明")] == [20, 20]
    assert len({(row["annotator"], row["pair"]) for row in said}) == 40


# ---------------------------------------------------------------------- what a reviewer found


def test_two_people_at_once_lose_nothing_and_write_one_result(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with desk(tmp_path, count=30) as (made, client):

        def work(who: str) -> int:
            now = state(client, who)
            for _ in range(30):
                now = say(client, who, now, side_of(now, "good"))
            return now["done"]

        with ThreadPoolExecutor(3) as people:
            assert list(people.map(work, ["Ada", "Bo", "Cy"])) == [30, 30, 30]
        assert len(lines(made.journal.path)) == 90
        assert len(lines(made.out)) == 30


def test_an_empty_token_lets_nobody_in(tmp_path: Path) -> None:
    from luthier.serve.label.server import kept_token

    path = tmp_path / ".token"
    path.touch()
    token = kept_token(path)
    assert len(token) >= 16
    assert kept_token(path) == token
    assert path.stat().st_mode & 0o077 == 0


def test_strange_line_ends_in_answers_come_back(tmp_path: Path) -> None:
    pairs = [make_pair({"prompt": "p"}, "p", "a\u2028b\u0085c\x0b", "d\ud800e")]
    write_pairs(tmp_path / "p.jsonl", pairs)
    assert read_pairs(tmp_path / "p.jsonl") == pairs


def test_a_full_disk_does_not_double_what_is_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "said.jsonl")
    assert journal.add("Ada", 0, "p1", "a")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="cannot be written down"):
            journal.add("Ada", 1, "p2", "b")
    assert journal.add("Ada", 1, "p2", "b")
    journal.close()
    again = Journal(tmp_path / "said.jsonl")
    assert again.said("Ada").judged == {"p1": "a", "p2": "b"}
    assert again.said("Ada").lines == 2
    again.close()


def test_one_vote_beside_a_tie_decides_nothing(tmp_path: Path) -> None:
    with desk(tmp_path, count=1) as (made, client):
        now = state(client, "Ada")
        say(client, "Ada", now, side_of(now, "good"))
        assert len(lines(made.out)) == 1
        say(client, "Bo", state(client, "Bo"), "tie")
        assert lines(made.out) == []
