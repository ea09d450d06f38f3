"""Soft prompts and prefixes train as PEFT's do: the same start, the same data, the same losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from families import examples
from luthier.core.batch import Example
from luthier.methods.base import Method
from luthier.methods.p_tuning import PTuning
from luthier.methods.p_tuning_v2 import PTuningV2
from luthier.methods.prefix import Prefix
from luthier.methods.prompt import Prompt
from luthier.models.load import load_model
from luthier.models.virtual_tokens import virtual_tokens
from training import engine

STEPS, RATE = 20, 1e-2
_OF_ALL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 6}
CASES: dict[str, tuple[Method, PromptLearningConfig]] = {
    "prefix": (Prefix(tokens=6), PrefixTuningConfig(**_OF_ALL)),
    "prefix-projected": (
        Prefix(tokens=6, projection=True, projection_size=20),
        PrefixTuningConfig(**_OF_ALL, prefix_projection=True, encoder_hidden_size=20),
    ),
    "p_tuning_v2": (PTuningV2(tokens=6), PrefixTuningConfig(**_OF_ALL)),
    "p_tuning": (PTuning(tokens=6, encoder_size=20), PromptEncoderConfig(**_OF_ALL, encoder_hidden_size=20)),
    "p_tuning-lstm": (
        PTuning(tokens=6, encoder="lstm", encoder_size=12, encoder_layers=1),
        PromptEncoderConfig(
            **_OF_ALL, encoder_hidden_size=12, encoder_reparameterization_type="LSTM", encoder_num_layers=1
        ),
    ),
    "prompt": (Prompt(tokens=6), PromptTuningConfig(**_OF_ALL)),
}


def _peft_losses(model: PeftModel, steps: list[list[Example]]) -> list[float]:
    """A plain loop: one sequence at a time, full logits, torch's own AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, foreach=False, fused=False)
    losses = []
    model.train()
    for step, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * _cosine(step)
        count = sum(float(row.weights[1:].sum()) for row in rows)
        total = 0.0
        for row in rows:
            tokens = torch.from_numpy(row.tokens.astype("int64"))
            logits = model(input_ids=tokens[None]).logits[0, -len(tokens) :]
            each = cross_entropy(logits[:-1].float(), tokens[1:], reduction="none")
            loss = (each * torch.from_numpy(row.weights[1:])).sum() / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def _cosine(step: int) -> float:
    from luthier.optim.schedules import Cosine

    return Cosine().factor(step, STEPS, 2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_have_the_losses_that_peft_has(
    name: str, family: str, family_folder: Callable[[str], Path]
) -> None:
    method, config = CASES[name]
    folder = family_folder(family)
    running = engine(
        load_model(str(folder)), method, total_steps=STEPS, learning_rate=RATE, weight_decay=0.0, max_grad_norm=None
    )
    assert running.model.packs
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rival = get_peft_model(plain, copy.deepcopy(config))  # PEFT writes the model's sizes into it
    virtual = virtual_tokens(running.model.module)
    assert virtual is not None
    rival.prompt_encoder["default"].load_state_dict(virtual.encoder.state_dict())  # type: ignore[index]

    steps = [examples([9, 14, 5, 20], seed=step % 5) for step in range(STEPS)]
    expected = _peft_losses(rival, steps)  # type: ignore[arg-type]
    losses = [running.train_step(rows)["loss"] for rows in steps]
    assert losses == pytest.approx(expected, abs=1e-4)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.05  # the same rows; both learn something that can be compared
