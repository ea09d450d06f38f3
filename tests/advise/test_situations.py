"""The table of situations: the first choice is the expected one, all is explained, every recipe passes the check."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import luthier
from advised_models import CONFIGS
from luthier.advise.advice import Advice, advise, write
from luthier.advise.data_profile import profile_data
from luthier.advise.machine import cpu, gpu
from luthier.advise.model_profile import profile_model
from luthier.advise.notes import where
from luthier.advise.rank import rank
from luthier.advise.rules import RULES
from luthier.advise.rules.base import EVERY
from luthier.advise.situation import DataProfile, Situation, Wishes
from luthier.core.component import kinds
from luthier.run.draft import read_draft
from luthier.run.examine import examine
from luthier.run.pipeline import examine_pipeline, has_stages, read_pipeline

TABLE = yaml.safe_load((Path(__file__).parent / "situations.yaml").read_text(encoding="utf-8"))
STARTER = Path(luthier.__file__).parent / "starter"
ROWS = {
    "conversation": {"question": "How many are {0} and {0}?", "answer": "They are {1}."},
    "text": {"text": "A text about the number {0}, which is followed by {1} and by others."},
    "labelled": {"text": "The number {0} is here.", "label": "odd"},
    "scored": {"text": "The number {0} is here.", "score": 0.5},
    "preference": {"prompt": "Say {0}.", "chosen": "It is {0}.", "rejected": "I will not say {0}."},
    "rated": {"prompt": "Say {0}.", "completion": "It is {0}.", "label": True},
    "prompt": {"prompt": "How many are {0} and {0}?", "reference": "{1}"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives a model: the starter, or a folder with a published config and a tokenizer."""
    home = tmp_path_factory.mktemp("models")

    def folder(name: str) -> str:
        if name != "starter" and not (home / name).is_dir():
            (home / name).mkdir()
            (home / name / "config.json").write_text(json.dumps(CONFIGS[name]))
            shutil.copy(STARTER / "tokenizer.json", home / name)
        return name if name == "starter" else str(home / name)

    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DataProfile]:
    """Return a function that gives the profile of sixty real rows of a form."""
    home = tmp_path_factory.mktemp("rows")

    def file(form: str) -> DataProfile:
        path = home / f"{form}.jsonl"
        if not path.exists():
            lines = []
            for i in range(60):
                row = {k: v.format(i, i + i) if isinstance(v, str) else v for k, v in ROWS[form].items()}
                if form == "labelled" and i % 2:
                    row["label"] = "even"
                if form == "rated":
                    row["label"] = bool(i % 2)
                if form == "scored":
                    row["score"] = i / 7
                lines.append(json.dumps(row))
            path.write_text("\n".join(lines) + "\n")
        return profile_data(str(path))

    return file


def situation(case: dict, model: Callable[[str], str], rows: Callable[[str], DataProfile]) -> Situation:
    data = []
    for words in [case["data"]] if isinstance(case["data"], str) else case["data"]:
        form, count, *median = words.split()
        tokens = int(median[0]) if median else 200
        seen = rows(form)
        assert seen.form == form
        data.append(
            replace(
                seen,
                rows=int(count),
                median_tokens=tokens,
                longest_tokens=3 * tokens,
                duplicates=case.get("duplicates", 0.0),
            )
        )
    machine = str(case["machine"])
    purpose = frozenset(str(case["purpose"]).split()) if "purpose" in case else frozenset()
    wishes = Wishes(
        purposes=purpose,  # type: ignore[arg-type]
        private=case.get("private", False),
        on_device=case.get("on_device", False),
        hours=case.get("deadline"),
        variants=case.get("variants", 1),
        quality=case.get("quality", "good"),
    )
    where = cpu(machine.split()[1]) if machine.startswith("cpu") else gpu(machine)
    return Situation(profile_model(model(case["model"])), tuple(data), where, wishes)


@pytest.fixture(scope="module")
def advice_for(model: Callable[[str], str], rows: Callable[[str], DataProfile]) -> Callable[[dict], Advice]:
    return lambda case: advise(situation(case, model, rows))


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c["case"])
def test_the_first_choice_is_the_expected_one(case: dict, advice_for: Callable[[dict], Advice]):
    advice = advice_for(case)
    first = advice.choice.method if advice.choice is not None else "none"
    told = [(m.method, m.points) for m in advice.methods[:4]]
    assert first == case["first"], told
    if "stages" in case:
        steps = [f"({s.objective})" if s.missing is not None else s.objective for s in advice.steps]
        assert " ".join(steps) == case["stages"]
    assert where(advice.situation) == case.get("where", "here")


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c["case"])
def test_every_choice_and_every_rejection_has_a_number_and_a_source(case: dict, advice_for: Callable[[dict], Advice]):
    advice = advice_for(case)
    assert {m.method for m in advice.methods} == set(EVERY)
    for ranked in advice.methods:
        assert ranked.reasons
        for reason in ranked.reasons:
            assert reason.source[0], reason.rule
            for text in reason.text:
                assert re.search(r"\d", text), f"{reason.rule} names no number: {text}"
                assert "{" not in text
    for note in advice.notes:
        assert note.source[0]
        assert re.search(r"\d", note.text[0] + note.source[0]), note.name


@pytest.mark.parametrize("case", [c for c in TABLE if c["first"] != "none"], ids=lambda c: c["case"])
def test_an_advised_recipe_passes_the_check(
    case: dict, model: Callable[[str], str], rows: Callable[[str], DataProfile], tmp_path: Path
):
    advice = advise(situation(case, model, rows), tmp_path)
    folder = Path(advice.situation.model.name)
    if case["model"] != "starter" and not (folder / "model.safetensors").exists():
        # A check reads the headers of the weights alone, so any tensor will do.
        save_file({"weight": np.zeros(2, dtype=np.float32)}, folder / "model.safetensors")
    try:
        paths = write(advice, tmp_path, "en")
        assert {"pilot.yaml", "recipe.yaml"} <= set(paths)
        for path in paths.values():
            staged = has_stages(path)
            found = examine_pipeline(read_pipeline(path)) if staged else examine(read_draft(path))
            assert found.problems == [], path.read_text()
    finally:
        (folder / "model.safetensors").unlink(missing_ok=True)


def test_the_table_covers_the_five_cases_and_thirty_more():
    assert len(TABLE) >= 35
    assert len({case["case"] for case in TABLE}) == len(TABLE)


def test_every_method_there_is_is_ranked_and_every_rule_speaks_of_known_ones():
    assert set(EVERY) == set(kinds("method")) - {"h_adapter"}  # the other name of adapter
    for rule in RULES:
        assert set(rule.table) <= set(EVERY), rule.name
    assert len({rule.name for rule in RULES}) == len(RULES)
    for kind in EVERY:
        assert any(rule.name == f"standing of {kind}" for rule in RULES)


def test_every_rule_decides_something_in_the_table(advice_for: Callable[[dict], Advice]):
    spoken = {r.rule for case in TABLE for m in advice_for(case).methods for r in m.reasons}
    silent = {rule.name for rule in RULES} - spoken
    assert silent <= {"keys and values cannot be added", "a first impression will do", "a new task"}


def test_advice_does_not_depend_on_the_order_of_asking(advice_for: Callable[[dict], Advice]):
    case = next(c for c in TABLE if c["case"] == "production")
    assert advice_for(case).methods == rank(advice_for(case).situation)


def test_equal_points_are_said_to_be_equal(advice_for: Callable[[dict], Advice]):
    tied = [m for case in TABLE for m in advice_for(case).methods if m.tied_with and m.verdict == "chosen"]
    assert all(m.method not in m.tied_with for m in tied)
    case = next(c for c in TABLE if c["case"] == "an encoder and some labels")
    found = advice_for(case).methods
    assert found[0].tied_with == ("bitfit",)
    assert found[0].points == found[1].points
