"""(IA)³ trains as PEFT's own does: the engine beside a plain loop over PEFT's model, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from families import examples
from luthier.methods.ia3 import Ia3
from luthier.models.load import load_model
from training import engine

STEPS, RATE = 20, 1e-2
LENGTHS = [9, 14, 5, 20]


def _peft_losses(folder: Path) -> list[float]:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), IA3Config())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8
    )
    losses = []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0.0
        for example in examples(LENGTHS, seed=step % 2, share=1.0):
            tokens = torch.from_numpy(example.tokens).long()[None]
            weights = torch.from_numpy(example.weights)[1:]
            logits = model(input_ids=tokens).logits[0, :-1]
            total = total + (weights * cross_entropy(logits, tokens[0, 1:], reduction="none")).sum()
            count += float(weights.sum())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_twenty_steps_give_pefts_losses(family: str, family_folder: Callable[[str], Path]) -> None:
    """1e-4: the engine packs and sums in another order; after 20 steps of AdamW that is what rounding makes of it."""
    folder = family_folder(family)
    reference = _peft_losses(folder)
    settings = {"learning_rate": RATE, "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": None}
    running = engine(load_model(str(folder)), Ia3(), total_steps=10**9, **settings)  # the cosine stays at its top
    losses = [running.train_step(examples(LENGTHS, seed=s % 2, share=1.0))["loss"] for s in range(STEPS)]
    assert losses == pytest.approx(reference, abs=1e-4)
    assert reference[-2] < reference[0] - 0.05  # the same rows, nine rounds later
