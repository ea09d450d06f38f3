"""`luthier compare`: variants of a recipe as runs of their own, and runs side by side."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import yaml

from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import RecipeError
from luthier.methods.base import Method
from luthier.objectives.sft import Sft
from luthier.run.config import Recipe
from luthier.run.experiments import jobs
from luthier.run.experiments.contest import read_contest
from luthier.run.experiments.keys import HOW, LENGTH, WHAT
from luthier.run.experiments.outcome import Outcome
from luthier.run.experiments.table import Table
from luthier.run.summary import Comparison
from recipes import Said, luthier, pairs, write_recipe, write_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL_METHODS = EXAMPLES / "all-methods.yaml"


def write_contest(folder: Path, model: Path, variants: object, **keys: object) -> Path:
    """Write a recipe and a file that varies it."""
    write_rows(folder / "rows.jsonl", pairs(24))
    write_rows(folder / "general.jsonl", pairs(5, seed=9))
    tasks = [{"name": "general", "data": str(folder / "general.jsonl"), "metric": "loss"}]
    write_recipe(folder, model, data="rows.jsonl", eval_fraction=0.25, evaluate=tasks, samples=0, max_steps=2, run=None)
    path = folder / "contest.yaml"
    path.write_text(
        yaml.safe_dump({"base": "recipe.json", "variants": variants, **keys}, sort_keys=False), encoding="utf-8"
    )
    return path


VARIANTS = {
    "small": {"method": {"kind": "lora", "rank": 2}},
    "all": "full",
    "biases": "bitfit",  # Llama has none
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, family_folder: Callable[[str], Path]) -> Path:
    """A comparison that was carried out, in its folder."""
    home = tmp_path_factory.mktemp("compare")
    contest = write_contest(home, family_folder("llama"), VARIANTS, recipe={"learning_rate": None, "max_steps": 3})
    command = [sys.executable, "-m", "luthier", "compare", str(contest), "--out", str(home / "out"), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=home)
    assert said.returncode == 0, said.stderr
    (home / "said.json").write_text(said.stdout)
    return home


class Process:
    """A process that has ended with a code, or goes on until it is told to end."""

    def __init__(self, code: int | None = 0, printed: str = "", stdout: IO[bytes] | None = None) -> None:
        self.returncode, self.heard = code, []
        if stdout is not None:
            stdout.write(printed.encode())

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.heard.append(number)
        self.returncode = 130

    def wait(self) -> int | None:
        return self.returncode


def again(capsys: pytest.CaptureFixture[str], home: Path, *words: object) -> Said:
    return luthier(capsys, "compare", home / "contest.yaml", "--out", home / "out", *words)


def test_each_variant_is_a_run_with_its_row(done: Path):
    table = json.loads((done / "said.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == list(VARIANTS)
    for name in ("small", "all"):
        report = json.loads((done / "out" / name / "report.json").read_text())
        row = rows[name]
        for key in ("trainable_parameters", "total_parameters", "peak_bytes", "train_seconds", "steps"):
            assert row[key] == report[key]
        assert row["trainable_share"] == report["trainable_parameters"] / report["total_parameters"]
        for task in ("held-out loss", "general"):
            assert row["measures"][task]["before"] == report["eval"]["before"][task]["value"]
            assert row["measures"][task]["after"] == report["eval"]["after"][task]["value"]
        assert row["steps"] == 3
    assert rows["all"]["learning_rate"] == component_class("method", "full").default_learning_rate  # type: ignore[attr-defined]
    assert rows["small"]["measures"]["general"]["before"] == rows["all"]["measures"]["general"]["before"]
    assert "no biases" in rows["biases"]["refused"]
    assert not (done / "out" / "biases").exists()
    assert table["differences"] == []
    assert table["machine"]["cpu"]
    assert "torch" in table["machine"]["packages"]
    assert json.loads((done / "out" / "comparison.json").read_text())["rows"] == table["rows"]


def test_the_runs_saw_the_same_rows_in_the_same_order(done: Path):
    prints = [(done / "out" / name / "data" / "fingerprint.json").read_text() for name in ("small", "all")]
    assert prints[0] == prints[1]
    rows = [
        [json.loads(line)["tokens"] for line in (next((done / "out" / n).glob("0*")) / "metrics.jsonl").open()]
        for n in ("small", "all")
    ]
    assert rows[0] == rows[1]


def test_the_table_on_disk_has_a_line_for_each_and_the_machine(done: Path):
    lines = (done / "out" / "comparison.md").read_text().splitlines()
    columns = "variant | trained | share | learning rate | peak memory | seconds | held-out loss | general"
    columns += " | against the best"
    assert lines[0] == f"| {columns} |"
    assert lines[2].startswith("| small |")
    assert lines[3].startswith("| all |")
    assert "left out: " in lines[4]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert any(line.startswith("Machine: ") and "torch" in line for line in lines)


def test_finished_runs_are_not_repeated(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(jobs, "spawn", lambda *_: pytest.fail("a finished run was started again"))
    said = again(capsys, done)
    assert said.code == 0, said.err
    assert said.err.count("finished before") == 2
    assert "small" in said.out


def test_a_run_that_was_killed_goes_on_and_the_others_stay(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = done / "out" / "all" / "report.json"
    kept = report.read_text()
    called: list[list[str]] = []

    def resume(words: list[str], *_: object) -> Process:
        called.append(words)
        report.write_text(kept)
        return Process()

    report.unlink()
    monkeypatch.setattr(jobs, "spawn", resume)
    try:
        said = again(capsys, done)
    finally:
        report.write_text(kept)
    assert said.code == 0, said.err
    assert called == [["resume", str(done / "out" / "all"), "--json"]]
    assert "all: goes on" in said.err


def test_a_run_of_another_recipe_in_the_same_place_is_refused(done: Path, capsys: pytest.CaptureFixture[str]):
    said = again(capsys, done, "seed=5")
    assert said.code == 2
    assert len(said.problems) == 2
    assert "--out" in said.err


@pytest.mark.parametrize(
    ("code", "printed", "shown"),
    [
        (1, '{"error": {"problems": [{"what": "The loss of step 1 is nan."}]}}', "The loss of step 1 is nan."),
        (-signal.SIGKILL, "", ".log"),
    ],
)
def test_a_variant_that_breaks_has_a_row_that_says_why(
    code: int,
    printed: str,
    shown: str,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    contest = write_contest(tmp_path, family_folder("llama"), ["lora", "full"])
    monkeypatch.setattr(jobs, "spawn", lambda words, said, log: Process(code, printed, said))
    said = luthier(capsys, "compare", contest, "--out", tmp_path / "out")
    assert said.code == 1
    assert "2 of 2 variants failed: lora, full" in said.err
    assert said.out.count("failed: ") == 2
    assert shown in (tmp_path / "out" / "comparison.md").read_text()


def test_stopping_says_how_to_go_on(
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    contest = write_contest(tmp_path, family_folder("llama"), ["lora"])

    process = Process(None)
    monkeypatch.setattr(jobs, "spawn", lambda *_: process)
    monkeypatch.setattr(jobs.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    said = luthier(capsys, "compare", contest, "--out", tmp_path / "out")
    assert said.code == 130
    assert f"luthier compare {contest}" in said.err
    assert process.heard == [signal.SIGTERM]  # the run saves itself


def test_every_variant_runs_on_every_model(family_folder: Callable[[str], Path], tmp_path: Path):
    models = [str(family_folder("llama")), str(family_folder("gpt2"))]
    contest = write_contest(tmp_path, family_folder("llama"), {"a": "lora", "b": "bitfit"}, models=models)
    found = {v.name: v for v in read_contest(contest).variants}
    assert list(found) == ["llama--a", "llama--b", "gpt2--a", "gpt2--b"]
    assert found["llama--b"].refused
    assert not found["gpt2--b"].refused
    assert found["gpt2--a"].recipe.model.path == models[1]


def test_overrides_change_what_all_variants_share(family_folder: Callable[[str], Path], tmp_path: Path):
    variants = {"slow": {"method": "lora", "learning_rate": 1e-5}, "usual": "lora"}
    contest = write_contest(tmp_path, family_folder("llama"), variants, recipe={"max_steps": 7, "learning_rate": 0.5})
    slow, usual = (v.recipe for v in read_contest(contest, ["epochs=2", "batch_size=3"]).variants)
    assert (slow.learning_rate, usual.learning_rate) == (1e-5, 0.5)
    assert slow.epochs == usual.epochs == 2
    assert slow.max_steps is usual.max_steps is None
    assert slow.batch_size == 3
    assert Path(slow.data.path).is_absolute()


def test_a_variant_may_change_how_is_trained_but_not_on_what():
    assert set(HOW) < Recipe.model_fields.keys()
    assert not {"seed", "evaluate", "eval_data", "eval_fraction", "model"} & {*HOW, *WHAT, *LENGTH}


WRONG: list[tuple[dict[str, object], str]] = [
    ({"variants": {}}, "There are no variants"),
    ({"variants": {"a": 3}}, "neither a method nor keys"),
    ({"variants": {"a": {"method": "lora", "seed": 3}}}, "use seeds: [0, 1, 2]"),
    ({"variants": {"a": {"model": "x"}}}, "use models"),
    ({"variants": {"a": {"metod": "lora"}}}, 'Did you mean "method"'),
    ({"variants": {"a": "lorra"}}, 'Did you mean "lora"'),
    ({"variants": {"a/b": "lora"}}, "cannot name a folder"),
    ({"variants": ["lora", "lora"]}, "there twice"),
    ({"variants": ["bitfit"]}, "no biases"),
    ({"variants": ["lora"], "models": "starter"}, "models is a list"),
    ({"variants": ["lora"], "varants": ["lora"]}, 'Did you mean "variants"'),
    ({"variants": ["lora"], "base": "nowhere.yaml"}, "no such"),
    ({"variants": ["lora"], "base": None}, "no recipe to vary"),
    ({"variants": ["lora"], "recipe": {"data": "nowhere.jsonl"}}, "no such file"),
    ({"variants": ["lora"], "recipe": {"model": "./nowhere"}}, "no such model folder"),
]


@pytest.mark.parametrize(("keys", "told"), WRONG)
def test_a_wrong_file_is_told(keys: dict, told: str, family_folder: Callable[[str], Path], tmp_path: Path):
    contest = write_contest(tmp_path, family_folder("llama"), **keys)
    with pytest.raises(RecipeError) as caught:
        read_contest(contest)
    assert told.lower() in str(caught.value).lower()


def test_all_wrong_variants_are_told_at_once(family_folder: Callable[[str], Path], tmp_path: Path):
    contest = write_contest(
        tmp_path, family_folder("llama"), {"a": "lorra", "b": {"seed": 1}, "c": {"learning_rate": -1}, "d": "lora"}
    )
    with pytest.raises(RecipeError) as caught:
        read_contest(contest)
    places = [problem.where for problem in caught.value.problems]
    assert len(places) == 3
    assert all(any(f"variants.{name}" in place for place in places) for name in "abc")


def test_runs_are_laid_side_by_side_without_training(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [done / "out" / "small", done / "out" / "all"]
    said = luthier(capsys, "compare", *runs, "--json")
    assert said.code == 0, said.err
    assert [row["name"] for row in said.json["rows"]] == ["small", "all"]
    compared = json.loads((done / "said.json").read_text())["rows"][:2]
    assert said.json["rows"] == [{**row, "changes": {}} for row in compared]
    said = luthier(capsys, "compare", *runs, "--out", tmp_path / "table")
    assert "| all |" in (tmp_path / "table" / "comparison.md").read_text()
    shutil.copytree(runs[0], tmp_path / "longer")
    report = json.loads((runs[0] / "report.json").read_text())
    (tmp_path / "longer" / "report.json").write_text(json.dumps({**report, "steps": 90}))
    said = luthier(capsys, "compare", runs[0], tmp_path / "longer")
    assert "steps differ" in said.out
    (tmp_path / "longer" / "report.json").unlink()
    said = luthier(capsys, "compare", runs[0], tmp_path / "longer", tmp_path)
    assert said.code == 2
    assert len(said.problems) == 2
    assert "luthier resume" in said.err


def test_the_example_has_every_method_that_can_train_the_quickstart():
    said = yaml.safe_load(ALL_METHODS.read_text())["variants"]
    chosen = {(v if isinstance(v, str) else v["method"]["kind"]) for v in said.values()}
    assert chosen <= kinds("method").keys()
    config = json.loads((EXAMPLES.parent / "src/luthier/starter/config.json").read_text())
    for kind in kinds("method").keys() - chosen:
        table = component_class("method", kind)
        assert issubclass(table, Method)
        for settings in ({}, table.example):
            method = table.model_validate({"kind": kind, **settings})
            facts = StageFacts(method=method, objective=Sft(), model_config=config)
            problems = [p for p in method.problems(facts) if p.severity == "error"]
            assert problems, f"{kind} can train the quickstart; add it to examples/all-methods.yaml"


def test_the_process_that_compares_stays_small(done: Path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom luthier.run.experiments.carry_out import carry_out\n"
        "from luthier.run.experiments.contest import read_contest\n"
        f"home = Path({str(done)!r})\n"
        "carry_out(read_contest(home / 'contest.yaml'), home / 'out', print)\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout.splitlines()[-1] == "[]"


def test_the_example_is_one_that_can_be_run():
    contest = read_contest(ALL_METHODS)
    assert not [v.refused for v in contest.variants if v.refused]
    assert all(v.recipe.learning_rate is None for v in contest.variants)
    assert f"luthier compare examples/{ALL_METHODS.name}" in ALL_METHODS.read_text()


def row(name: str, before: float, **changes: object) -> Outcome:
    measures = {"held-out loss": Comparison("held-out loss", "loss", before, 1.0)}
    values: dict[str, object] = {"model": "m", "steps": 5, "tokens": 70, "measures": measures, **changes}
    return Outcome(name, f"runs/{name}", **values)  # type: ignore[arg-type]


def test_a_table_says_what_was_not_equal():
    assert Table.of_runs([row("a", 2.0), row("b", 2.0)]).differences == []
    told = Table.of_runs([row("a", 2.0), row("b", 2.0, steps=4, tokens=60)]).differences
    assert told == ["steps differ between the runs of m (a 5, b 4)", "tokens differ between the runs of m (a 70, b 60)"]
    assert Table.of_runs([row("a", 2.0), row("b", 2.0, steps=4, model="other")]).differences == []
    machines = [row(n, 2.0, environment={"cpu": n}) for n in "ab"]
    assert "several machines (a, b)" in Table.of_runs(machines).differences[0]


def test_a_table_says_that_a_method_changes_the_model_before_training():
    said = "changes the model before the first step"
    assert said not in Table.of_runs([row("full", 2.0), row("lora", 2.0)]).markdown()
    assert said in Table.of_runs([row("full", 2.0), row("qlora", 2.1)]).markdown()
    assert said not in Table.of_runs([row("full", 2.0), row("lora", 3.0, model="other")]).markdown()


def test_a_commit_with_changes_is_shown_as_such():
    commit = {"commit": "0123456789abcdef+changes", "cpu": "x"}
    assert "commit 0123456789ab+changes" in Table.of_runs([row("a", 2.0, environment=commit)]).markdown()
