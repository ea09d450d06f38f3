"""Contender `luthier`: the program itself, `luthier train`, on the case's folder. Its figures are read from the run."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from sft_cases import BATCH_SIZE, LORA_ALPHA, LORA_RANK, MAX_LENGTH
from sft_meter import Task, read_task


def recipe(task: Task) -> dict[str, object]:
    """Give the recipe that does what the other contenders are told to do."""
    lora = {"kind": "lora", "rank": LORA_RANK, "alpha": LORA_ALPHA, "targets": "all-linear"}
    return {
        "model": str(task.folder / "model"),
        "method": lora if task.case.method == "lora" else "full",
        "objective": "sft",
        "data": {"path": str(task.folder / "rows.jsonl"), "limit": task.steps * BATCH_SIZE},
        "batch_size": BATCH_SIZE,
        "max_steps": task.steps,
        "max_length": MAX_LENGTH,
        "learning_rate": task.case.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "save_steps": task.steps,
        "samples": 0,
    }


def main() -> None:
    """Train in a process of its own and write the figures."""
    task = read_task()
    with tempfile.TemporaryDirectory() as home:
        path, run = Path(home) / "recipe.json", Path(home) / "run"
        path.write_text(json.dumps(recipe(task)), encoding="utf-8")
        command = [sys.executable, "-m", "luthier", "train", str(path), f"run={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        metrics = [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in metrics[1:])
    seconds = report["train_cpu_seconds"] - report["first_step_cpu_seconds"]
    result = {
        "steps": len(metrics),
        "tokens": tokens,
        "train_cpu_seconds": seconds,
        "train_wall_seconds": sum(row["step_seconds"] for row in metrics[1:]),
        "tokens_per_cpu_second": tokens / seconds,
        "start_cpu_seconds": report["setup_cpu_seconds"],
        "process_cpu_seconds": spent.ru_utime + spent.ru_stime,
        # The whole life of the process, saving the result included.
        "peak_mib": spent.ru_maxrss / 1024,
        "loss_after": metrics[-1]["loss"],
        "trained_parameters": report["trainable_parameters"],
    }
    task.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
