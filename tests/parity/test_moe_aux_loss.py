"""Mixtures against transformers and PEFT: the routers' balance loss, and training of whole models and of experts.

The balance loss must be transformers' own; training in full must follow a plain loop with transformers' loss, and
training of low-rank updates one with PEFT's `target_parameters`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import VOCABULARY
from luthier.core.batch import Example
from luthier.methods.moe import Moe
from luthier.models.load import load_model
from training import engine

STEPS, WEIGHT, DECAY = 20, 0.02, 0.1
LENGTHS = (9, 17, 5, 12)


def _examples(step: int) -> list[Example]:
    """Rows in which every token is learned, so that a step's loss is a plain mean."""
    draw = np.random.default_rng(step % 3)  # rows come back, so that there is something to learn
    return [
        Example(draw.integers(3, VOCABULARY, n).astype(np.int32), np.ones(n, dtype=np.float32), source=f"{step}:{i}")
        for i, n in enumerate(LENGTHS)
    ]


def _padded(rows: list[Example]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    tokens, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = labels[index, : len(row)] = torch.from_numpy(row.tokens.astype(np.int64))
    return {"input_ids": tokens, "labels": labels, "attention_mask": (labels != -100).long()}


def _reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, router_aux_loss_coef=WEIGHT)


@pytest.mark.parametrize(("family", "packs"), [("mixtral", True), ("mixtral", False), ("qwen2-moe", False)])
def test_the_penalty_is_the_auxiliary_loss_of_transformers_with_padding_left_out(
    family: str, packs: bool, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    method = Moe(train="router", router_aux_loss=WEIGHT)
    method.prepare(model.module)
    model.packs = packs
    rows = _examples(0)
    batch = model.collate(rows)
    model.nll_sum(batch)
    ours = method.penalty(model.module, batch)
    assert ours is not None
    with torch.no_grad():
        expected = _reference(family_folder(family))(**_padded(rows), output_router_logits=True).aux_loss
        tokens = _padded(rows)["input_ids"]
        unmasked = _reference(family_folder(family))(input_ids=tokens, output_router_logits=True).aux_loss
    torch.testing.assert_close(ours.detach() / WEIGHT, expected, rtol=1e-5, atol=1e-5)
    assert abs(float(unmasked - expected)) > 1e-3  # padding would have shown


def _plain_loop(model: torch.nn.Module, rates: list[float], **options: object) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], foreach=False, fused=False)
    losses = []
    model.train()
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**_padded(_examples(step)), **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_twenty_steps_follow_a_plain_loop_with_the_loss_of_transformers(
    packs: bool, family_folder: Callable[[str], Path]
) -> None:
    folder = family_folder("mixtral")
    method = Moe(train="all", update="full", router_aux_loss=WEIGHT)
    running = engine(load_model(str(folder)), method, total_steps=STEPS, learning_rate=1e-2, weight_decay=DECAY)
    running.model.packs = packs
    rows = [running.train_step(_examples(step)) for step in range(STEPS)]
    losses = _plain_loop(_reference(folder), [row["learning_rate"] for row in rows], output_router_logits=True)
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-4)
    untrained = _plain_loop(_reference(folder), [0.0] * STEPS, output_router_logits=True)
    assert abs(losses[-1] - untrained[-1]) > 0.2  # there was something to follow


@pytest.mark.parametrize("train", ["experts", "experts_and_router", "all"])
def test_low_rank_updates_of_experts_follow_a_plain_loop_with_peft(
    train: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    folder = family_folder("mixtral")
    method = Moe(train=train, rank=3, alpha=7.5, router_aux_loss=0.0)  # type: ignore[arg-type]
    running = engine(load_model(str(folder)), method, total_steps=STEPS, learning_rate=1e-2, weight_decay=DECAY)
    method.save(running.model.module, tmp_path, base=str(folder))  # both start from the same draw
    rows = [running.train_step(_examples(step)) for step in range(STEPS)]
    adapted = PeftModel.from_pretrained(_reference(folder), str(tmp_path), is_trainable=True)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == method.count(_reference(folder))
    losses = _plain_loop(adapted, [row["learning_rate"] for row in rows])
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-4)
    assert abs(losses[-1] - _plain_loop(_reference(folder), [0.0] * STEPS)[-1]) > 0.2
