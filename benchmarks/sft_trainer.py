"""Contender `trainer`: the transformers Trainer with PEFT, padded batches of rows of like length."""

from __future__ import annotations

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from sft_cases import LORA_ALPHA, LORA_RANK
from sft_huggingface import CountingCollator, MeterCallback, settings
from sft_meter import Meter, read_task, write_result


def main() -> None:
    """Train and write the figures."""
    task = read_task()
    rows = datasets.Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"],
                "attention_mask": [1] * len(row["input_ids"]),
                "labels": [-100] * row["prompt_length"] + row["input_ids"][row["prompt_length"] :],
            }
            for row in task.tokens
        ]
    )
    model = AutoModelForCausalLM.from_pretrained(task.folder / "model", dtype=torch.float32)
    if task.case.method == "lora":
        model = get_peft_model(
            model,
            LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    tokenizer = AutoTokenizer.from_pretrained(task.folder / "model")
    collator = CountingCollator(DataCollatorForSeq2Seq(tokenizer))
    meter = Meter()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(task)),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[MeterCallback(meter)],
    )
    trainer.train()
    write_result(meter, task, model, collator.after_warm_up(task.steps))


if __name__ == "__main__":
    main()
