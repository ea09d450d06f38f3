"""Our engine and a plain loop around PEFT's own models follow one trajectory, for every method of the LoRA family.

The loop shares nothing with Luthier but the tensors that both begin with: it runs one unpadded sequence at a time,
takes the mean cross-entropy of full logits, clips, and updates with torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.optimizers.loraplus import create_loraplus_optimizer
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from families import VOCABULARY, write
from luthier.core.batch import Example
from luthier.methods.adalora import AdaLora
from luthier.methods.base import Method
from luthier.methods.lora import Lora
from luthier.methods.lora_plus import LoraPlus
from luthier.methods.modules.svd_linear import svd_layers
from luthier.methods.qlora import QLora
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.optim.adamw import AdamW
from luthier.optim.schedules import Constant
from luthier.train.engine import Engine, Settings

STEPS, RATE, DECAY, CLIP = 20, 3e-3, 0.1, 1.0
TOLERANCE = 1e-4
"""On the loss. Both sum float32 numbers in another order; over 20 steps that stays below 2e-5."""


def _data() -> list[list[Example]]:
    draw = np.random.default_rng(7)
    lengths = [11, 6, 17, 9]
    fixed = [draw.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths * 3]
    rows = [Example(tokens, np.ones(len(tokens), dtype=np.float32)) for tokens in fixed]
    return [[rows[(4 * step + i) % len(rows)] for i in range(4)] for step in range(STEPS)]


def _ours(folder: Path, method: Method, start: Path | None = None) -> tuple[list[float], PreTrainedModel]:
    model = load_model(str(folder), base_bits=method.base_bits)
    torch.manual_seed(0)
    method.prepare(model.module)
    if start is not None:
        start.mkdir()
        method.save(model.module, start, base=str(folder))
    settings = Settings(total_steps=STEPS, learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP)
    engine = Engine(model, method, Sft(), AdamW(), Constant(), settings)
    return [engine.train_step(rows)["loss"] for rows in _data()], model.module


def _mean_loss(model: torch.nn.Module, rows: list[Example]) -> torch.Tensor:
    parts, count = [], 0
    for row in rows:
        tokens = torch.from_numpy(row.tokens.astype(np.int64))
        logits = model(input_ids=tokens[None]).logits[0, :-1].float()
        parts.append(cross_entropy(logits, tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    return torch.stack(parts).sum() / count


def _theirs(
    model: PeftModel,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Callable[[PeftModel, torch.Tensor], torch.Tensor] = lambda model, loss: loss,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = optimizer or torch.optim.AdamW([g for g in groups if g["params"]], lr=RATE)
    model.train()
    losses = []
    for step, rows in enumerate(_data(), start=1):
        loss = extra(model, _mean_loss(model, rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        after_step(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _plain(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _same(ours: list[float], theirs: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=TOLERANCE)
    assert ours[18] < ours[0] - 0.1  # the same rows again: it learned, so there was something to compare


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"rank": 4}),
        ("gpt2", {"rank": 4}),
        ("qwen2", {"rank": 16, "rslora": True}),
        ("llama", {"rank": 4, "dora": True}),
        ("gpt2", {"rank": 2, "dora": True, "targets": "attention"}),
        ("qwen3", {"rank_pattern": {"q": 2, "down": 5}, "alpha_pattern": {"v": 3}, "exclude": ["gate"]}),
        ("llama", {"rank": 2, "modules_to_save": ["lm_head", "model.norm"]}),
        ("llama-tied", {"rank": 2, "new_tokens": [4, 9, 33]}),
        ("mixtral", {"rank": 2, "target_parameters": ["experts"]}),
    ],
    ids=str,
)
def test_lora_follows_peft(family: str, options: dict[str, object], tmp_path: Path) -> None:
    folder = write(family, tmp_path / "base")
    ours, _ = _ours(folder, Lora.model_validate(options), start=tmp_path / "start")
    peer = PeftModel.from_pretrained(_plain(folder), str(tmp_path / "start"), is_trainable=True)
    _same(ours, _theirs(peer))


def test_pissa_follows_peft(tmp_path: Path) -> None:
    folder = write("llama", tmp_path / "base")
    ours, _ = _ours(folder, Lora(init="pissa", rank=4, alpha=4, targets="attention"))
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=modules, init_lora_weights="pissa")
    _same(ours, _theirs(get_peft_model(_plain(folder), config)))  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_lora_plus_follows_peft(ratio: float, tmp_path: Path) -> None:
    folder = write("llama", tmp_path / "base")
    ours, _ = _ours(folder, LoraPlus(rank=4, ratio=ratio), start=tmp_path / "start")
    peer = PeftModel.from_pretrained(_plain(folder), str(tmp_path / "start"), is_trainable=True)
    optimizer = create_loraplus_optimizer(
        peer, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio, loraplus_weight_decay=DECAY
    )
    _same(ours, _theirs(peer, optimizer))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adalora_follows_peft_and_prunes_the_same_values(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "base")
    method = AdaLora(initial_rank=4, rank=2, alpha=64, tinit=0.2, tfinal=0.25, deltaT=2, orthogonal_weight=0.3)
    ours, module = _ours(folder, method, start=tmp_path / "start")
    modules = sorted({n.rpartition(".")[2] for n in svd_layers(module)})
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        lora_alpha=64,
        tinit=4,
        tfinal=5,
        deltaT=2,
        orth_reg_weight=0.3,
        total_step=STEPS,
        target_modules=modules,
        fan_in_fan_out=family == "gpt2",
    )
    peer = get_peft_model(_plain(folder), config)  # type: ignore[arg-type]
    set_peft_model_state_dict(peer, load_file(tmp_path / "start" / "adapter_model.safetensors"))

    def penalised(model: PeftModel, loss: torch.Tensor) -> torch.Tensor:
        grams = [
            p @ p.T if "lora_A" in n else p.T @ p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n
        ]
        return loss + 0.3 * torch.stack([torch.norm(g - torch.eye(len(g)), p="fro") for g in grams]).mean()

    _same(ours, _theirs(peer, extra=penalised, after_step=peer.base_model.update_and_allocate))
    kept = {n: int((p != 0).sum()) for n, p in peer.base_model.model.named_parameters() if "lora_E" in n}
    assert kept == {f"{n}.lora_E.default": r for n, r in method.report(module, {})["ranks"].items()}  # type: ignore[attr-defined]
    assert sum(kept.values()) == 2 * len(kept)


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 4, "dora": True}], ids=str)
def test_qlora_follows_peft_on_the_same_quantised_base(options: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes' own kernel on CPUs is right only where a row is a multiple of its blocks of 64.
    folder = write("llama", tmp_path / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    ours, _ = _ours(folder, QLora.model_validate(options), start=tmp_path / "start")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32)
    peer = PeftModel.from_pretrained(base, str(tmp_path / "start"), is_trainable=True)
    _same(ours, _theirs(peer))
