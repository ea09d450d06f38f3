"""Rendering without a template, documents, lengths, counts, and what is said when a row cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, family_tokenizer, lossy_tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.core.errors import DataError, ModelError
from luthier.data.encode import encode
from luthier.data.records import Conversation, Message, PromptAnswer, Record, Text
from luthier.data.render import Renderer, render_prompt, stop_token_ids
from luthier.data.templates import TEMPLATES, install, settle_template

PLAIN_NAMES = ["chatml", "llama 3", "mistral"]
ALPACA_HEAD = "Below is an instruction that describes a task"
words = st.lists(st.sampled_from([*"abc .,\n春é😀", " time", "Once"]), min_size=1, max_size=15).map("".join)


def row(prompt: str, answer: str, is_instruction: bool = False, context: str = "", line: int = 1) -> PromptAnswer:
    return PromptAnswer(prompt, answer, context, "", (), is_instruction, f"data/rows.jsonl:{line}")


def talk(*texts: str, line: int = 1) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Conversation(turns, f"data/rows.jsonl:{line}")


def shared_tokenizer(shared: Path, name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(shared / "models" / name)


def remedies(error: pytest.ExceptionInfo[DataError]) -> str:
    return " ".join(p.remedy for p in error.value.problems)


# ---- models without a chat template ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN_NAMES)
@settings(max_examples=50, deadline=None)
@given(prompt=words, answer=words)
def test_a_plain_row_is_bos_prompt_answer_eos_with_nothing_in_between(name: str, prompt: str, answer: str) -> None:
    tokenizer = family_tokenizer(name, with_template=False)
    record = row(prompt, answer)
    example = Renderer(tokenizer).render_all([record]).store[0]
    given_tokens = render_prompt(tokenizer, record)
    assert example.tokens[: len(given_tokens)].tolist() == given_tokens
    assert not example.weights[: len(given_tokens)].any()
    assert (example.weights[len(given_tokens) :] == 1.0).all()
    assert example.tokens[-1] == tokenizer.eos_token_id
    if FAMILIES[name].adds_bos:
        assert example.tokens[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in example.tokens[1:]
    inner = tokenizer.decode([i for i in example.tokens.tolist() if i not in tokenizer.all_special_ids])
    assert inner.strip() == (prompt + answer).strip()


@pytest.mark.parametrize("name", PLAIN_NAMES)
@pytest.mark.parametrize("context", ["", "It is blue."])
def test_instruction_rows_get_the_well_known_alpaca_prompt(name: str, context: str) -> None:
    tokenizer = family_tokenizer(name, with_template=False)
    rendered = Renderer(tokenizer).render_all([row("Name it.", "Sky", is_instruction=True, context=context)])
    example = rendered.store[0]
    prompt = tokenizer.decode(example.tokens[example.weights == 0], skip_special_tokens=True).strip()
    part = f"### Input:\n{context}\n\n" if context else ""
    assert prompt.startswith(ALPACA_HEAD)
    assert ("paired with an input" in prompt) == bool(context)
    assert prompt.endswith(f"### Instruction:\nName it.\n\n{part}### Response:")
    assert tokenizer.decode(example.tokens[example.weights > 0]).strip() == f"Sky{tokenizer.eos_token}"
    assert any("Alpaca" in note for note in rendered.counts["notes"])


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_settling_the_template_changes_no_token_and_lets_chat_use_the_same_prompt(name: str) -> None:
    records = [row("Name it.", "Sky", is_instruction=True, context="Blue.")]
    bare, settled = family_tokenizer(name, with_template=False), family_tokenizer(name, with_template=False)
    note = settle_template(settled, records, None)
    assert note is not None
    assert "saved with the model" in note
    one, other = (Renderer(t).render_all(records).store[0] for t in (bare, settled))
    assert one.tokens.tolist() == other.tokens.tolist()
    asked = talk("Name it.", "Sky")
    prompt = settled.apply_chat_template([{"role": "user", "content": "Name it."}], add_generation_prompt=True)
    assert render_prompt(settled, asked) == prompt["input_ids"]


def test_rows_that_need_no_template_leave_the_tokenizer_without_one() -> None:
    tokenizer = family_tokenizer("llama 3", with_template=False)
    assert settle_template(tokenizer, [Text("a", "a:1")], None) is None
    assert "nothing between" in str(settle_template(tokenizer, [row("a", "b")], None))
    assert not tokenizer.chat_template


def test_a_conversation_for_a_model_without_a_template_names_the_way_out() -> None:
    tokenizer = family_tokenizer("mistral", with_template=False)
    with pytest.raises(DataError) as error:
        Renderer(tokenizer).render_all([talk("a", "b", line=7)])
    assert "model.chat_template: chatml" in remedies(error)
    assert "rows.jsonl:7" in str(error.value)


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_shipped_templates_use_only_tokens_that_exist_and_train_the_end(name: str, template: str) -> None:
    tokenizer = family_tokenizer(name, with_template=False)
    size = len(tokenizer)
    record = talk("Hi there", "Hello", "How are you?", "Fine.")
    rendered = Renderer(tokenizer, chat_template=template).render_all([record])
    example = rendered.store[0]
    assert len(tokenizer) == size
    assert rendered.counts["end_tokens_trained"] == 1.0
    assert int(example.tokens[example.weights > 0][-1]) in stop_token_ids(tokenizer)
    prompt = render_prompt(tokenizer, record)
    assert example.tokens[: len(prompt)].tolist() == prompt or template == "plain"
    if FAMILIES[name].adds_bos:
        assert example.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_a_template_file_is_read_and_an_unknown_name_is_answered_with_the_choices(tmp_path) -> None:
    tokenizer = family_tokenizer("chatml", with_template=False)
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", encoding="utf-8")
    install(tokenizer, str(path))
    assert "m.content" in tokenizer.chat_template
    with pytest.raises(ModelError, match='Did you mean "chatml"') as error:
        install(tokenizer, "chatlm")
    assert "alpaca" in error.value.problems[0].remedy


# ---- documents ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(words.filter(str.strip), min_size=1, max_size=4), limit=st.integers(2, 12))
def test_windows_predict_every_token_of_a_document_exactly_once(texts: list[str], limit: int) -> None:
    tokenizer = family_tokenizer("llama 3")
    records = [Text(text, f"a.txt:{i}") for i, text in enumerate(texts)]
    whole = Renderer(tokenizer, "lm").render_all(records)
    cut = Renderer(tokenizer, "lm", max_length=limit).render_all(records)
    assert cut.store.lengths.max() <= limit
    assert cut.counts["trained_tokens"] == whole.counts["trained_tokens"]
    targets = np.concatenate([e.tokens[1:][e.weights[1:] > 0] for e in cut.store])
    assert targets.tolist() == np.concatenate([e.tokens[1:] for e in whole.store]).tolist()
    assert cut.counts["end_tokens_trained"] == 1.0
    assert cut.counts["windows"] == sum(1 for e in cut.store if len(whole.store[int(e.source.split(":")[1])]) > limit)


@pytest.mark.parametrize("name", ["llama 3", "mistral", "chatml"])
def test_a_document_has_one_bos_and_one_eos_even_if_the_text_brings_its_own(name: str) -> None:
    tokenizer = family_tokenizer(name)
    bos = tokenizer.bos_token if FAMILIES[name].adds_bos else ""
    texts = ["Once", f"{bos}Once", f"Once{tokenizer.eos_token}"]
    for example in Renderer(tokenizer, "lm").render_all([Text(t, "a:1") for t in texts]).store:
        assert example.tokens.tolist().count(tokenizer.eos_token_id) == 1
        assert example.tokens[-1] == tokenizer.eos_token_id
        if bos:
            assert example.tokens.tolist().count(tokenizer.bos_token_id) == 1


def test_documents_are_refused_under_sft_with_the_way_out() -> None:
    with pytest.raises(DataError) as error:
        Renderer(family_tokenizer("chatml"), "sft").render_all([Text("a", "a.txt:1")])
    assert "objective=lm" in remedies(error)


def test_language_modelling_on_conversations_trains_every_token() -> None:
    rendered = Renderer(family_tokenizer("llama 3"), "lm").render_all([talk("a", "b")])
    assert rendered.counts["trained_tokens"] == rendered.counts["tokens"] - 1
    assert rendered.counts["end_tokens_trained"] == 1.0


# ---- length ---------------------------------------------------------------------------------------------------------


LONG: list[Record] = [talk("a", "b c d " * i, line=i) for i in (1, 9, 1, 12)]


def test_long_rows_are_refused_with_what_each_way_out_would_do() -> None:
    with pytest.raises(DataError) as error:
        Renderer(family_tokenizer("chatml marked"), max_length=40).render_all(LONG)
    what, remedy = error.value.problems[0].what, remedies(error)
    assert "2 rows are longer than max_length=40" in what
    assert "rows.jsonl:9 (" in what
    assert "rows.jsonl:12 (" in what
    for way in ("raise max_length to", "on_overlong=drop leaves out 2", "on_overlong=truncate cuts the end off 2"):
        assert way in remedy


def test_dropping_counts_what_is_left_out() -> None:
    rendered = Renderer(family_tokenizer("chatml marked"), max_length=40, on_overlong="drop").render_all(LONG)
    assert (rendered.counts["dropped"], rendered.counts["examples"], rendered.counts["end_tokens_trained"]) == (
        2,
        2,
        1.0,
    )
    assert any("2 rows longer than 40" in note for note in rendered.counts["notes"])


def test_truncating_counts_lost_end_tokens_and_leaves_out_rows_without_an_answer() -> None:
    lost = talk("a " * 60, "b", line=3)
    renderer = Renderer(family_tokenizer("chatml marked"), max_length=40, on_overlong="truncate")
    rendered = renderer.render_all([*LONG, lost])
    counts = rendered.counts
    assert (counts["truncated"], counts["dropped"], counts["examples"]) == (2, 1, 4)
    assert counts["end_tokens_trained"] == 0.5
    assert counts["longest"] == 40
    assert any("2 of them lost their end token" in note for note in counts["notes"])


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), limit=st.integers(24, 60))
def test_no_example_is_longer_than_the_limit_and_each_has_something_to_learn(lengths: list[int], limit: int) -> None:
    records = [talk("a", "b " * n, line=n) for n in lengths]
    for how in ("drop", "truncate"):
        renderer = Renderer(family_tokenizer("llama 3"), max_length=limit, on_overlong=how)
        rendered = renderer.render_all([talk("a", "b"), *records])
        assert rendered.store.lengths.max() <= limit
        assert all(example.trained_tokens for example in rendered.store)
        assert rendered.counts["examples"] + rendered.counts["dropped"] == len(records) + 1


# ---- counts, warnings, errors ---------------------------------------------------------------------------------------


def test_counts_add_up() -> None:
    rendered = Renderer(family_tokenizer("qwen 3")).render_all([talk("a", "b"), talk("春眠", "不觉晓", "c", "d")])
    counts, store = rendered.counts, rendered.store
    assert counts["rows"] == counts["examples"] == len(store) == 2
    assert counts["tokens"] == sum(len(e) for e in store)
    assert counts["trained_tokens"] == sum(e.trained_tokens for e in store)
    assert counts["longest"] == max(len(e) for e in store)
    assert counts["notes"] == []


def test_rows_without_a_trained_token_are_counted_and_if_all_are_so_refused() -> None:
    silent = Conversation((Message("user", "a"), Message("assistant", "b", weight=0.0)), "rows.jsonl:2")
    rendered = Renderer(family_tokenizer("chatml")).render_all([talk("a", "b"), silent])
    assert (rendered.counts["dropped_untrained"], rendered.counts["examples"]) == (1, 1)
    assert any("rows.jsonl:2" in note and "Nothing in the row" in note for note in rendered.counts["notes"])
    with pytest.raises(DataError) as error:
        Renderer(family_tokenizer("chatml")).render_all([silent])
    assert "train_on: all" in remedies(error)


def test_what_a_template_refuses_is_collected_with_the_reason_and_a_remedy() -> None:
    with_system = Conversation((Message("system", "s"), *talk("a", "b").messages), "rows.jsonl:1")
    two_users = Conversation((Message("user", "a"), *talk("a", "b").messages), "rows.jsonl:2")
    with pytest.raises(DataError) as error:
        Renderer(family_tokenizer("gemma")).render_all([with_system, talk("a", "b"), two_users])
    assert len(error.value.problems) == 2
    assert "System role not supported" in str(error.value)
    assert "into the first user message" in remedies(error)
    assert "merge neighbouring messages" in remedies(error)
    with pytest.raises(DataError, match="System role"):
        render_prompt(family_tokenizer("gemma"), with_system)


def test_messages_that_a_template_leaves_out_are_named() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    record = Conversation((Message("system", "Be kind."), *talk("a", "b").messages), "rows.jsonl:1")
    notes = Renderer(tokenizer).render_all([record]).counts["notes"]
    assert any("leaves out the system message" in note for note in notes)


def test_text_that_is_read_as_a_special_token_is_named() -> None:
    notes = Renderer(family_tokenizer("chatml")).render_all([talk("what is <|im_end|>?", "a token")]).counts["notes"]
    assert any('"<|im_end|>"' in note for note in notes)


def test_two_bos_are_refused() -> None:
    tokenizer = family_tokenizer("llama 3")
    tokenizer.chat_template = "{{ bos_token }}" + FAMILIES["llama 3"].template
    with pytest.raises(DataError) as error:
        Renderer(tokenizer).render_all([talk("a", "b")])
    assert "two <|begin_of_text|>" in str(error.value)


def test_a_template_without_an_end_token_is_said() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rendered = Renderer(tokenizer).render_all([talk("a", "b", "c", "d")])
    assert rendered.counts["end_tokens_trained"] == 0.0
    assert any("only 0%" in note for note in rendered.counts["notes"])
    example = rendered.store[0]
    assert tokenizer.decode(example.tokens[example.weights > 0]) == "bd"


def test_unknown_characters_are_counted(shared: Path) -> None:
    poems = shared_tokenizer(shared, "zh-poem-750K")
    rendered = Renderer(poems, "lm").render_all([Text("春眠 hello", "a:1")])
    assert rendered.counts["unknown_tokens"] == 5
    assert any("unknown to the tokenizer" in note for note in rendered.counts["notes"])


@settings(max_examples=40, deadline=None)
@given(prompt=words.filter(str.strip), answer=words.filter(str.strip))
def test_a_tokenizer_that_loses_characters_is_named_and_its_masks_stay_right(prompt: str, answer: str) -> None:
    tokenizer = lossy_tokenizer()
    record = row(f"###{prompt}", f"Say {answer}")
    rendered = Renderer(tokenizer).render_all([record])
    example = rendered.store[0]
    assert rendered.counts["lost_characters"] >= 3
    assert any("no token for" in note for note in rendered.counts["notes"])
    given_tokens = render_prompt(tokenizer, record)
    assert example.tokens[: len(given_tokens)].tolist() == given_tokens
    assert (example.weights[1:] > 0).tolist() == [i >= len(given_tokens) for i in range(1, len(example))]


@pytest.mark.parametrize("name", ["stories260K", "TinyStories-656K", "zh-poem-750K"])
@settings(max_examples=40, deadline=None)
@given(prompt=st.sampled_from(["Once upon a", "Lily said", "春眠", "She "]), answer=words)
def test_real_tokenizers_keep_the_prompt_of_a_plain_row_apart(shared, name: str, prompt: str, answer: str) -> None:
    tokenizer = shared_tokenizer(shared, name)
    example = Renderer(tokenizer).render_all([row(prompt, answer)]).store[0]
    given_tokens = render_prompt(tokenizer, row(prompt, answer))
    assert example.tokens[: len(given_tokens)].tolist() == given_tokens
    assert not example.weights[: len(given_tokens)].any()
    assert example.weights[-1] == 1.0


def test_training_tokens_equal_the_tokenizer_s_own_for_documents(shared) -> None:
    tokenizer = shared_tokenizer(shared, "stories260K")
    example = Renderer(tokenizer, "lm").render_all([Text("Once upon a time", "a:1")]).store[0]
    assert example.tokens.tolist() == [*tokenizer("Once upon a time")["input_ids"], tokenizer.eos_token_id]
    assert encode(tokenizer, []) == []
