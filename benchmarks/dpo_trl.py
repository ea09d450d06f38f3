"""Contenders `trl` and `trl-best`: TRL's DPOTrainer as a user would run it on a CPU in float32.

`trl` keeps every default that has to do with speed. `--best` computes the reference's log-probabilities beforehand and
checkpoints nothing.
"""

from __future__ import annotations

import time

import datasets
from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from dpo_cases import BATCH_PAIRS, BETA, MODEL
from dpo_meter import read_task, write_result
from sft_cases import LORA_ALPHA, LORA_RANK, MAX_LENGTH, SEED
from sft_huggingface import MeterCallback
from sft_meter import Meter


class Losses(TrainerCallback):
    """Keep what is logged."""

    def __init__(self, meter: Meter) -> None:
        """Keep the meter."""
        self.meter = meter

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Note the loss since the last line."""
        if logs and "loss" in logs:
            self.meter.losses.append(float(logs["loss"]))


def main() -> None:
    """Train and write the figures."""
    task = read_task()
    quicker = {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if task.best else {}
    arguments = DPOConfig(
        output_dir=str(task.out.with_suffix(".run")),
        per_device_train_batch_size=BATCH_PAIRS,
        max_steps=task.steps,
        learning_rate=MODEL.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        beta=BETA,
        max_length=MAX_LENGTH,
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **quicker,
    )
    meter = Meter()
    trainer = DPOTrainer(
        model=str(task.folder / "model"),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(task.rows),
        peft_config=LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[MeterCallback(meter), Losses(meter)],
    )
    assert trainer.train_dataset is not None
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        same = list(trainer.train_dataset[name]) == [row[name] for row in task.tokens]
        assert same, f"TRL renders other {name} than the case holds"
    spent = [0.0]
    collate_reference = trainer._precompute_ref_logps

    def timed(*arguments: object, **named: object) -> object:
        before = time.process_time()
        found = collate_reference(*arguments, **named)
        spent[0] += time.process_time() - before
        return found

    trainer._precompute_ref_logps = timed
    trainer.train()
    write_result(meter, task, spent[0])


if __name__ == "__main__":
    main()
