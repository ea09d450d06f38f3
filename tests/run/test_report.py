"""The report page: complete for a finished run, honest for a killed one, self-contained and small for any."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.rundir import RunDir, write_json
from luthier.run import numbers
from luthier.run.environment import collect_environment
from luthier.run.facts import recipe_in_short
from luthier.run.plots import downsample, log_ticks, nice_ticks, smooth
from luthier.run.report import language_of, write_report
from luthier.run.summary import compare, read_curves, read_run
from made_run import make_run, metrics_row

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Reads a page as a browser would, and notes what does not nest, what it links to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[k] for k in ("href", "src") if given.get(k)]
        self.ids += [given["id"]] if given.get("id") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def page_of(run: RunDir) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_a_finished_run_shows_results_answers_data_audit_and_recipe(tmp_path):
    text = page_of(make_run(tmp_path / "stories")).text
    for said in (
        "Finished after 60 steps",
        "stories",
        "model starter",
        "10.0 k of 1.00 M parameters",
        "12.0% → 62.0%",
        "秋月上东墙。",
        "equals the reference",
        "66.7%",
        "100% of the rows every answer learns to stop",
        "170 tokens the median; the longest has 812",
        "Only what the method declared has moved",
        "A processor",
        "8.00 GiB",
        "3 rows were cut at max_length <2048>.",
        "data: 我的数据.jsonl",
        "method: {kind: lora, rank: 16}",
    ):
        assert said in text, said


def test_a_killed_run_shows_what_there_is_and_how_to_go_on(tmp_path):
    run = make_run(tmp_path / "killed", finished=False)
    text = page_of(run).text
    assert "Interrupted at step 30 of 60" in text
    assert f"luthier resume {run.path} goes on from the checkpoint at step 25." in text
    assert "not generated yet" in text
    assert "Loss" in text


@pytest.mark.parametrize("left", ["resolved.json", "metrics.jsonl", "eval.json", "samples.jsonl", "report.json"])
def test_every_single_file_may_be_missing_or_torn(tmp_path, left):
    for content in (None, "", '{"torn": [1, 2', "[]", "null", "\x00\x00"):
        run = make_run(tmp_path / f"{left}-{abs(hash(content))}")
        (file,) = run.path.rglob(left)
        file.unlink() if content is None else file.write_text(content)
        assert page_of(run).text


def test_a_torn_file_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    run.report.write_text('{"run": ')
    assert "report.json is torn" in page_of(run).text


def test_an_empty_run_still_gives_a_page(tmp_path):
    run = RunDir(tmp_path)
    write_json(run.resolved, {})
    assert "Interrupted at step 0" in page_of(run).text


def test_a_failed_run_says_why(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run.report, {"status": "failed", "error": "Step 12: loss nan <rows.jsonl:3>"})
    assert "Step 12: loss nan <rows.jsonl:3>" in page_of(run).text


def test_the_page_fetches_nothing_and_its_links_lead_somewhere(tmp_path):
    run = make_run(tmp_path / "run")
    run.examples_page.parent.mkdir()
    run.examples_page.write_text("")
    page = page_of(run)
    raw = run.report_page.read_text(encoding="utf-8")
    assert "url(" not in raw
    assert not re.search(r"https?://", raw)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.removeprefix("#") in page.ids if link.startswith("#") else (run.path / link).is_file()


@settings(max_examples=15, deadline=None)
@given(st.text(min_size=1, max_size=80))
def test_no_text_of_a_user_can_become_markup(text):
    text = f"</script></pre><img src=x onerror=alert(1)>{{{{7*7}}}}{text}"
    with tempfile.TemporaryDirectory() as home:
        run = make_run(Path(home) / "run", steps=25)
        stage = run.stages()[0]
        row = dict.fromkeys(("prompt", "reference", "before", "after"), text)
        stage.samples.write_text(json.dumps(row) + "\n", encoding="utf-8")
        stage.log.write_text(text, encoding="utf-8", errors="replace")
        write_json(stage.eval, {"before": {text: {"metric": text, "value": 1.0}}, "after": {}})
        write_json(run.resolved, {"recipe": {"model": text, "epochs": 3}})
        write_json(run.report, {"status": "finished", "warnings": [text], "data": {"files": [text], "format": text}})
        write_report(run)
        raw = run.report_page.read_text(encoding="utf-8")
    assert "<img" not in raw
    assert raw.count("<script") == raw.count("</script>")


def test_writing_the_page_again_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert [p.name for p in run.path.glob(".*.tmp")] == []


def test_a_long_run_with_long_samples_stays_below_one_megabyte(tmp_path):
    run = make_run(tmp_path / "run", steps=20_000)
    stage = run.stages()[0]
    long = {"prompt": "诗" * 9_000, "reference": "x" * 9_000, "before": "<" * 9_000, "after": "&" * 9_000}
    stage.samples.write_text("".join(json.dumps(long) + "\n" for _ in range(200)), encoding="utf-8")
    stage.log.write_text("a very long line " * 500_000, encoding="utf-8")
    write_json(run.resolved, {"recipe": {"model": "long " * 100_000}})
    assert len(write_report(run).read_bytes()) < 1_000_000
    text = page_of(run).text
    assert "more in 00-sft/samples.jsonl" in text
    assert "6,000 more characters" in text


@pytest.mark.slow
def test_two_hundred_thousand_steps_weigh_no_more_than_two_thousand(tmp_path):
    sizes = [len(write_report(make_run(tmp_path / str(n), steps=n)).read_bytes()) for n in (2_000, 200_000)]
    assert sizes[1] < 1.1 * sizes[0] < 300_000


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 25])
def test_short_runs_give_whole_pages(tmp_path, steps):
    words = f"Finished after {steps} step{'s' if steps > 1 else ''} run"
    assert words in page_of(make_run(tmp_path / "run", steps)).text


def test_infinite_and_missing_losses_are_left_out_of_the_curve(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [metrics_row(step, 60) for step in range(1, 61)]
    rows[10]["loss"], rows[11]["loss"], rows[12]["grad_norm"] = float("nan"), float("inf"), 0.0
    run.stages()[0].metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    page_of(run)
    drawn = re.findall(r' d="([^"]*)"', run.report_page.read_text())
    assert drawn
    assert not any(word in path for path in drawn for word in ("nan", "inf"))


# ---------------------------------------------------------------------- what the folder says


def test_a_run_counts_as_running_while_another_process_holds_its_lock(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    lock = run.path / ".lock"
    hold = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert read_run(run).status_text == "running, step 30 of 60"
    other.communicate("")
    assert read_run(run).state == "interrupted"


def test_the_process_that_writes_its_own_report_is_not_taken_for_a_running_one(tmp_path):
    run = make_run(tmp_path / "run")
    with (run.path / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(str(os.getpid()))
        stream.flush()
        assert read_run(run).state == "finished"


def test_steps_written_twice_by_a_resumed_run_count_once(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    stage = run.stages()[0]
    rows = [{"step": s, "loss": float(s)} for s in (1, 2, 3, 4, 5)] + [{"step": s, "loss": 10.0 * s} for s in (4, 5, 6)]
    stage.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    curve = read_curves(stage)["loss"]
    assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.values.tolist() == [1, 2, 3, 40, 50, 60]


def test_a_verdict_knows_the_direction_of_its_measure_and_its_noise():
    def verdict(metric: str, before: float, after: float, n: int = 100) -> str:
        score = {"metric": metric, "n": n}
        (row,) = compare({"before": {"x": {**score, "value": before}}, "after": {"x": {**score, "value": after}}})
        return row.verdict

    assert verdict("loss", 3.0, 2.0) == "better"
    assert verdict("loss", 2.0, 3.0) == "worse"
    assert verdict("loss", 2.0, 2.005) == "unchanged"
    assert verdict("loss", 2.0, float("nan")) == "worse"
    assert verdict("exact_match", 0.2, 0.6) == "better"
    assert verdict("exact_match", 0.6, 0.2) == "worse"
    assert verdict("exact_match", 0.50, 0.55) == "unchanged"
    assert verdict("exact_match", 0.50, 0.55, n=10_000) == "better"
    assert verdict("exact_match", 0.0, 1.0, n=2) == "unchanged"


def test_a_measure_without_a_counterpart_has_no_verdict():
    (row,) = compare({"before": {"x": {"metric": "loss", "value": 1.0}}})
    assert (row.verdict, row.change, row.text(row.after)) == ("", "", "–")


# ---------------------------------------------------------------------- plots and numbers


@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_thinning_keeps_the_ends_and_the_extremes(n, seed):
    y = np.random.default_rng(seed).normal(size=n)
    x = np.arange(n, dtype=float)
    thin_x, thin_y = downsample(x, y, 50)
    assert len(thin_x) <= max(100, 2 * 50 + 2)
    assert np.all(np.diff(thin_x) > 0)
    assert (thin_x[0], thin_x[-1]) == (0, n - 1)
    assert (thin_y.min(), thin_y.max()) == (y.min(), y.max())


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_few_ascending_and_inside(low, width):
    high = low + width
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    margin = width * 1e-6
    assert low - margin <= ticks[0] <= ticks[-1] <= high + margin


@given(st.floats(1e-9, 1e6), st.floats(1.02, 1e9))
def test_logarithmic_ticks_are_few_and_inside(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 9
    assert all(low * 0.99 <= t <= low * ratio * 1.01 for t in ticks)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(1, 15))
def test_smoothing_stays_between_the_extremes_and_keeps_constants(values, window):
    y = np.array(values)
    smoothed = smooth(y, window)
    assert len(smoothed) == len(y)
    assert smoothed.min() >= y.min() - 1e-9
    assert smoothed.max() <= y.max() + 1e-9
    assert smooth(np.full(9, 2.5), window) == pytest.approx(np.full(9, 2.5))


def test_numbers_read_as_people_write_them():
    assert [numbers.count(v) for v in (0, 7, 9999, 10_000, 999_600, 4.59e6, 1.41e9)] == [
        *("0", "7", "9,999", "10.0 k", "1.00 M", "4.59 M", "1.41 B")
    ]
    assert [numbers.number(v) for v in (0, 1.83421, 2e-4, 123456.7, -3.2, 999.96)] == [
        *("0", "1.834", "2e-4", "123,457", "−3.200", "1,000")
    ]
    assert [numbers.setting(v) for v in (1e-3, 2e-4, 0.5, 16, 1e-10, 100)] == [
        "0.001",
        "2e-4",
        "0.5",
        "16",
        "1e-10",
        "100",
    ]
    assert [numbers.duration(v) for v in (0.2, 4.26, 61, 3600, 8100)] == [
        "200 ms",
        "4.3 s",
        "1 min 1 s",
        "1 h",
        "2 h 15 min",
    ]
    assert [numbers.percent(v) for v in (0, 0.0032, 0.12, 1)] == ["0%", "0.32%", "12.0%", "100%"]
    assert [numbers.byte_size(v) for v in (5, 1023, 1024, 3 * 2**30)] == ["5 B", "1023 B", "1.00 KiB", "3.00 GiB"]
    assert [numbers.change(*v) for v in ((2, 1.5), (2, 2.01), (0, 1))] == ["−25%", "+0.5%", ""]


def test_a_text_is_marked_with_the_language_of_its_script():
    assert [language_of(t) for t in ("plain", "月亮", "月がきれい", "달", "")] == ["", "zh-Hans", "ja", "ko", ""]


# ---------------------------------------------------------------------- the environment


def test_the_environment_names_versions_and_keeps_secrets_to_itself(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@mirror.example/hub")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = collect_environment()
    assert found["packages"]["transformers"]
    assert found["cores"] >= 1
    assert found["variables"]["OMP_NUM_THREADS"] == "2"
    assert found["variables"]["HF_ENDPOINT"] == "https://…@mirror.example/hub"
    assert "secret" not in json.dumps(found)


def test_the_environment_is_collected_without_importing_torch():
    program = (
        "import sys; from luthier.run.environment import collect_environment; collect_environment();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_recipe_in_short_is_what_one_would_write_and_means_the_same():
    from luthier.run.config import parse_recipe

    written = {
        "model": {"path": "starter", "chat_template": "plain"},
        "method": {"kind": "lora", "rank": 16},
        "data": "starter:quickstart",
        "max_grad_norm": None,
        "packing": False,
        "evaluate": [{"name": "kept", "data": {"path": "starter:stories", "limit": 40}, "metric": "loss"}],
        "log_to": ["tensorboard"],
    }
    recipe = parse_recipe(written)
    assert recipe_in_short(recipe.dump()) == written
    assert parse_recipe(recipe_in_short(recipe.dump())) == recipe
