"""AdaLoRA: the budget's numbers, ranks that change, files that PEFT opens, runs that resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from families import build, examples, write
from luthier.core.errors import ModelError
from luthier.core.rundir import StageDir
from luthier.methods.adalora import AdaLora
from luthier.methods.base import trainable
from luthier.methods.modules.svd_linear import REST, svd_layers
from luthier.models.load import load_model
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from training import engine

TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(1))
METHOD = AdaLora(initial_rank=6, rank=2, tinit=0.2, tfinal=0.3, deltaT=2)
STEPS = 10


def _logits(module: torch.nn.Module) -> Tensor:
    module.eval()
    with torch.no_grad():
        out = module(input_ids=TOKENS, use_cache=False).logits
    module.train()
    return out


def _engine(folder: Path, method: AdaLora = METHOD) -> Engine:
    return engine(load_model(str(folder)), method, total_steps=STEPS, learning_rate=3e-3)


def _train(running: Engine, until: int) -> list[float]:
    return [running.train_step(examples([9, 14, 5, 20], seed=step))["loss"] for step in range(running.step, until)]


def test_the_budget_follows_the_cubic_of_the_paper() -> None:
    method = AdaLora(initial_rank=12, rank=8, tinit=0.1, tfinal=0.3)
    assert method.phases(100) == (10, 70)
    layers = 5
    for step in range(1, 101):
        if step <= 10:
            expected = 60
        elif step >= 70:
            expected = 40
        else:
            expected = int(40 + 20 * (1 - (step - 10) / 60) ** 3)
        assert method.budget(step, 100, layers) == expected
    assert [method.budget(step, 100, layers) for step in (10, 11, 40, 70, 100)] == [60, 59, 42, 40, 40]


def test_the_budget_is_pefts() -> None:
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=2, tfinal=3, total_step=10, deltaT=2, target_modules=["q_proj", "v_proj"]
    )
    peer = get_peft_model(build("llama"), config).base_model.rankallocator
    for step in range(1, 11):
        assert METHOD.budget(step, 10, 4) == peer.budget_schedule(step)[0]


def test_ranks_change_end_at_the_budget_and_are_reported(tmp_path: Path) -> None:
    running = _engine(write("llama", tmp_path))
    layers = svd_layers(running.model.module)
    seen = []
    for until in range(1, STEPS + 1):
        _train(running, until)
        seen.append(sum(int((layer.lora_E["default"] != 0).sum()) for layer in layers.values()))
    start, target = 6 * len(layers), 2 * len(layers)
    assert seen[:3] == [start] * 3
    assert seen[3] < start  # step 4 is the first multiple of deltaT after tinit
    assert seen[6:] == [target] * 4  # step 7 of 10 is the last pruning
    report = METHOD.report(running.model.module, running.method_state)
    assert report["pruned_after_step"] == 2
    assert report["ranks_final_at_step"] == 7
    ranks = report["ranks"]
    assert isinstance(ranks, dict)
    assert ranks.keys() == layers.keys()
    assert sum(ranks.values()) == target
    assert len(set(ranks.values())) > 1  # important layers keep more than others


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("until", [5, STEPS])
def test_peft_opens_what_is_saved_before_and_after_the_ranks_are_final(family: str, until: int, tmp_path: Path) -> None:
    folder, saved = write(family, tmp_path / "base"), tmp_path / "adapter"
    saved.mkdir()
    running = _engine(folder)
    _train(running, until)
    METHOD.save(running.model.module, saved, base=str(folder))
    logits = _logits(running.model.module)
    written = json.loads((saved / "adapter_config.json").read_text())
    assert (written["rank_pattern"] is None) == (until < 7)
    assert (written["total_step"], written["tinit"], written["tfinal"]) == (10, 2, 3)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(saved))
    torch.testing.assert_close(_logits(opened), logits, rtol=0, atol=2e-5)
    (saved / REST).unlink(missing_ok=True)  # an adapter copied as PEFT knows it: the pruned rows are not needed
    fresh = load_model(str(folder)).module
    METHOD.prepare(fresh)
    METHOD.load(fresh, saved)
    torch.testing.assert_close(_logits(fresh), logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(_logits(METHOD.merge(fresh)), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cut", [1, 4, 6, 7, 8])
def test_a_resumed_run_is_the_same_bit_for_bit(cut: int, tmp_path: Path) -> None:
    folder = write("llama", tmp_path / "base")
    whole = _engine(folder)
    losses = _train(whole, STEPS)
    first = _engine(folder)
    before = _train(first, cut)
    checkpoint = save_checkpoint(first, StageDir(tmp_path / "run"), {}, keep=1)
    second = _engine(folder)
    load_checkpoint(second, checkpoint)
    assert before + _train(second, STEPS) == losses
    mine, others = trainable(second.model.module), trainable(whole.model.module)
    assert all(torch.equal(p, others[n]) for n, p in mine.items())
    assert METHOD.report(second.model.module, {}) == METHOD.report(whole.model.module, {})


def test_the_orthogonality_term_is_pefts_and_weighs_in_the_loss(tmp_path: Path) -> None:
    folder = write("llama", tmp_path)
    plain = _engine(folder, AdaLora(orthogonal_weight=0.0, initial_rank=6, rank=2))
    weighed = _engine(folder, AdaLora(orthogonal_weight=0.5, initial_rank=6, rank=2))
    expected = []
    for name, p in weighed.model.module.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            expected.append(torch.norm(gram - torch.eye(6), p="fro"))
    term = 0.5 * float(torch.stack(expected).mean().detach())
    assert _train(weighed, 1)[0] == pytest.approx(_train(plain, 1)[0] + term, abs=1e-5)


def test_the_rank_is_that_of_the_end_and_the_start_is_half_as_much_again() -> None:
    assert AdaLora(rank=8).start_rank == 12
    assert AdaLora(rank=3).start_rank == 5
    assert AdaLora(rank=3, initial_rank=9).start_rank == 9


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"initial_rank": 8, "rank": 8}, "nothing to prune"),
        ({"tinit": 0.5, "tfinal": 0.5}, "no step for pruning"),
        ({"targets": "nope"}, "nope"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_is_refused(options: dict[str, object], remedy: str) -> None:
    with pytest.raises(ModelError, match=remedy):
        AdaLora.model_validate(options).apply(build("llama"))
