"""Iterations of learning from a model's own answers: reproducible, resumable bit for bit, stopped in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.component import component_class
from luthier.core.errors import Failure
from luthier.core.rundir import StageDir
from luthier.data.records import Asked, PromptAnswer
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.objectives.base import Objective
from luthier.rewards.base import Scorer
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from luthier.train.rl import KLRunawayError, iterate, measure_rollouts
from luthier.train.rollout import Prompt
from training import engine

_DRAW = np.random.default_rng(0)
KINDS = {
    "grpo": {"num_generations": 4, "beta": 0.1, "iterations": 2},
    "rloo": {"num_generations": 3},
    "ppo": {"iterations": 2, "minibatches": 2, "target_kl": 0.05},
}


class Evens(Scorer):
    """Likes answers of few words and even numbers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Mapping[str, object]]] = []

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[object], asked: object = None
    ) -> list[float]:
        self.seen += list(zip(prompts, answers, rows))  # type: ignore[arg-type]
        return [float(np.mean([int(w[1:]) % 2 == 0 for w in a.split() if w[1:].isdigit()] or [0])) for a in answers]


def _prompts(count: int = 4) -> list[Prompt]:
    made = []
    for index in range(count):
        tokens = _DRAW.integers(3, 60, 3 + index).astype(np.int32)
        record = PromptAnswer(f"prompt {index}", "", "", "", (), False, f"p.jsonl:{index}")
        made.append(Prompt(tokens, Asked(record, {"n": index}, record.source)))
    return made


PROMPTS = _prompts()


def _objective(kind: str, **fields: object) -> Objective:
    values = {"kind": kind, "reward": "exact_match", "max_new_tokens": 8, **KINDS[kind], **fields}
    return component_class("objective", kind).model_validate(values)  # type: ignore[return-value]


@pytest.fixture
def start(family_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    def make(kind: str, lora: bool = True, **fields: object) -> Engine:
        model = load_model(str(family_folder("llama")))
        assert isinstance(model, CausalModel)
        method = Lora(rank=2) if lora else Full()
        return engine(model, method, _objective(kind, **fields), keep_reference=True, total_steps=100)

    return make


def _tensors(running: Engine) -> dict[str, torch.Tensor]:
    state = running.objective_state
    own = {} if state is None else {f"own.{n}": t for n, t in state.state_dict().items()}
    return {n: t.detach().clone() for n, t in {**dict(running.model.module.named_parameters()), **own}.items()}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_four_iterations_are_two_and_a_restart_and_two_bit_for_bit(
    kind: str, lora: bool, start: Callable[..., Engine], tmp_path: Path
) -> None:
    whole = start(kind, lora)
    rows = [iterate(whole, Evens(), PROMPTS) for _ in range(4)]
    half = start(kind, lora)
    first = [iterate(half, Evens(), PROMPTS) for _ in range(2)]
    stage = StageDir(tmp_path)
    save_checkpoint(half, stage, {}, keep=1)
    again = start(kind, lora)
    load_checkpoint(again, stage.complete_checkpoints()[-1])
    assert first + [iterate(again, Evens(), PROMPTS) for _ in range(2)] == rows
    ours, theirs = _tensors(again), _tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert any(not torch.equal(theirs[n], t) for n, t in _tensors(start(kind, lora)).items())


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_row_says_what_happened_in_the_answers(kind: str, start: Callable[..., Engine]) -> None:
    running, scorer = start(kind), Evens()
    row = iterate(running, scorer, PROMPTS)
    told = {"reward", "reward_std", "kl", "entropy", "response_length", "truncated", "clip_fraction", "loss", "step"}
    assert told | ({"explained_variance", "kl_coefficient"} if kind == "ppo" else set()) <= row.keys()
    assert row["step"] == running.step == running.objective.updates  # type: ignore[attr-defined]
    assert row["kl"] == pytest.approx(0.0, abs=1e-9)
    assert len(scorer.seen) == len(PROMPTS) * running.objective.answers  # type: ignore[attr-defined]
    assert scorer.seen[0][0] == "prompt 0"
    assert scorer.seen[0][2] == {"n": 0}
    assert all(np.isfinite(value) for value in row.values())
    assert iterate(running, scorer, PROMPTS)["kl"] > 1e-8


def test_answers_that_are_all_worth_the_same_teach_nothing_and_break_nothing(start: Callable[..., Engine]) -> None:
    class Same(Scorer):
        def __call__(self, prompts: object, answers: Sequence[str], rows: object, asked: object = None) -> list[float]:
            return [0.5] * len(answers)

    for fields in ({"beta": 0.0}, {"beta": 0.0, "scale_rewards": "batch"}):
        running = start("grpo", **fields)
        before = _tensors(running)
        row = iterate(running, Same(), PROMPTS)
        assert row["grad_norm"] == 0.0
        assert all(torch.equal(before[n], t) for n, t in _tensors(running).items())


def test_the_model_learns_what_the_reward_likes(start: Callable[..., Engine]) -> None:
    running = start("grpo", lora=False, iterations=1, beta=0.0, num_generations=8)
    running.settings = type(running.settings)(total_steps=1000, learning_rate=3e-3, keep_reference=True)
    before = measure_rollouts(running, Evens(), PROMPTS)
    rows = [iterate(running, Evens(), PROMPTS) for _ in range(12)]
    after = measure_rollouts(running, Evens(), PROMPTS)
    assert after["reward"] > before["reward"] + 0.2
    assert rows[-1]["kl"] > 0
    assert measure_rollouts(running, Evens(), PROMPTS) == after


def test_a_model_that_runs_away_is_stopped_before_its_next_step(start: Callable[..., Engine]) -> None:
    running = start("grpo", max_kl=1e-9)
    iterate(running, Evens(), PROMPTS)
    before = _tensors(running)
    with pytest.raises(KLRunawayError, match="max_kl"):
        iterate(running, Evens(), PROMPTS)
    assert all(torch.equal(before[n], t) for n, t in _tensors(running).items())


def test_when_every_answer_is_masked_the_message_says_how_to_go_on(start: Callable[..., Engine]) -> None:
    running = start("grpo", mask_truncated=True, max_new_tokens=1)
    running.model.tokenizer.eos_token = None
    running.model.module.generation_config.eos_token_id = None
    with pytest.raises(Failure, match="max_new_tokens"):
        iterate(running, Evens(), PROMPTS)


def test_the_start_is_looked_at_with_the_trained_tensors_put_back(start: Callable[..., Engine]) -> None:
    running = start("rloo", lora=False)
    for _ in range(2):
        iterate(running, Evens(), PROMPTS)
    before = _tensors(running)
    with running.reference():
        assert any(not torch.equal(before[n], t) for n, t in _tensors(running).items())
    assert all(torch.equal(before[n], t) for n, t in _tensors(running).items())
