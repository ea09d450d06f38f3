"""Thinking before an answer: trained, hidden or stripped, from every place where rows keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import family_tokenizer

from families import write
from luthier.core.batch import Example
from luthier.data.load import load_records
from luthier.data.reasoning import has_reasoning, stripped
from luthier.data.records import Conversation, Message, PromptAnswer, Record
from luthier.data.render import Renderer
from luthier.data.spec import DataSpec
from recipes import luthier, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
TALK = Conversation(
    (Message("user", "How many?"), Message("assistant", "<think>\nTwo and two.\n</think>\n\nFour.")), "rows.jsonl:1"
)
KEYED = Conversation(
    (Message("user", "How many?"), Message("assistant", "Four.", reasoning="Two and two.")), "rows.jsonl:1"
)
PAIR = PromptAnswer(
    "How many? ", "Two and two.\nThe answer is four.", "", "", (), False, "rows.jsonl:1", "Two and two.\n"
)
TEMPLATES = ["chatml", "llama 3", "mistral"]


def rendered(record: Record, name: str, hides: bool, template: bool = True) -> tuple[Example, str, str]:
    """The example, and its text that is learnt and that is only read."""
    tokenizer = family_tokenizer(name, with_template=template)
    result = Renderer(tokenizer, hides_reasoning=hides).render_all([record])
    example = result.store[0]
    learnt = tokenizer.decode(example.tokens[example.weights > 0], skip_special_tokens=True)
    read = tokenizer.decode(example.tokens[example.weights == 0], skip_special_tokens=True)
    return example, learnt, read


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("record", [TALK, PAIR], ids=["think", "rationale"])
def test_hidden_thinking_is_read_and_not_learnt(record: Record, name: str) -> None:
    open_, learnt, _ = rendered(record, name, hides=False)
    assert "Two and two." in learnt
    closed, learnt, read = rendered(record, name, hides=True)
    assert closed.tokens.tolist() == open_.tokens.tolist(), "the text stays the same"
    assert "Two and two" in read
    assert "two" not in learnt
    assert learnt.strip().lower().endswith("four.")
    assert closed.weights[-3:].any(), "the end of the answer is still learnt"


def test_rationales_are_hidden_without_a_template_too() -> None:
    _, learnt, read = rendered(PAIR, "chatml", hides=True, template=False)
    assert learnt.strip() == "The answer is four."
    assert "How many? Two and two." in " ".join(read.split())


def test_a_key_of_the_message_is_hidden_where_the_template_writes_it() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
        "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for hides in (False, True):
        example = Renderer(tokenizer, hides_reasoning=hides).render_all([KEYED]).store[0]
        learnt = tokenizer.decode(example.tokens[example.weights > 0])
        assert ("Two and two." in learnt) == (not hides)
        assert "Four." in learnt


def test_thinking_that_the_template_opens_in_its_prompt_is_hidden_as_well() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    talk = Conversation((Message("user", "q"), Message("assistant", "<think>so so</think>\n\nFour.")), "r:1")
    example = Renderer(tokenizer, hides_reasoning=True).render_all([talk]).store[0]
    learnt = tokenizer.decode(example.tokens[example.weights > 0])
    assert "so" not in learnt
    assert "Four." in learnt


def test_what_is_hidden_is_counted() -> None:
    tokenizer = family_tokenizer("chatml")
    counts = Renderer(tokenizer, hides_reasoning=True).render_all([TALK, TALK]).counts
    assert any("in 2 rows" in note and "reasoning: hidden" in note for note in counts["notes"])  # type: ignore[union-attr]
    shown = Renderer(tokenizer).render_all([TALK]).counts
    assert not any("reasoning" in note for note in shown["notes"])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("record", "answer"), [(TALK, "Four."), (KEYED, "Four."), (PAIR, "four")], ids=["think", "key", "rationale"]
)
def test_stripped_rows_have_their_answers_alone(record: Record, answer: str) -> None:
    assert has_reasoning(record)
    found = stripped(record)
    assert not has_reasoning(found)
    assert (found.answer if isinstance(found, PromptAnswer) else found.messages[-1].content) == answer  # type: ignore[union-attr]
    assert stripped(found) == found


@pytest.mark.parametrize("column", ["rationale", "reasoning"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "answer": "b"},
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "context": "", "response": "b"},
    ],
    ids=["pair", "alpaca", "dolly"],
)
def test_a_column_holds_it_in_every_format_of_questions_and_answers(
    tmp_path: Path, row: dict[str, str], column: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**row, column: "because"}, {**row, column: None}])
    first, second = load_records(DataSpec(path=str(path))).records
    assert isinstance(first, PromptAnswer)
    assert isinstance(second, PromptAnswer)
    assert (first.answer, first.reasoning) == ("because\nThe answer is b.", "because\n")
    assert (second.answer, second.reasoning) == ("b", "")


def _rows(home: Path) -> None:
    home.mkdir()
    row = {"prompt": "w4 w5 ", "answer": "w6", "rationale": "w7 w8 w9"}
    write_rows(home / "rows.jsonl", [row, {**row, "prompt": "w5 w5 "}] * 4)


def test_a_run_says_what_it_does_with_reasoning_and_learns_what_it_says(tmp_path: Path, capsys: Capture) -> None:
    model = write("llama", tmp_path / "model")
    trained = {}
    for policy in ("trained", "hidden", "stripped"):
        home = tmp_path / policy
        _rows(home)
        said = luthier(capsys, "train", write_recipe(home, model, reasoning=policy, max_steps=1), "--json")
        assert said.code == 0, said.err
        assert (f"reasoning: {policy}" in said.err) == (policy != "trained")
        trained[policy] = (said.json["data"]["trained_tokens"], said.json["data"]["tokens"])
    assert trained["hidden"][1] == trained["trained"][1]
    assert trained["stripped"][1] < trained["hidden"][1]
    assert trained["stripped"][0] < trained["trained"][0]
    assert trained["hidden"][0] == trained["trained"][0] - 8 * 3


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"reasoning": "hidden"}, "no row has any"),
        ({"reasoning": "stripped"}, "no row has any"),
        ({"reasoning": "hidden", "objective": "lm", "data": "text.jsonl"}, "no answers that are thought about"),
        ({"reasoning": "hidden", "train_on": "all"}, "learns every word"),
    ],
    ids=str,
)
def test_a_policy_that_changes_nothing_is_refused(
    keys: dict[str, object], what: str, tmp_path: Path, capsys: Capture
) -> None:
    model = write("llama", tmp_path / "model")
    home = tmp_path / "r"
    home.mkdir()
    write_rows(home / "text.jsonl", [{"text": "w4 w5 w6"}])
    said = luthier(capsys, "check", write_recipe(home, model, **keys))
    assert said.code == 2
    assert what in said.err
