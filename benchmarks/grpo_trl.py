"""One GRPO run of TRL for `grpo_cpu.py`: prints CPU seconds of each optimizer step as JSON. Needs no Luthier."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def score(completions: list[str], **_: object) -> list[float]:
    """The share of different characters: an odd reward, so that answers differ."""
    return [len(set(text)) / max(len(text), 1) for text in completions]


class Clock(TrainerCallback):
    """Note the process's user and system time after every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.walls: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.times.append(time.process_time())
        self.walls.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = json.loads((options.folder / "case.json").read_text(encoding="utf-8"))
    prompts = [json.loads(line) for line in (options.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(options.folder / "model", padding_side="left")
    clock = Clock()
    arguments = GRPOConfig(
        output_dir=str(options.folder / "trl"),
        per_device_train_batch_size=case["prompts"] * case["answers"],
        num_generations=case["answers"],
        max_completion_length=case["new_tokens"],
        num_iterations=case["iterations"],
        beta=case["beta"],
        learning_rate=case["learning_rate"],
        max_steps=case["steps"] * case["iterations"],
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1000,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(options.folder / "model"),
        reward_funcs=score,
        args=arguments,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if case["method"] == "lora" else None,
    )
    trainer.train()
    every = case["iterations"]
    times, walls = clock.times[every - 1 :: every], clock.walls[every - 1 :: every]
    result = {
        "cpu": [b - a for a, b in itertools.pairwise(times)],
        "wall": [b - a for a, b in itertools.pairwise(walls)],
    }
    options.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
