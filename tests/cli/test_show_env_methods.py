"""The verbs that only look: show, env and methods."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from luthier.cli import env, methods, show
from luthier.cli.cards import cards, pages
from luthier.cli.layout import print_table
from luthier.cli.probes import Probe, probes
from luthier.core.component import StageFacts, kinds
from luthier.core.errors import RecipeError, RunError
from luthier.run.config import load_recipe
from luthier.run.summary import Curve
from made_run import make_run

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "methods"


# ---------------------------------------------------------------------- show


def test_show_tells_how_a_finished_run_went(tmp_path, capsys):
    run = make_run(tmp_path / "stories")
    show.run(run.path)
    said = capsys.readouterr().out
    for words in (
        "finished after 60 steps",
        "lora, 1.0% of the parameters",
        "12.0%",
        "62.0%",
        "+50.0 points",
        "better",
    ):
        assert words in said
    assert "秋月上东墙。" in said
    assert str(run.stages()[0].checkpoint(60)) in said
    assert "resume" not in said


def test_show_tells_where_an_interrupted_run_stands_and_how_it_goes_on(tmp_path, capsys):
    run = make_run(tmp_path / "killed", finished=False)
    show.run(run.path)
    said = capsys.readouterr().out
    assert "interrupted at step 30 of 60" in said
    assert f"luthier resume {run.path} goes on from the checkpoint at step 25." in said
    assert run.report_page.is_file(), "a killed run had no time to write its page"


def test_show_gives_programs_one_json_document_without_infinities(tmp_path, capsys):
    run = make_run(tmp_path / "run", finished=False)
    with run.stages()[0].metrics.open("w") as stream:
        stream.write('{"step": 1, "loss": NaN}\n')
    show.run(run.path, json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["state"] == "interrupted"
    assert found["resume"] == f"luthier resume {run.path}"
    assert found["last"]["loss"] == {"step": 1, "value": None}
    assert {row["name"]: row["before"] for row in found["comparisons"]}["questions"] == 0.12


def test_show_of_a_folder_without_a_run_names_the_runs_beside_it(tmp_path):
    make_run(tmp_path / "real")
    with pytest.raises(RunError, match="runs there: real"):
        show.run(tmp_path / "rael")


def test_a_sparkline_goes_from_high_to_low():
    steps = [1.0, 2.0, 3.0]
    import numpy as np

    def drawn(*values: float) -> str:
        return show.sparkline(Curve(np.array(steps[: len(values)]), np.array(values)))

    assert drawn(3, 2, 1) == "█▅▁"
    assert drawn(2, 2, 2) == "▄▄▄"
    assert drawn(1) == ""
    assert drawn(1, math.nan, 0) == "█▁"


# ---------------------------------------------------------------------- methods


def test_methods_lists_every_method_and_objective(capsys):
    methods.run()
    said = capsys.readouterr().out
    for kind in [*kinds("method"), *kinds("objective")]:
        assert f"\n{kind} " in said


def test_the_list_says_what_moves_its_share_when_what_it_costs_and_its_paper(capsys):
    methods.run()
    said = capsys.readouterr().out
    for method in kinds("method").values():
        for words in (method.moves, method.typical_share, method.when, method.paper):
            assert words in said
    assert "0.52 or 1 for each frozen one" in said


def test_the_list_and_a_card_speak_chinese_where_asked_or_where_the_terminal_does(capsys, monkeypatch):
    methods.run(lang="zh")
    asked = capsys.readouterr().out
    assert "方法：训练什么" in asked
    assert "每个冻结参数 0.52 或 1 字节" in asked
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    methods.run()
    assert capsys.readouterr().out == asked
    methods.run("lora", lang="en")
    assert "when not" in capsys.readouterr().out
    methods.run("lora")
    assert "何时不用" in capsys.readouterr().out


@pytest.mark.parametrize("kind", list(kinds("method")))
def test_a_card_says_what_moves_when_to_use_it_and_every_field(kind, capsys):
    methods.run(kind)
    said = capsys.readouterr().out
    method = kinds("method")[kind]
    for words in (
        method.title,
        method.principle,
        method.equation,
        method.moves,
        method.when,
        method.when_not,
        method.paper,
    ):
        assert words in said
    for name, field in method.model_fields.items():
        if name != "kind":
            assert name in said
            assert " ".join((field.description or "").split()) in said


def test_cards_are_given_to_programs(capsys):
    methods.run("lora", json=True)
    card = json.loads(capsys.readouterr().out)
    rank = next(field for field in card["fields"] if field["name"] == "rank")
    assert rank["default"] == "8"
    assert rank["values"] == "whole number ≥ 1"
    assert card["learning_rate"] == 2e-4
    methods.run(json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [card["kind"] for card in listed["methods"]] == list(kinds("method"))
    assert [card["kind"] for card in listed["objectives"]] == list(kinds("objective"))


def test_an_unknown_method_names_its_neighbour():
    with pytest.raises(RecipeError, match=r'There is no method "lroa"\. Did you mean "lora"\?') as caught:
        methods.run("lroa")
    assert "choose one of: " in str(caught.value)


@pytest.mark.parametrize("family", ["method", "objective"])
def test_every_example_recipe_can_be_trained_on_the_starter(family, tmp_path):
    config = json.loads((ROOT / "src" / "luthier" / "starter" / "config.json").read_text())
    for card in cards(family):
        path = tmp_path / f"{card.kind}.yaml"
        path.write_text(card.example)
        recipe = load_recipe(path)
        assert getattr(recipe, family).kind == card.kind
        facts = StageFacts(method=recipe.method, objective=recipe.objective, model_config=config)
        assert recipe.method.problems(facts) == []


def test_the_manual_has_the_page_of_every_method_as_its_class_says_it():
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    written = {name: text.removesuffix(methods.laws_block(text)) for name, text in texts.items()}
    assert written == pages(), f"write them anew: {methods.COMMAND}"


def test_pages_link_only_to_pages_that_exist():
    found = pages()
    for text in found.values():
        for link in text.split("](")[1:]:
            target = link.partition(")")[0]
            assert target.startswith("https://arxiv.org/abs/") or target in found


def test_every_page_has_a_recipe_and_its_twin_in_chinese():
    found = pages()
    for kind in kinds("method"):
        english, chinese = found[f"{kind}.md"], found[f"{kind}.zh-CN.md"]
        for page in (english, chinese):
            recipe = yaml.safe_load(page.split("```yaml\n")[1].partition("```")[0])
            assert recipe["model"] == "starter"
        assert kinds("method")[kind].summary in english
        assert any("\u4e00" <= letter <= "\u9fff" for letter in chinese.partition("## ")[0].partition("|")[0])


def test_pages_of_methods_that_are_gone_are_deleted_and_other_files_stay(tmp_path):
    written = methods.write_pages(tmp_path)
    (tmp_path / "gone.md").write_text(written[-1].read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "notes.md").write_text("by hand")
    methods.write_pages(tmp_path)
    assert not (tmp_path / "gone.md").exists()
    assert (tmp_path / "notes.md").exists()


# ---------------------------------------------------------------------- env


@pytest.fixture
def quick_probes(monkeypatch):
    tried = [Probe("torch", "works", "2.13"), Probe("GPU", "missing", "no GPU", "use the CPU")]
    monkeypatch.setattr(env, "probes", lambda folder: iter([("things", lambda: tried)]))


def test_env_shows_the_machine_what_works_and_what_to_install(quick_probes, capsys):
    env.run()
    said = capsys.readouterr().out
    for words in ("memory", "GiB", "transformers 5.", "✓  torch", "–  GPU", "use the CPU", "log_to: wandb"):
        assert words in said


def test_env_gives_programs_one_json_document(quick_probes, capsys):
    env.run(json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["packages"]["torch"]
    assert found["probes"][1] == {"name": "GPU", "outcome": "missing", "detail": "no GPU", "remedy": "use the CPU"}
    wandb = next(extra for extra in found["extras"] if extra["name"] == "wandb")
    assert wandb["command"] == 'pip install "luthier[wandb]"'


def test_env_shows_what_is_kept_for_later_runs_and_where(quick_probes, capsys, monkeypatch, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "some").write_bytes(b"x" * 3072)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    env.run(json=True)
    assert json.loads(capsys.readouterr().out)["cache"] == {"folder": str(tmp_path), "bytes": 3072}
    env.run()
    assert "3.00 KiB" in capsys.readouterr().out
    monkeypatch.setenv("LUTHIER_CACHE", "off")
    env.run()
    assert "LUTHIER_CACHE says so" in capsys.readouterr().out


def test_every_extra_says_what_it_is_for():
    assert {extra.name for extra in env.extras()} <= set(env.PURPOSES)


def test_a_probe_reports_a_broken_library_instead_of_breaking(tmp_path, monkeypatch):
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    (found,) = dict(probes(tmp_path))["bitsandbytes"]()
    assert (found.name, found.outcome) == ("bitsandbytes", "broken")
    assert "libcudart.so.13" in found.detail


def test_the_machine_is_really_tried(tmp_path):
    chosen = ("torch", "speed of this machine", "transformers", "disk")
    found = {p.name: p for name, probe in probes(tmp_path) if name in chosen for p in probe()}
    assert {"torch", "GPU", "float32", "bfloat16", "transformers", "disk"} <= {n.partition(" 0")[0] for n in found}
    assert "FLOP/s" in found["float32"].detail
    assert found["transformers"].outcome == "works"


# ---------------------------------------------------------------------- layout


def test_a_piped_table_is_never_wrapped_and_aligns_chinese():
    stream = io.StringIO()
    console = Console(file=stream, width=40, soft_wrap=True)
    print_table(console, ["name", "n"], [["月亮", "1"], ["long " * 20 + "end", ("22", "bold")]], right=(1,))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("月亮 ")
    assert lines[2].endswith("end  22")
