"""Rewards: what each says of an answer, and what it says when it is written wrongly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import families
from luthier.core.component import kinds
from luthier.core.errors import DataError, ModelError, RecipeError
from luthier.data.records import Conversation, Message, PromptAnswer
from luthier.rewards.base import AnyReward, Place, Reward, Row, Scorer, build_reward, prompt_text
from recipes import luthier, write_recipe, write_rows


class Holder(BaseModel):
    """What an objective with a reward is to pydantic."""

    reward: AnyReward


def reward(value: object) -> Reward:
    return Holder.model_validate({"reward": value}).reward


def score(
    value: object, answers: Sequence[str], rows: Sequence[Row] | None = None, folder: Path = Path()
) -> list[float]:
    with reward(value).open(Place(folder)) as scorer:
        return scorer(["asked"] * len(answers), answers, rows or [{}] * len(answers))


def test_all_kinds_are_there() -> None:
    expected = {"exact_match", "regex", "function", "model", "judge", "logprob", "length", "sum"}
    assert set(kinds("reward")) == expected


@pytest.mark.parametrize("kind", kinds("reward"))
def test_every_kind_explains_itself_and_its_fields_in_two_languages(kind: str) -> None:
    cls = kinds("reward")[kind]
    assert issubclass(cls, Reward)
    fields = {name: info for name, info in cls.model_fields.items() if name != "kind"}
    assert cls.title
    assert cls.summary
    assert set(cls.zh) == {"title", "summary", *fields}
    assert all(info.description and info.description.endswith((".", ")")) for info in fields.values())


def test_exact_match_compares_with_a_column_and_forgives_white_space() -> None:
    rows = [{"answer": "42"}, {"answer": 42}, {"answer": ["41", "42"]}, {"answer": "Forty-two"}]
    assert score("exact_match", [" 42\n"] * 4, rows) == [1.0, 1.0, 1.0, 0.0]
    assert score({"kind": "exact_match", "ignore_case": True}, ["forty-two"], rows[3:]) == [1.0]
    assert score({"kind": "exact_match", "column": "truth"}, ["a"], [{"answer": "b", "truth": "a"}]) == [1.0]


def test_exact_match_without_a_right_answer_names_the_columns_there_are() -> None:
    with pytest.raises(DataError, match=r"Its columns: prompt.*\n.*column: …"):
        score("exact_match", ["a"], [{"prompt": "b"}])


def test_a_pattern_matches_anywhere_or_the_whole() -> None:
    assert score({"kind": "regex", "pattern": r"\d+"}, ["about 7", "none"]) == [1.0, 0.0]
    whole = {"kind": "regex", "pattern": r"\d+", "full": True, "match": 2.0, "no_match": -0.5}
    assert score(whole, ["about 7", " 7 "]) == [-0.5, 2.0]
    assert score({"kind": "regex", "pattern": "a.b"}, ["a\nb"]) == [1.0]


def test_a_broken_pattern_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        reward({"kind": "regex", "pattern": "(a"})


@given(st.text(max_size=60), st.integers(0, 20), st.integers(20, 40), st.integers(1, 30))
def test_the_length_penalty_is_0_inside_and_falls_to_minus_1_outside(
    text: str, low: int, high: int, slack: int
) -> None:
    keys = {"kind": "length", "at_least": low, "at_most": high, "slack": slack}
    (value,) = score(keys, [text])
    assert -1 <= value <= 0
    assert (value == 0) == (low <= len(text) <= high)
    (longer,) = score(keys, [text + "x" * 100])
    assert longer <= value or len(text) < low


def test_a_sum_weighs_its_parts() -> None:
    parts = [{"kind": "regex", "pattern": "a"}, {"kind": "regex", "pattern": "b"}]
    assert score({"kind": "sum", "parts": parts, "weights": [2.0, -1.0]}, ["a", "b", "ab"]) == [2.0, -1.0, 1.0]
    assert score({"kind": "sum", "parts": parts}, ["ab"]) == [2.0]
    with pytest.raises(ValidationError, match="2 parts and 1 weights"):
        reward({"kind": "sum", "parts": parts, "weights": [1.0]})


def test_a_sum_that_cannot_open_a_part_closes_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed = []
    monkeypatch.setattr(Scorer, "close", lambda self: closed.append(type(self).__name__))
    with pytest.raises(RecipeError):
        score({"kind": "sum", "parts": ["exact_match", "nowhere.py:score"]}, ["a"], folder=tmp_path)
    assert closed == ["_Match"]


@pytest.mark.parametrize(
    "value", ["exact_match", {"kind": "sum", "parts": ["a.py:b", "exact_match"], "weights": [1.0, 2.0]}]
)
def test_dumped_and_parsed_it_is_equal(value: object) -> None:
    holder = Holder.model_validate({"reward": value})
    assert Holder.model_validate(holder.model_dump()) == holder
    assert Holder.model_validate_json(holder.model_dump_json()) == holder


def test_a_reward_that_does_not_exist_or_has_no_kind_is_an_error() -> None:
    for value, said in (("exactmatch", "unknown kind"), ({"pattern": "a"}, "no kind")):
        with pytest.raises(ValidationError, match=said):
            reward(value)


# ---------------------------------------------------------------------- functions

GOOD = "def score(prompts, answers, rows):\n    return [len(a) + row.get('plus', 0) for a, row in zip(answers, rows)]\n"


def test_a_function_of_the_user_is_called_with_three_lists(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(GOOD)
    assert score("rewards.py:score", ["ab", "abc"], [{}, {"plus": 2}], tmp_path) == [2.0, 5.0]


def test_a_function_may_import_what_lies_beside_it_and_return_an_array(tmp_path: Path) -> None:
    (tmp_path / "helper_of_rewards.py").write_text("HALF = 0.5\n")
    lines = ["import numpy as np", "from helper_of_rewards import HALF", "def score(p, a, r):"]
    (tmp_path / "rewards.py").write_text("\n".join([*lines, "    return np.full(len(a), HALF)"]))
    assert score("rewards.py:score", ["a", "b"], folder=tmp_path) == [0.5, 0.5]


FAULTS = [
    ("import nothing_of_this_name\n", r"rewards.py:1: The reward function broke: ModuleNotFoundError"),
    ("def score(p, a, r):\n    return [1.0\n", r"rewards.py:2: The reward function broke: SyntaxError"),
    ("\ndef scores(p, a, r):\n    return []\n", r'no function "score"\. Did you mean "scores"\?'),
    ("def score(p, a, r):\n    x = 1\n    return [1 / 0]\n", r"rewards.py:3: The reward function broke: ZeroDivision"),
    ("\n\ndef score(p, a, r):\n    return [1.0]\n", r"rewards.py:3: score returned 1 numbers for 2 answers"),
    ("def score(p, a, r):\n    return [1.0, float('nan')]\n", r"rewards.py:1: .* nan for answer 2 of 2"),
    ("def score(p, a, r):\n    return [1.0, None]\n", r"returned None for answer 2 of 2; .* finite"),
    ("def score(p, a, r):\n    return ['1', 2]\n", r"returned '1' for answer 1"),
    ("def score(p, a, r):\n    return 3\n", r"returned int in place of a list of 2 numbers"),
    ("def score(p):\n    return 3\n", r"The reward function broke: TypeError"),
    ("import sys\nsys.exit(0)\n", r"rewards.py:2: The reward function broke: SystemExit"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS, ids=[said[:30] for _, said in FAULTS])
def test_a_fault_in_the_function_is_told_with_its_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rewards.py").write_text(text)
    with pytest.raises(RecipeError) as caught:
        score("rewards.py:score", ["a", "b"], folder=tmp_path)
    assert re.search(said, str(caught.value)), str(caught.value)


def test_a_file_that_is_not_there_is_told_and_nothing_else_is_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"not there.*\n.*FILE.py:FUNCTION"):
        score("rewards.py:score", ["a"], folder=tmp_path)
    with pytest.raises(ValidationError, match=r"file\.py:function"):
        reward({"kind": "function", "path": "os:system"})


def test_located_it_names_the_file_wherever_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(GOOD)
    sums = reward({"kind": "sum", "parts": ["rewards.py:score"]}).located(lambda path: tmp_path / path)
    with sums.open(Place(Path("/"))) as scorer:
        assert scorer(["p"], ["abc"], [{}]) == [3.0]


# ---------------------------------------------------------------------- local models

ASKED = [PromptAnswer("w5 w6 ", "", "", "", (), False, "1"), PromptAnswer("w7 ", "", "", "", (), False, "2")]


@pytest.fixture(scope="module")
def scored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that gives one number."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(0)
    settings = families.config("llama", num_labels=1)
    families.enlarge(AutoModelForSequenceClassification.from_config(settings)).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


def test_a_reward_model_scores_prompt_and_answer_as_transformers_does(scored_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    answers = ["w8 w9 w10", "w11"]
    with reward({"kind": "model", "path": str(scored_folder)}).open(Place()) as scorer:
        ours = scorer(["w5 w6 ", "w7 "], answers, [{}, {}])
        assert scorer(["w5 w6 ", "w7 "], answers, [{}, {}], ASKED) == ours
        assert scorer([], [], []) == []
    model = AutoModelForSequenceClassification.from_pretrained(scored_folder, dtype=torch.float32).eval()
    tokenizer = families.tokenizer()
    for prompt, answer, value in zip(["w5 w6", "w7"], answers, ours):
        ids = torch.tensor([[*tokenizer(f"{prompt} {answer}")["input_ids"], 2]])
        with torch.no_grad():
            assert value == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-4)


def test_a_model_that_writes_is_refused_as_reward_model_and_the_other_way_round(
    family_folder: Callable[[str], Path], scored_folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"writes text.*\n.*objective: reward"):
        reward({"kind": "model", "path": str(family_folder("llama"))}).open(Place())
    with pytest.raises(ModelError, match=r"no text.*\n.*kind: model"):
        reward({"kind": "logprob", "path": str(scored_folder)}).open(Place())


def test_the_log_probability_of_an_answer_is_the_mean_over_its_tokens(family_folder: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder, answers = family_folder("llama"), ["w8 w9 w10", "w11"]
    with reward({"kind": "logprob", "path": str(folder)}).open(Place()) as scorer:
        ours = scorer(["w5 w6 ", "w7 "], answers, [{}, {}])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), families.tokenizer()
    for prompt, answer, value in zip(["w5 w6", "w7"], answers, ours):
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(f"{prompt} {answer}")["input_ids"], 2]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert value == pytest.approx(float(logps[start - 1 :].mean()), abs=1e-4)


def test_a_verdict_is_the_difference_between_yes_and_no(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("w3 w4")
    keys = {"kind": "logprob", "path": str(family_folder("llama")), "rubric": "rubric.txt"}
    with reward({**keys, "yes": "w20", "no": "w21"}).open(Place(tmp_path)) as scorer:
        values = scorer(["w5", "w5"], ["w6 w7", "w9"], [{}, {}])
    with reward({**keys, "yes": "w21", "no": "w20"}).open(Place(tmp_path)) as scorer:
        assert scorer(["w5", "w5"], ["w6 w7", "w9"], [{}, {}]) == pytest.approx([-v for v in values])
    assert all(math.isfinite(v) and v != 0 for v in values)


def test_a_prompt_is_text_as_a_person_would_read_it() -> None:
    single = Conversation((Message("system", "be kind"), Message("user", "Hi?")), "1")
    assert prompt_text(single) == "Hi?"
    several = Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "1")
    assert prompt_text(several) == "user: a\n\nassistant: b\n\nuser: c"
    assert prompt_text(PromptAnswer("do", "done", "with this", "", (), True, "1")) == "do\nwith this"
    assert build_reward(3) == 3


# ---------------------------------------------------------------------- what `luthier check` finds

LACKING = [
    ({"kind": "function", "path": "nowhere.py:score"}, "nowhere.py: The file with the reward function is not there"),
    ({"kind": "function", "path": "rewards.py:scores"}, 'no function "scores". Did you mean "score"?'),
    ({"kind": "function", "path": "broken.py:score"}, "broken.py:2: The file is no Python"),
    ({"kind": "judge", "endpoint": "host/v1", "model": "m", "rubric": "no.md"}, "no.md: The rubric cannot be read"),
    ({"kind": "judge", "endpoint": "host/v1", "model": "m"}, "no address of an endpoint"),
    ({"kind": "logprob", "path": "starter", "rubric": "no.md"}, "no.md: The rubric cannot be read"),
    ({"kind": "model", "path": "./runs/nowhere"}, "There is no such folder"),
    ({"kind": "sum", "parts": ["exact_match", "nowhere.py:score"]}, "nowhere.py: The file"),
]


@pytest.mark.parametrize(("value", "said"), LACKING, ids=[said[:25] for _, said in LACKING])
def test_what_is_missing_is_found_without_running_or_loading_anything(
    tmp_path: Path, value: dict[str, object], said: str
) -> None:
    (tmp_path / "rewards.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("def score(p, a, r):\n    return [\n")
    assert any(said in str(problem) for problem in reward(value).lacking(lambda path: tmp_path / path))


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "score = len\n",
        "from os import *\nif True:\n    def score(p, a, r): ...\n",
        "import os\nclass score: ...\n",
    ],
)
def test_a_function_that_may_be_there_is_not_called_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "rewards.py").write_text(text)
    assert reward("rewards.py:score").lacking(lambda path: tmp_path / path) == []


def test_check_reads_the_reward_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "w5 w6"}, {"prompt": "w7"}])
    keys: dict[str, object] = {"objective": {"kind": "grpo", "reward": "rewards.py:score"}, "samples": 0}
    recipe = write_recipe(tmp_path, "starter", **keys)
    said = luthier(capsys, "check", recipe)
    assert said.code == 2
    assert "rewards.py: The file with the reward function is not there" in said.err
    (tmp_path / "rewards.py").write_text(GOOD)
    assert luthier(capsys, "check", recipe).code == 0


def test_the_schema_knows_every_reward() -> None:
    from luthier.run.schema import recipe_schema

    definitions = recipe_schema()["$defs"]
    assert isinstance(definitions, dict)
    offered = [part.get("$ref", "") for part in definitions["Reward"]["oneOf"]]
    assert {f"#/$defs/reward.{kind}" for kind in kinds("reward")} <= set(offered)
    assert definitions["objective.grpo"]["properties"]["reward"]["$ref"] == "#/$defs/Reward"
