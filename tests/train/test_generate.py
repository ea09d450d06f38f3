"""Generation: greedy answers are what token-by-token full forward passes give, alone or in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from families import CONTEXT, NAMES, WINDOW
from luthier.methods.lora import Lora
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.train import generate as generate_module
from luthier.train.generate import Sampling, generate, stop_tokens
from training import engine

_DRAW = np.random.default_rng(0)
PROMPTS = [_DRAW.integers(3, 60, n).tolist() for n in (7, 1, 2 * WINDOW + 3, 4, 7, 22)]
NEW = 12

Loaded = Callable[[str], CausalModel]


@pytest.fixture
def loaded(family_folder: Callable[[str], Path]) -> Loaded:
    return lambda name: load_model(str(family_folder(name)))


def _argmax_by_full_passes(
    model: CausalModel, prompt: Sequence[int], new_tokens: int, stops: Sequence[int]
) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model.module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in stops:
                return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_equal_token_by_token_argmax_and_do_not_depend_on_the_batch(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    model.module.eval()
    expected = [_argmax_by_full_passes(model, p, NEW, stop_tokens(model)) for p in PROMPTS]
    assert generate(model, PROMPTS, Sampling(max_new_tokens=NEW)) == expected
    assert [generate(model, [p], Sampling(max_new_tokens=NEW))[0] for p in PROMPTS] == expected
    assert len({tuple(e) for e in expected}) > 3  # answers that are all alike would prove little


def test_answers_come_back_in_the_order_of_the_prompts_through_several_batches(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("llama")
    whole = generate(model, PROMPTS, Sampling(max_new_tokens=NEW))
    monkeypatch.setattr(generate_module, "BATCH_TOKENS", 40)
    assert generate(model, PROMPTS, Sampling(max_new_tokens=NEW)) == whole
    assert generate(model, PROMPTS[::-1], Sampling(max_new_tokens=NEW)) == whole[::-1]


@pytest.mark.parametrize("where", ["tokenizer", "generation config"])
def test_an_answer_ends_before_its_end_token(where: str, loaded: Loaded) -> None:
    model = loaded("llama")
    free = generate(model, PROMPTS, Sampling(max_new_tokens=NEW))
    end = next(a[3] for a in free if len(a) == NEW and a[3] not in a[:3])
    if where == "tokenizer":
        model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    else:
        model.module.generation_config.eos_token_id = [2, end]
    assert end in stop_tokens(model)
    cut = [a[: a.index(end)] if end in a else a for a in free]
    assert generate(model, PROMPTS, Sampling(max_new_tokens=NEW)) == cut
    assert any(len(a) == 3 for a in cut)


def test_generation_stops_where_the_models_context_ends_whatever_else_is_in_the_batch(loaded: Loaded) -> None:
    for name in ("llama", "gpt2"):
        model = loaded(name)
        long, short = _DRAW.integers(3, 60, CONTEXT - 5).tolist(), PROMPTS[0]
        model.tokenizer.eos_token = None
        model.module.generation_config.eos_token_id = None
        prompts = [short, long, long[: CONTEXT - 9], [*long, 5, 6, 7, 8, 9], [*long, *long]]
        answers = generate(model, prompts, Sampling(max_new_tokens=NEW))
        assert list(map(len, answers)) == [NEW, 5, 9, 0, 0]
        assert answers[0] == generate(model, [short], Sampling(max_new_tokens=NEW))[0]


def test_sampling_is_reproducible_by_seed_and_differs_between_seeds(loaded: Loaded) -> None:
    model = loaded("llama")
    draws = [generate(model, PROMPTS, Sampling(NEW, temperature=1.0, seed=s)) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != generate(model, PROMPTS, Sampling(NEW))


def test_a_low_temperature_and_a_small_nucleus_come_to_the_greedy_answer(loaded: Loaded) -> None:
    model = loaded("llama")
    greedy = generate(model, PROMPTS, Sampling(NEW))
    assert generate(model, PROMPTS, Sampling(NEW, temperature=1e-4)) == greedy
    assert generate(model, PROMPTS, Sampling(NEW, temperature=1.0, top_p=1e-6)) == greedy


def test_what_the_generation_config_says_of_sampling_does_not_bend_greedy_answers(loaded: Loaded) -> None:
    model = loaded("llama")
    greedy = generate(model, PROMPTS, Sampling(NEW))
    config = model.module.generation_config
    config.do_sample, config.temperature, config.top_k, config.top_p = True, 0.7, 20, 0.8
    config.repetition_penalty = 1.5
    assert generate(model, PROMPTS, Sampling(NEW)) == greedy


def test_a_model_in_training_generates_without_dropout_and_goes_on_training(loaded: Loaded) -> None:
    model = loaded("gpt2-dropout")
    expected = generate(model, PROMPTS, Sampling(NEW))
    running = engine(model, Lora(rank=2), gradient_checkpointing=True)
    assert model.module.training
    assert generate(model, PROMPTS, Sampling(NEW)) == expected
    assert model.module.training
    assert running.model.module.training


def test_no_prompts_give_no_answers(loaded: Loaded) -> None:
    assert generate(loaded("llama"), [], Sampling(NEW)) == []


def test_an_empty_prompt_is_continued_as_the_beginning_of_a_text(loaded: Loaded) -> None:
    model = loaded("llama")
    begun = generate(model, [[model.tokenizer.bos_token_id], PROMPTS[0]], Sampling(NEW))
    assert generate(model, [[], PROMPTS[0]], Sampling(NEW)) == begun
    assert generate(model, [[]], Sampling(NEW)) == begun[:1]
    model.tokenizer.bos_token = None
    assert generate(model, [[]], Sampling(NEW)) == generate(model, [[model.tokenizer.eos_token_id]], Sampling(NEW))
