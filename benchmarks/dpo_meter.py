"""What every contender in DPO is told and measures, in the same way."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from pathlib import Path

from dpo_cases import BATCH_PAIRS, DPO_CASES, Pair
from sft_meter import Meter

TokenRow = dict[str, list[int]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contender was told to do."""

    folder: Path
    steps: int
    out: Path
    best: bool
    rows: list[Pair]
    tokens: list[TokenRow]

    def batch(self, step: int) -> list[TokenRow]:
        """Give the rows of one step, in file order."""
        return self.tokens[step * BATCH_PAIRS : (step + 1) * BATCH_PAIRS]

    def useful_tokens(self) -> int:
        """Count the real tokens of all steps but the first: those of prompt and chosen, and of prompt and rejected."""
        return sum(map(useful, self.tokens[BATCH_PAIRS:]))


def useful(row: TokenRow) -> int:
    """Count a pair's tokens as two sequences."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def read_task() -> Task:
    """Parse the command line that all contenders share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=DPO_CASES)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--best", action="store_true", help="the tool's quickest known setting, not its defaults")
    options = parser.parse_args()
    wanted = options.steps * BATCH_PAIRS
    with (options.folder / "rows.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][:wanted]
    tokens = json.loads((options.folder / "tokens.json").read_text(encoding="utf-8"))[:wanted]
    assert len(rows) == len(tokens) == wanted, f"{options.folder} holds {len(rows)} rows, {wanted} wanted"
    return Task(options.folder, options.steps, options.out, options.best, rows, tokens)


def write_result(meter: Meter, task: Task, reference_cpu_seconds: float = 0.0) -> None:
    """Write the figures of one run.

    Args:
        reference_cpu_seconds: spent before the first step on the reference's log-probabilities of all rows; the part of
            it that belongs to the counted steps is work like any other.
    """
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = meter.counted_to - meter.counted_from + reference_cpu_seconds * (task.steps - 1) / task.steps
    result = {
        "steps": meter.steps,
        "tokens": task.useful_tokens(),
        "train_cpu_seconds": seconds,
        "tokens_per_cpu_second": task.useful_tokens() / seconds,
        "start_cpu_seconds": meter.start_cpu_seconds,
        "process_cpu_seconds": time.process_time(),
        "peak_mib": peak_kib / 1024,
        "first_loss": meter.losses[0],
        "last_loss": sum(meter.losses[-4:]) / 4,
    }
    task.out.write_text(json.dumps(result), encoding="utf-8")
