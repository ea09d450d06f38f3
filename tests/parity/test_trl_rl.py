"""GRPO and RLOO against TRL 1.16: one step of its trainers, and ours on the answers that it drew.

Losses and gradients agree to 1e-5 of the largest gradient, advantages to 1e-5; TRL computes padded rows in 32 bits, we
packed ones with the prompt computed once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from families import build, tokenizer
from luthier.core.batch import Example
from luthier.models.causal import CausalModel, probe
from luthier.objectives.grpo import Grpo
from luthier.objectives.rloo import Rloo
from luthier.objectives.rollouts import Group

trl = pytest.importorskip("trl")
ANSWERS, NEW, PROMPTS = 3, 7, ["w5 w9 w11", "w7", "w3 w4 w20 w21 w30", "w8 w8"]
TOLERANCE = 1e-5


def score(completions: list[str], **_: object) -> list[float]:
    """An odd reward, so that answers differ."""
    return [sum(int(n) for n in re.findall(r"w(\d+)", text)) % 7 / 3.0 for text in completions]


def _trl_step(kind: str, folder: Path, **options: object) -> dict[str, Any]:
    """Run TRL's trainer for one step, and return what its loss was given and what came of it."""
    from datasets import Dataset

    module = build("llama")
    makes = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}
    Trainer, Config = makes[kind]
    args = Config(
        output_dir=str(folder),
        per_device_train_batch_size=ANSWERS * len(PROMPTS),
        num_generations=ANSWERS,
        max_completion_length=NEW,
        max_steps=1,
        learning_rate=1e-30,
        report_to=[],
        use_cpu=True,
        bf16=False,
        seed=3,
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )
    reader = tokenizer()
    reader.padding_side = "left"
    base = folder / "base"
    module.save_pretrained(base)  # the reference is loaded from where the model lies
    reader.save_pretrained(base)
    trainer = Trainer(
        model=str(base),
        reward_funcs=score,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        processing_class=reader,
    )
    seen: dict[str, Any] = {}
    original = trainer._compute_loss

    def listen(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():  # a reference that has moved makes the KL more than nothing
            if "ref_per_token_logps" in inputs and inputs["ref_per_token_logps"] is not None:
                inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] - 0.3
            for name in ("old_per_token_logps", "old_logps"):
                if inputs.get(name) is not None:
                    inputs[name] = inputs[name] + 0.15 * torch.randn(
                        inputs[name].shape, generator=torch.Generator().manual_seed(1)
                    )
        loss = original(model, inputs)
        if not seen.get("inputs"):
            named = {n: p for n, p in model.named_parameters() if p.requires_grad}
            grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
            seen.update(inputs=copy.copy(inputs), loss=float(loss.detach()), module=module)
            seen["gradients"] = {n: g for n, g in zip(named, grads) if g is not None}
        return loss

    trainer._compute_loss = listen
    trainer.train()
    return seen


def _groups(seen: dict[str, Any]) -> list[Group]:
    """TRL's answers in our form, a prompt's together."""
    inputs, groups = seen["inputs"], []
    order, reader = _order(seen), tokenizer()
    for place in range(len(PROMPTS)):
        rows = order[place * ANSWERS : (place + 1) * ANSWERS]
        prompt = inputs["prompt_ids"][rows[0]][inputs["prompt_mask"][rows[0]].bool()].numpy()
        masks = [inputs["completion_mask"][r].bool() for r in rows]
        answers = [inputs["completion_ids"][r][m].numpy() for r, m in zip(rows, masks)]
        lengths = tuple(map(len, answers))
        # TRL shuffles answers after they were scored.
        rewards = np.array(score([reader.decode(answer, skip_special_tokens=True) for answer in answers]))
        numbers = {}
        for ours, theirs in (("old", "old_per_token_logps"), ("start", "ref_per_token_logps")):
            if inputs.get(theirs) is not None:
                numbers[ours] = np.concatenate([inputs[theirs][r][m].numpy() for r, m in zip(rows, masks)])
        tokens = np.concatenate([prompt, *answers]).astype(np.int32)
        weights = np.concatenate([np.zeros(len(prompt)), np.ones(sum(lengths))]).astype(np.float32)
        example = Example(tokens, weights, branches=lengths, token_extras=numbers)
        groups.append(Group(example, rewards, np.zeros(ANSWERS, dtype=bool)))
    return groups


def _order(seen: dict[str, Any]) -> list[int]:
    """Rows by prompt: TRL may shuffle them after the rewards were given."""
    inputs = seen["inputs"]
    keys = [tuple(ids[m.bool()].tolist()) for ids, m in zip(inputs["prompt_ids"], inputs["prompt_mask"])]
    return sorted(range(len(keys)), key=lambda row: (keys[row], row))


def _ours(seen: dict[str, Any], objective: Grpo | Rloo, examples: list[Example]) -> tuple[float, dict[str, Any]]:
    module = build("llama")
    model = CausalModel(module, tokenizer(), "llama", "")
    probe(model)
    assert model.packs
    batch = model.collate(examples)
    loss = objective.loss_sum(model, batch).total / objective.count(batch)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def _assert_equal(seen: dict[str, Any], loss: float, gradients: dict[str, Any]) -> None:
    assert loss == pytest.approx(seen["loss"], abs=TOLERANCE)
    largest = max(float(g.abs().max()) for g in seen["gradients"].values())
    assert largest > 1e-3
    assert seen["gradients"].keys() <= gradients.keys()
    for name, gradient in seen["gradients"].items():
        assert (gradients[name] - gradient).abs().max() <= TOLERANCE * max(1.0, largest), name


def _with_their_advantages(seen: dict[str, Any], examples: list[Example]) -> list[Example]:
    """Check that our advantages are TRL's, answer by answer."""
    theirs = seen["inputs"]["advantages"][_order(seen)].numpy()
    np.testing.assert_allclose(np.concatenate([e.extras["advantage"] for e in examples]), theirs, atol=TOLERANCE)
    return examples


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda kind, **options: _trl_step(kind, tmp_path, **options)


GRPO: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {}),
    ({"loss_type": "grpo", "scale_rewards": "batch"}, {"loss": "grpo", "scale_rewards": "batch"}),
    ({"loss_type": "bnpo", "temperature": 0.7}, {"temperature": 0.7}),
    (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "num_iterations": 2},
        {"loss": "dr_grpo", "scale_rewards": "none", "iterations": 2},
    ),
    (
        {"beta": 0.2, "num_iterations": 2, "epsilon": 0.1, "epsilon_high": 0.05},
        {"beta": 0.2, "iterations": 2, "epsilon": 0.1, "epsilon_high": 0.05},
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), GRPO, ids=["dapo", "grpo", "bnpo", "dr_grpo", "clip-higher with KL"])
def test_grpo_has_trls_advantages_loss_and_gradients(
    theirs: dict[str, object], ours: dict[str, object], run: Callable[..., dict[str, Any]]
) -> None:
    seen = run("grpo", **theirs)
    objective = Grpo.model_validate(
        {"kind": "grpo", "reward": "exact_match", "num_generations": ANSWERS, "max_new_tokens": NEW, **ours}
    )
    examples = _with_their_advantages(seen, objective.learn(_groups(seen), None)[0])
    _assert_equal(seen, *_ours(seen, objective, examples))


@pytest.mark.parametrize("normalize", [False, True])
def test_rloo_has_trls_advantages_loss_and_gradients(normalize: bool, run: Callable[..., dict[str, Any]]) -> None:
    seen = run("rloo", beta=0.0, normalize_advantages=normalize, num_iterations=2)
    objective = Rloo.model_validate(
        {
            "kind": "rloo",
            "reward": "exact_match",
            "num_generations": ANSWERS,
            "max_new_tokens": NEW,
            "beta": 0.0,
            "normalize_advantages": normalize,
            "iterations": 2,
        }
    )
    groups = _groups(seen)
    # TRL hands on sums over answers; any numbers with these sums do.
    sums = seen["inputs"]["old_logps"][_order(seen)].numpy().reshape(len(PROMPTS), ANSWERS)
    for group, sums_G in zip(groups, sums):
        parts = [np.full(n, s / n, dtype=np.float32) for n, s in zip(group.lengths, sums_G)]
        group.example.token_extras["old"] = np.concatenate(parts)  # type: ignore[index]
    examples = _with_their_advantages(seen, objective.learn(groups, None)[0])
    _assert_equal(seen, *_ours(seen, objective, examples))
