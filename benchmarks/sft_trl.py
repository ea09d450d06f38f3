"""Contenders `trl` and `trl-grouped`: TRL's SFTTrainer as a user would run it on a CPU in float32.

`trl` keeps every default that has to do with speed (padding, gradient checkpointing, chunked loss). `--grouped` is
its best known setting here: rows of like length share a batch, no checkpointing.
"""

from __future__ import annotations

import datasets
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from sft_cases import LORA_ALPHA, LORA_RANK, MAX_LENGTH
from sft_huggingface import CountingCollator, MeterCallback, settings
from sft_meter import Meter, read_task, write_result


def main() -> None:
    """Train and write the figures."""
    task = read_task()
    rows = datasets.Dataset.from_list(
        [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in task.rows]
    )
    quicker = {"gradient_checkpointing": False} if task.grouped else {}
    arguments = SFTConfig(**settings(task), **quicker, max_length=MAX_LENGTH, model_init_kwargs={"dtype": "float32"})
    adapter = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    meter = Meter()
    trainer = SFTTrainer(
        model=str(task.folder / "model"),
        args=arguments,
        train_dataset=rows,
        peft_config=adapter if task.case.method == "lora" else None,
        callbacks=[MeterCallback(meter)],
    )
    assert trainer.train_dataset is not None
    prepared = list(trainer.train_dataset["input_ids"])
    assert prepared == [row["input_ids"] for row in task.tokens], "TRL renders other tokens than the case holds"
    trainer.data_collator = collator = CountingCollator(trainer.data_collator)
    trainer.train()
    write_result(meter, task, trainer.model, collator.after_warm_up(task.steps))


if __name__ == "__main__":
    main()
