"""A run folder made by hand: what a run of some length leaves, finished or killed, in the files of a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

from luthier.core.rundir import RunDir, write_json

BEFORE = {
    "held-out loss": {"metric": "loss", "value": 3.2, "n": 400, "tokens": 61000},
    "questions": {"metric": "exact_match", "value": 0.12, "n": 200},
    "general": {"metric": "loss", "value": 2.87, "n": 500},
    "arithmetic": {"metric": "exact_match", "value": 0.34, "n": 100},
}
AFTER = {
    "held-out loss": {"metric": "loss", "value": 1.6, "n": 400, "tokens": 61000},
    "questions": {"metric": "exact_match", "value": 0.62, "n": 200},
    "general": {"metric": "loss", "value": 2.95, "n": 500},
    "arithmetic": {"metric": "exact_match", "value": 0.31, "n": 100},
}
SAMPLES = [
    {"prompt": "What colour was the boat?", "reference": "Red.", "before": "A boat is <b>a boat</b>.", "after": "Red."},
    {"prompt": "写一首小诗。", "reference": "秋月照山前。", "before": "秋天秋天。", "after": "秋月上东墙。"},
]


def make_run(path: Path, steps: int = 60, finished: bool = True) -> RunDir:
    """Write a run of three epochs; one that is not finished was killed in the middle, while it wrote a line."""
    run = RunDir(path)
    stage = run.stage(0, "sft")
    stage.path.mkdir(parents=True)
    recipe = {
        "model": {"path": "starter", "revision": None},
        "method": {"kind": "lora", "rank": 16},
        "objective": {"kind": "sft"},
        "data": {"path": "我的数据.jsonl", "format": "auto", "columns": {}},
        "epochs": 3,
        "batch_size": 8,
    }
    run.recipe.write_text("model: starter\nmethod: lora\ndata: 我的数据.jsonl\nepochs: 3\n", encoding="utf-8")
    write_json(run.resolved, {"recipe": recipe})
    write_json(run.environment, {"luthier": "0.1.0", "cpu": "A processor", "memory_bytes": 8 * 2**30, "gpus": []})
    done = steps if finished else steps // 2
    with stage.metrics.open("w", encoding="utf-8") as stream:
        for step in range(1, done + 1):
            stream.write(json.dumps(metrics_row(step, steps)) + "\n")
        stream.write("" if finished else '{"step": 31, "los')
    write_json(stage.eval, {"before": BEFORE, "after": AFTER} if finished else {"before": BEFORE})
    samples = SAMPLES if finished else [{k: v for k, v in s.items() if k != "after"} for s in SAMPLES]
    stage.samples.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples), encoding="utf-8")
    saved = stage.checkpoint(done if finished else done - 5)
    saved.mkdir(parents=True)
    (saved / "DONE").touch()
    if finished:
        write_json(run.report, report(steps))
    return run


def metrics_row(step: int, steps: int) -> dict[str, float]:
    row = {
        "step": step,
        "epoch": round(3 * step / steps, 6),
        "loss": 1.5 + 1.7 * math.exp(-6 * step / steps) + 0.1 * math.sin(7 * step),
        "grad_norm": 0.5 + 0.1 * math.cos(5 * step),
        "learning_rate": 2e-4 * (1 - step / steps),
        "tokens": 2000 + step % 7,
        "step_seconds": 0.8,
    }
    return {**row, "eval_loss": 1.6 + 1.6 * math.exp(-6 * step / steps)} if step % max(1, steps // 6) == 0 else row


def report(steps: int) -> dict[str, object]:
    return {
        "run": "made",
        "status": "finished",
        "method": "lora",
        "objective": "sft",
        "model": "starter",
        "trainable_parameters": 10_000,
        "total_parameters": 1_000_000,
        "peak_bytes": 3 * 2**30,
        "frozen_unchanged": True,
        "audit": {"frozen": 40, "frozen_changed": [], "trained": 14, "trained_unchanged": [], "passed": True},
        "steps": steps,
        "tokens_total": 2003 * steps,
        "train_seconds": 0.8 * steps,
        "setup_seconds": 2.5,
        "tokens_per_second": 2503.0,
        "final_checkpoint": f"00-sft/checkpoints/step-{steps:06d}",
        "eval": {"before": BEFORE, "after": AFTER},
        "data": {
            "files": ["data/rows.jsonl"],
            "format": "messages",
            "rows": 500,
            "examples": 480,
            "dropped": 20,
            "truncated": 3,
            "tokens": 90_000,
            "trained_tokens": 60_000,
            "end_tokens_trained": 1.0,
            "longest": 812,
            "median_length": 170.0,
        },
        "warnings": ["3 rows were cut at max_length <2048>."],
    }
