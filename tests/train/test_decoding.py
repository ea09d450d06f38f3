"""The decode loop: log-probabilities are the model's own, and every answer draws numbers of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from families import NAMES
from luthier.core.batch import Example
from luthier.core.component import component_class
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.train import decoding
from luthier.train.decoding import draw, uniform
from luthier.train.generate import Sampling, generate, sample, stop_tokens

_DRAW = np.random.default_rng(0)
PROMPTS = [_DRAW.integers(3, 60, n).tolist() for n in (7, 2, 11, 4)]
NEW = 10
Loaded = Callable[[str], CausalModel]


@pytest.fixture
def loaded(family_folder: Callable[[str], Path]) -> Loaded:
    return lambda name: load_model(str(family_folder(name)))


def _logps(model: CausalModel, prompt: list[int], answer: np.ndarray, temperature: float) -> torch.Tensor:
    tokens = torch.tensor([*prompt, *answer.tolist()])
    with torch.no_grad():
        logits = model.module(input_ids=tokens[None], use_cache=False).logits[0].float() / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("name", NAMES)
def test_an_answers_log_probabilities_and_entropies_are_those_of_a_full_pass(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    model.module.eval()
    found = sample(model, PROMPTS, 3, Sampling(NEW, temperature=0.7, seed=5))
    for prompt, answers in zip(PROMPTS, found):
        assert len(answers) == 3
        for answer in answers:
            full = _logps(model, prompt, answer.tokens, 0.7)
            picked = full.gather(1, torch.from_numpy(answer.tokens.astype(np.int64))[:, None])[:, 0]
            assert answer.logps is not None
            assert answer.entropies is not None
            np.testing.assert_allclose(answer.logps, picked.numpy(), atol=2e-4)
            np.testing.assert_allclose(answer.entropies, -(full.exp() * full).sum(1).numpy(), atol=2e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "lora"])
def test_the_loop_serves_models_with_something_put_into_them(kind: str, loaded: Loaded) -> None:
    model = loaded("llama")
    component_class("method", kind).model_validate({"kind": kind}).prepare(model.module)  # type: ignore[attr-defined]
    model.module.eval()
    for prompt, [answer] in zip(PROMPTS, sample(model, PROMPTS, 1, Sampling(NEW, temperature=1.0))):
        full = _logps(model, prompt, answer.tokens, 1.0)
        picked = full.gather(1, torch.from_numpy(answer.tokens.astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(answer.logps, picked.numpy(), atol=2e-4)  # type: ignore[arg-type]


def test_an_answer_does_not_depend_on_the_batch_it_is_made_in(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.train import generate as module

    model = loaded("llama")
    chosen = Sampling(NEW, temperature=1.0, top_p=0.95, top_k=40, seed=3)
    whole = [[a.tokens.tolist() for a in group] for group in sample(model, PROMPTS, 4, chosen)]
    monkeypatch.setattr(module, "BATCH_TOKENS", 40)
    assert [[a.tokens.tolist() for a in group] for group in sample(model, PROMPTS, 4, chosen)] == whole
    assert len({tuple(t) for t in whole[0]}) == 4


def test_a_prompt_is_read_once_however_many_answers_it_gets(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama")
    seen = []
    model.module.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(model, PROMPTS, 4, Sampling(3, temperature=1.0))
    assert seen[0] == (4, 11)
    assert all(shape[1] == 1 and shape[0] <= 16 for shape in seen[1:])


def test_rows_that_have_ended_are_taken_out(loaded: Loaded) -> None:
    model = loaded("llama")
    rows = []
    model.module.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    model.module.generation_config.eos_token_id = list(range(3, 40))
    found = sample(model, PROMPTS, 8, Sampling(24, temperature=1.0))
    assert rows[-1] < rows[1]
    stops = stop_tokens(model)
    for answer in (a for group in found for a in group):
        assert answer.is_truncated != (int(answer.tokens[-1]) in stops)
        assert not set(answer.tokens[:-1].tolist()) & set(stops)


def test_draws_follow_the_probabilities_and_what_top_p_and_top_k_leave() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    chance = torch.from_numpy(uniform(0, 0, 20000))
    rows = logits.expand(len(chance), -1)

    def shares(sampling: Sampling) -> np.ndarray:
        return np.bincount(draw(rows, chance, sampling).numpy(), minlength=4) / len(chance)

    np.testing.assert_allclose(shares(Sampling(temperature=1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    np.testing.assert_allclose(shares(Sampling(temperature=1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(shares(Sampling(temperature=1.0, top_p=0.8)), [0.625, 0.375, 0, 0], atol=0.015)
    assert draw(logits[None], torch.tensor([1.0]), Sampling(temperature=1.0, top_k=2)).tolist() == [1]


def test_a_model_that_keeps_no_keys_and_values_is_left_to_transformers(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("llama")
    expected = generate(model, PROMPTS, Sampling(NEW))
    monkeypatch.setattr(decoding, "decodes", lambda _: False)
    assert generate(model, PROMPTS, Sampling(NEW)) == expected
    [group] = sample(model, PROMPTS[:1], 3, Sampling(NEW, temperature=1.0))
    assert [a.logps for a in group] == [None] * 3
    assert all(isinstance(a.tokens, np.ndarray) for a in group)
    assert Example(group[0].tokens, np.ones(len(group[0].tokens), dtype=np.float32))


def test_tokens_that_the_generation_config_suppresses_are_never_drawn(loaded: Loaded) -> None:
    model = loaded("llama")
    free = generate(model, PROMPTS, Sampling(NEW))
    model.module.generation_config.suppress_tokens = [free[0][0]]
    assert all(free[0][0] not in answer for answer in generate(model, PROMPTS, Sampling(NEW)))
    model.module.generation_config.no_repeat_ngram_size = 2
    assert not decoding.decodes(model)


def test_folded_adapters_write_what_they_write_otherwise_and_are_unfolded_behind(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.models import folding

    model = loaded("llama")
    component_class("method", "lora").model_validate({"kind": "lora", "rank": 2}).prepare(model.module)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    seen = [m for m in model.module.modules() if isinstance(m, folding.Foldable)]
    assert seen
    folded = sample(model, PROMPTS, 2, Sampling(NEW, temperature=1.0))
    assert not any("forward" in vars(m) for m in seen)
    assert all(torch.equal(before[n], p) for n, p in model.module.named_parameters())
    monkeypatch.setattr(folding, "MOST_BYTES", 0)
    plain = sample(model, PROMPTS, 2, Sampling(NEW, temperature=1.0))
    for ours, theirs in zip(folded, plain):
        assert [a.tokens.tolist() for a in ours] == [a.tokens.tolist() for a in theirs]
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)  # type: ignore[arg-type]
