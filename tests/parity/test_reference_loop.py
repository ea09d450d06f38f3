"""Training reaches the held-out loss of a loop in plain PyTorch, transformers and PEFT on real models and real data.

The reference shares no code with Luthier: it makes its own tokens and labels, runs one unpacked sequence at a time,
takes the cross-entropy of the full logits, and updates with torch's unfused AdamW. Data order, budget and
hyper-parameters are the same, so that both follow one trajectory up to rounding.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from luthier.core.batch import Example
from luthier.core.component import component_class
from luthier.data.load import load_records
from luthier.data.render import Renderer
from luthier.data.spec import DataSpec
from luthier.data.stream import Stream
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from training import engine

STEPS, BATCH, HELD_OUT, WARMUP = 30, 8, 24, 3
RANK, ALPHA, DECAY, CLIP = 4, 8.0, 0.1, 1.0
RATES = {"full": 1e-3, "lora": 5e-3}

Row = dict[str, str]
Sample = tuple[list[int], list[int]]  # tokens, and labels with -100 where nothing is learned


@dataclass(frozen=True)
class Case:
    """A model, its rows, and what is learned from them."""

    model: str
    rows: Callable[[Path], Iterator[Row]]
    objective: Literal["sft", "lm"]
    longest: int


def _alpaca(data: Path) -> Iterator[Row]:
    yield from json.loads((data / "llamafactory/alpaca_en_demo.json").read_text(encoding="utf-8"))


def _stories(data: Path) -> Iterator[Row]:
    lines = (data / "tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8").splitlines()
    yield from ({"text": line} for line in lines if len(line) > 100)


def _poems(data: Path) -> Iterator[Row]:
    with gzip.open(data / "zh_poetry/poetry_corpus_simplified.json.gz", "rt", encoding="utf-8") as stream:
        # The model has learned to write these poems from their titles; naming a poem is new to it.
        yield from ({"prompt": f"{p['content']}\n", "completion": p["title"]} for p in json.load(stream))


CASES = {
    "english-instructions": Case("stories260K", _alpaca, "sft", 250),
    "english-stories": Case("stories260K", _stories, "lm", 200),
    "chinese-poems": Case("zh-poem-750K", _poems, "sft", 90),
}


# ---------------------------------------------------------------------- the reference: its own tokens, its own loop


def _sample(row: Row, tokenizer: PreTrainedTokenizerBase) -> Sample:
    if "text" in row:
        tokens = [*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]
        return tokens, tokens
    if "instruction" in row:  # Stanford Alpaca's prompt
        given = ", paired with an input that provides further context" if row["input"] else ""
        prompt = (
            f"Below is an instruction that describes a task{given}. "
            f"Write a response that appropriately completes the request.\n\n### Instruction:\n{row['instruction']}"
        )
        prompt += f"\n\n### Input:\n{row['input']}" if row["input"] else ""
        prompt, answer = prompt + "\n\n### Response:\n", row["output"]
    else:
        prompt, answer = row["prompt"], row["completion"]
    coded = tokenizer(prompt + answer, return_offsets_mapping=True)
    labels = [token if end > len(prompt) else -100 for token, (_, end) in zip(coded.input_ids, coded["offset_mapping"])]
    end = [tokenizer.eos_token_id]
    return coded.input_ids + end, labels + end


def _summed_loss(model: torch.nn.Module, sample: Sample) -> tuple[torch.Tensor, int]:
    tokens, labels = (torch.tensor(part) for part in sample)
    logits = model(input_ids=tokens[None]).logits[0, :-1].float()
    wanted = labels[1:]
    return cross_entropy(logits, wanted, reduction="sum", ignore_index=-100), int((wanted != -100).sum())


def _reference_held_out(model: torch.nn.Module, samples: list[Sample]) -> float:
    model.eval()
    with torch.no_grad():
        parts = [_summed_loss(model, s) for s in samples]
    return sum(float(loss) for loss, _ in parts) / sum(count for _, count in parts)


def _reference_run(model: torch.nn.Module, steps: list[list[Sample]], rate: float) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, foreach=False, fused=False)
    losses = []
    model.train()
    for step, samples in enumerate(steps):
        if step < WARMUP:
            factor = (step + 1) / (WARMUP + 1)
        else:
            factor = (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        count = sum(sum(label != -100 for label in labels[1:]) for _, labels in samples)
        total = 0.0
        for sample in samples:
            loss, _ = _summed_loss(model, sample)
            (loss / count).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / count)
    return losses


def _reference_model(folder: Path, kind: str, initial: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind == "full":
        return model
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM"))
    outcome = set_peft_model_state_dict(adapted, initial)  # A is drawn at random; both start from the same draw
    assert not outcome.unexpected_keys
    return adapted


# ---------------------------------------------------------------------- the comparison


def _rows(case: Case, data: Path, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The first rows that fit, enough for one epoch and the held-out part."""
    wanted, rows = STEPS * BATCH // 2 + HELD_OUT, []
    for row in case.rows(data):
        if len(_sample(row, tokenizer)[0]) <= case.longest:
            rows.append(row)
        if len(rows) == wanted:
            return rows
    pytest.fail(f"only {len(rows)} of {wanted} rows fit")


def _examples(case: Case, rows: list[Row], folder: Path, model: Path) -> list[Example]:
    """The same rows through Luthier's whole data layer."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    records = load_records(DataSpec(path=str(file)), objective=case.objective).records
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(Renderer(tokenizer, case.objective).render_all(records).store)


def _assert_same_data(examples: list[Example], samples: list[Sample]) -> None:
    assert len(examples) == len(samples)
    for example, (tokens, labels) in zip(examples, samples):
        assert example.tokens.tolist() == tokens
        assert (example.weights[1:] > 0).tolist() == [label != -100 for label in labels[1:]]
        assert set(example.weights.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", CASES)
def test_training_reaches_the_held_out_loss_of_a_plain_pytorch_loop(
    name: str, kind: str, shared: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    folder = shared / "models" / case.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = _rows(case, shared / "data", tokenizer)
    samples = [_sample(row, tokenizer) for row in rows]
    examples = _examples(case, rows, tmp_path, folder)
    _assert_same_data(examples, samples)
    held_samples, held_examples = samples[:HELD_OUT], examples[:HELD_OUT]
    samples, examples = samples[HELD_OUT:], examples[HELD_OUT:]
    stream = Stream(len(examples), BATCH, seed=3)
    order = [stream.rows(step).tolist() for step in range(STEPS)]  # two epochs

    method = Full() if kind == "full" else Lora(rank=RANK, alpha=ALPHA)
    running = engine(
        load_model(str(folder)),
        method,
        component_class("objective", case.objective)(),  # type: ignore[arg-type]
        total_steps=STEPS,
        learning_rate=RATES[kind],
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
    )
    assert running.model.packs
    initial = {n: t.clone() for n, t in method.state_dict(running.model.module).items()}
    before, _ = running.evaluate(held_examples)
    losses = [running.train_step([examples[i] for i in rows_])["loss"] for rows_ in order]
    after, _ = running.evaluate(held_examples)

    reference = _reference_model(folder, kind, initial)
    assert before == pytest.approx(_reference_held_out(reference, held_samples), rel=1e-5)
    expected = _reference_run(reference, [[samples[i] for i in rows_] for rows_ in order], RATES[kind])
    assert losses == pytest.approx(expected, rel=1e-4)
    assert after == pytest.approx(_reference_held_out(reference, held_samples), rel=1e-4)
    assert after < 0.97 * before  # both have learned something that can be compared
