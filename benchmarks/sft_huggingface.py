"""What the contenders built on the transformers Trainer share: settings, clock, token count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft_cases import BATCH_SIZE, SEED
from sft_meter import Meter, Task

Row = dict[str, list[int]]


class MeterCallback(TrainerCallback):
    """Start and stop the clock around the steps."""

    def __init__(self, meter: Meter) -> None:
        """Keep the clock."""
        self.meter = meter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Note the cost of the start."""
        self.meter.before_first_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Note the end of a step."""
        self.meter.after_step()


class CountingCollator:
    """Hand rows to another collator, and count their real tokens per batch."""

    def __init__(self, collate: Callable[[list[Row]], dict[str, torch.Tensor]]) -> None:
        """Keep the collator that does the work."""
        self.collate = collate
        self.tokens: list[int] = []

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Collate one batch."""
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        return self.collate(rows)

    def after_warm_up(self, steps: int) -> int:
        """Sum the tokens of all steps but the first."""
        return sum(self.tokens[1:steps])


def settings(task: Task) -> dict[str, str | int | float | bool]:
    """Give what must be equal for equal work; all else stays at the tool's defaults."""
    return {
        "output_dir": str(task.out.with_suffix(".run")),
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": task.steps,
        "learning_rate": task.case.learning_rate,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "group_by_length" if task.grouped else "sequential",
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
