"""What every contender measures, in the same way: CPU time of the steps, peak memory, loss on the trained rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sft_cases import BATCH_SIZE, CASES, Case

if TYPE_CHECKING:
    import torch

EVALUATION_ROWS = 64


@dataclasses.dataclass
class Meter:
    """Clock of one process: user and system time of all its threads. The first step is warm-up and not counted."""

    start_cpu_seconds: float = 0.0
    counted_from: float = 0.0
    counted_to: float = 0.0
    counted_from_wall: float = 0.0
    counted_to_wall: float = 0.0
    steps: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)

    def before_first_step(self) -> None:
        """Note what the start has cost: interpreter, imports, model, data."""
        self.start_cpu_seconds = time.process_time()

    def after_step(self) -> None:
        """Note the end of one optimizer step."""
        self.steps += 1
        now, wall = time.process_time(), time.perf_counter()
        if self.steps == 1:
            self.counted_from, self.counted_from_wall = now, wall
        self.counted_to, self.counted_to_wall = now, wall


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contender was told to do."""

    case: Case
    folder: Path
    steps: int
    out: Path
    grouped: bool
    rows: list[dict[str, list[dict[str, str]]]]
    tokens: list[dict[str, list[int] | int]]

    def batch(self, step: int) -> list[tuple[list[int], int]]:
        """Give the (token ids, prompt length) of the rows of one step, in file order."""
        chosen = self.tokens[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        return [(row["input_ids"], row["prompt_length"]) for row in chosen]

    def lengths(self) -> list[int]:
        """Count the tokens of every row."""
        return [len(row["input_ids"]) for row in self.tokens]


def read_task() -> Task:
    """Parse the command line that all contenders share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grouped", action="store_true", help="batches of rows of like length")
    options = parser.parse_args()
    wanted = options.steps * BATCH_SIZE
    with (options.folder / "rows.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][:wanted]
    tokens = json.loads((options.folder / "tokens.json").read_text(encoding="utf-8"))[:wanted]
    assert len(rows) == len(tokens) == wanted, f"{options.folder} holds {len(rows)} rows, {wanted} wanted"
    return Task(CASES[options.case], options.folder, options.steps, options.out, options.grouped, rows, tokens)


def loss_on_rows(model: torch.nn.Module, task: Task) -> float:
    """Mean cross-entropy per supervised token over the first trained rows, one row at a time (no padding)."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in task.tokens[:EVALUATION_ROWS]:
            ids = torch.tensor([row["input_ids"]])
            logits = model(input_ids=ids, use_cache=False).logits[0, row["prompt_length"] - 1 : -1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, row["prompt_length"] :], reduction="sum").item()
            count += ids.shape[1] - row["prompt_length"]
    return total / count


def write_result(meter: Meter, task: Task, model: torch.nn.Module, tokens_counted: int) -> None:
    """Write the figures of one run. Peak memory is read before the model is evaluated."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    process_cpu_seconds = time.process_time()
    train_cpu_seconds = meter.counted_to - meter.counted_from
    result = {
        "steps": meter.steps,
        "tokens": tokens_counted,
        "train_cpu_seconds": train_cpu_seconds,
        "train_wall_seconds": meter.counted_to_wall - meter.counted_from_wall,
        "tokens_per_cpu_second": tokens_counted / train_cpu_seconds,
        "start_cpu_seconds": meter.start_cpu_seconds,
        "process_cpu_seconds": process_cpu_seconds,
        "peak_mib": peak_kib / 1024,
        "loss_after": loss_on_rows(model, task),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    task.out.write_text(json.dumps(result), encoding="utf-8")
