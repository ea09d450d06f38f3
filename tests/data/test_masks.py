"""Laws of rendering: trained is exactly what the assistant writes, its end token included, for every template."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, family_tokenizer

import families
from luthier.core.batch import Example
from luthier.core.errors import DataError
from luthier.data.records import Conversation, Message, PromptAnswer
from luthier.data.render import Renderer, TrainOn, render_prompt, stop_token_ids

ORDINARY = [name for name in FAMILIES if name != "r1"]
letters = st.sampled_from([*"ab cdé\n\t.,:#<>|春眠😀’", "  ", "\n\n", "Once", " time", "</", "user"])
texts = st.lists(letters, min_size=1, max_size=12).map("".join).filter(lambda text: text.strip() != "")


@st.composite
def conversations(draw: st.DrawFn, with_system: bool = True) -> Conversation:
    turns = []
    if with_system and draw(st.booleans()):
        turns.append(Message("system", draw(texts)))
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    return Conversation(tuple(turns), "made.jsonl:1")


@functools.cache
def tokenizer_of(name: str):
    return family_tokenizer(name)


def render(name: str, record: Conversation | PromptAnswer, train_on: TrainOn = "assistant") -> Example:
    return Renderer(tokenizer_of(name), "sft", train_on).render_all([record]).store[0]


def runs(example: Example) -> list[np.ndarray]:
    """Return the stretches of trained tokens."""
    trained = np.concatenate([[0], (example.weights > 0).astype(int), [0]])
    starts, stops = np.flatnonzero(np.diff(trained) == 1), np.flatnonzero(np.diff(trained) == -1)
    return [example.tokens[a:b] for a, b in zip(starts, stops)]


def answers(record: Conversation) -> list[str]:
    return [m.content for m in record.messages if m.role == "assistant"]


@pytest.mark.parametrize("name", ORDINARY)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_weights_cover_exactly_the_answers_and_their_end_tokens(name: str, data: st.DataObject) -> None:
    record = data.draw(conversations(FAMILIES[name].has_system))
    tokenizer, end = tokenizer_of(name), tokenizer_of(name).convert_tokens_to_ids(FAMILIES[name].end)
    found = runs(render(name, record))
    assert len(found) == len(answers(record))
    for run, answer in zip(found, answers(record)):
        assert run[-1] == end
        assert list(run).count(end) == 1
        written = tokenizer.decode(run[:-1]).removeprefix("<think>\n\n</think>\n\n")
        assert written.strip() == answer.strip()


@pytest.mark.parametrize("name", ORDINARY)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_training_row_begins_with_the_tokens_that_chat_sends(name: str, data: st.DataObject) -> None:
    record = data.draw(conversations(FAMILIES[name].has_system))
    example, prompt = render(name, record, "last"), render_prompt(tokenizer_of(name), record)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert not example.weights[: len(prompt)].any()
    assert example.weights[len(prompt)] == 1.0
    assert len(runs(example)) == 1


@pytest.mark.parametrize("name", list(FAMILIES))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_text_is_the_one_that_the_template_writes(name: str, data: st.DataObject) -> None:
    record = data.draw(conversations(FAMILIES[name].has_system))
    tokenizer = tokenizer_of(name)
    turns = [{"role": m.role, "content": m.content} for m in record.messages]
    expected = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert tokenizer.decode(render(name, record).tokens) == tokenizer.decode(expected)
    assert render(name, record, "all").tokens.tolist() == expected


@pytest.mark.parametrize("name", list(FAMILIES))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_there_is_one_bos_or_none_and_all_means_every_token(name: str, data: st.DataObject) -> None:
    example = render(name, data.draw(conversations(FAMILIES[name].has_system)), "all")
    bos = tokenizer_of(name).bos_token_id
    if bos is not None and FAMILIES[name].template.count("bos_token"):
        assert example.tokens[0] == bos
        assert bos not in example.tokens[1:]
    assert example.weights[0] == 0.0
    assert (example.weights[1:] == 1.0).all()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_prompt_answer_rows_and_conversations_give_the_same_tokens(name: str) -> None:
    row = PromptAnswer("Who?", "Lily.", "In the story", "", (("Hi", "Hello"),), True, "a.json:1")
    same = Conversation(
        (
            Message("user", "Hi"),
            Message("assistant", "Hello"),
            Message("user", "Who?\nIn the story"),
            Message("assistant", "Lily."),
        ),
        "a.json:1",
    )
    one, other = render(name, row), render(name, same)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.weights.tolist() == other.weights.tolist()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_answer_that_also_stands_in_the_prompt_is_trained_once(name: str) -> None:
    record = Conversation((Message("user", "yes yes"), Message("assistant", "yes")), "a.json:1")
    (run,) = runs(render(name, record))
    text = tokenizer_of(name).decode(run[:-1]).removeprefix("<think>\n\n</think>\n\n")
    assert text.strip() == "yes"


@pytest.mark.parametrize("name", ORDINARY)
def test_weights_of_single_messages_are_respected(name: str) -> None:
    turns = [
        Message("user", "one"),
        Message("assistant", "two", weight=0.0),
        Message("user", "three"),
        Message("assistant", "four", weight=0.5),
        Message("user", "five"),
        Message("assistant", "six"),
    ]
    example = render(name, Conversation(tuple(turns), "a.json:1"))
    found = runs(example)
    words = [tokenizer_of(name).decode(run[:-1]).removeprefix("<think>\n\n</think>\n\n").strip() for run in found]
    assert words == ["four", "six"]
    assert sorted(set(example.weights.tolist())) == [0.0, 0.5, 1.0]


def test_a_user_message_with_a_weight_of_its_own_is_trained() -> None:
    record = Conversation((Message("user", "one", weight=1.0), Message("assistant", "two")), "a.json:1")
    words = [tokenizer_of("chatml").decode(run) for run in runs(render("chatml", record))]
    assert words == ["one<|im_end|>", "two<|im_end|>"]


def test_an_empty_thinking_block_that_the_template_writes_is_trained_since_chat_does_not_send_it() -> None:
    record = Conversation((Message("user", "Hi"), Message("assistant", "Hello")), "a.json:1")
    (run,) = runs(render("qwen 3", record))
    assert tokenizer_of("qwen 3").decode(run) == "<think>\n\n</think>\n\nHello<|im_end|>"


def test_thinking_is_trained_in_the_last_answer_and_dropped_from_earlier_ones() -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", "<think>\nfirst\n</think>\n\nb"),
        Message("user", "c"),
        Message("assistant", "d", reasoning="second"),
    ]
    found = runs(render("qwen 3", Conversation(tuple(turns), "a.json:1")))
    words = [tokenizer_of("qwen 3").decode(run) for run in found]
    assert words == ["b<|im_end|>", "<think>\nsecond\n</think>\n\nd<|im_end|>"]


def test_a_generation_prompt_that_training_rows_lack_leaves_the_answer_alone_trained() -> None:
    record = Conversation((Message("user", "a"), Message("assistant", "<think>x</think>b")), "a.json:1")
    (run,) = runs(render("r1", record))
    assert tokenizer_of("r1").decode(run) == "b<|end|>"


def test_a_system_text_that_moves_into_a_later_message_does_not_mislead_the_mask() -> None:
    turns = [Message("system", "S"), Message("user", "a"), Message("assistant", "b")]
    turns += [Message("user", "c"), Message("assistant", "d")]
    found = runs(render("mistral", Conversation(tuple(turns), "a.json:1")))
    assert [tokenizer_of("mistral").decode(run).strip() for run in found] == ["b</s>", "d</s>"]


@pytest.mark.parametrize(("name", "expected"), [(n, f.end) for n, f in FAMILIES.items()])
def test_generation_stops_at_the_token_that_ends_a_turn(name: str, expected: str) -> None:
    ids = stop_token_ids(tokenizer_of(name))
    assert tokenizer_of(name).convert_tokens_to_ids(expected) in ids
    assert set(ids) <= {tokenizer_of(name).convert_tokens_to_ids(t) for t in (expected, FAMILIES[name].eos)}


@pytest.mark.parametrize("mark_from", ["<|im_start|>assistant", "assistant", ""])
def test_marks_that_begin_inside_the_generation_prompt_do_not_train_it(mark_from: str) -> None:
    head = "<|im_start|>assistant\n"
    at = head.index(mark_from) if mark_from else len(head)
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '"
        + head[:at].replace("\n", "\\n")
        + "' }}{% generation %}{{ '"
        + head[at:].replace("\n", "\\n")
        + "' + m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    record = Conversation((Message("user", "a"), Message("assistant", "b")), "a.json:1")
    (run,) = runs(Renderer(tokenizer).render_all([record]).store[0])
    assert tokenizer.decode(run) == "b<|im_end|>"


def test_all_tokens_that_close_a_turn_are_trained() -> None:
    tokenizer = family_tokenizer("llama 3")
    tokenizer.chat_template = FAMILIES["llama 3"].template.replace("+ '<|eot_id|>'", "+ '<|end_header_id|><|eot_id|>'")
    record = Conversation((Message("user", "a"), Message("assistant", "b"), *([Message("user", "c")] * 2)), "a.json:1")
    (run,) = runs(Renderer(tokenizer).render_all([record]).store[0])
    assert tokenizer.decode(run) == "b<|end_header_id|><|eot_id|>"


@pytest.mark.parametrize("body", ["{{ m.content | upper }}", "", "{{ m.content[1:] }}"])
def test_a_template_that_rewrites_or_leaves_out_the_answer_is_refused(body: str) -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + body + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    record = Conversation((Message("user", "ab"), Message("assistant", "cd")), "a.json:1")
    with pytest.raises(DataError, match="message 2"):
        Renderer(tokenizer).render_all([record])


def test_a_prompt_that_chat_sends_and_training_rows_lack_is_said() -> None:
    record = Conversation((Message("user", "a"), Message("assistant", "b")), "a.json:1")
    notes = Renderer(tokenizer_of("r1")).render_all([record]).counts["notes"]
    assert any("<think>" in note and "otherwise" in note for note in notes)


def test_a_tokenizer_of_whole_words_keeps_the_first_word_of_an_answer():
    row = PromptAnswer("w27 w28 ", "w29 w51", "", "", (), False, "a.jsonl:1")
    rendered = Renderer(families.tokenizer(), "sft").render_all([row])
    [example] = rendered.store
    assert example.tokens.tolist() == [27, 28, 29, 51, 2]
    assert example.weights.tolist() == [0, 0, 1, 1, 1]
    assert rendered.counts["lost_characters"] == 0
