"""Contender `luthier`: the program itself, `luthier train`, on the case's folder. Its figures are read from the run.

The pass that finds the reference's log-probabilities is done before the first step, and counted as work too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_cases import BATCH_PAIRS, BETA, MODEL
from dpo_meter import Task, read_task, useful
from sft_cases import LORA_ALPHA, LORA_RANK, MAX_LENGTH

REFERENCE = "reference_cpu_seconds"


def recipe(task: Task, data: Path) -> dict[str, object]:
    """Give the recipe that does what the other contenders are told to do."""
    return {
        "model": str(task.folder / "model"),
        "method": {"kind": "lora", "rank": LORA_RANK, "alpha": LORA_ALPHA, "targets": "all-linear"},
        "objective": {"kind": "dpo", "beta": BETA},
        "data": {"path": str(data)},
        "batch_size": BATCH_PAIRS,
        "max_steps": task.steps,
        "max_length": MAX_LENGTH,
        "learning_rate": MODEL.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "save_steps": task.steps,
        "samples": 0,
    }


def main() -> None:
    """Train in a process of its own and write the figures."""
    task = read_task()
    with tempfile.TemporaryDirectory() as home:
        path, run, data = (Path(home) / name for name in ("recipe.json", "run", "rows.jsonl"))
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in task.rows), encoding="utf-8")
        path.write_text(json.dumps(recipe(task, data)), encoding="utf-8")
        command = [sys.executable, "-m", "luthier", "train", str(path), f"run={run}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        metrics = [json.loads(line) for line in (run / "00-dpo" / "metrics.jsonl").read_text().splitlines()]
    # The rows are shuffled; a step's share of the tokens is told by what it computed.
    share = 1.0 - metrics[0]["tokens"] / sum(row["tokens"] for row in metrics)
    tokens = share * sum(map(useful, task.tokens))
    steps = report["train_cpu_seconds"] - report["first_step_cpu_seconds"]
    seconds = steps + report[REFERENCE] * share
    result = {
        "steps": len(metrics),
        "tokens": tokens,
        "train_cpu_seconds": seconds,
        REFERENCE: report[REFERENCE],
        "tokens_per_cpu_second": tokens / seconds,
        "start_cpu_seconds": report["setup_cpu_seconds"] - report[REFERENCE],
        "process_cpu_seconds": spent.ru_utime + spent.ru_stime,
        # The whole life of the process, saving the result included.
        "peak_mib": spent.ru_maxrss / 1024,
        "first_loss": metrics[0]["loss"],
        "last_loss": sum(row["loss"] for row in metrics[-4:]) / 4,
    }
    task.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
