"""`kill -9` at random moments: after `resume` the run is bit for bit the uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

# Imports once, then forks a child for each life of the run: a life costs a fraction of a second instead of five.
_LIVES = """
import os, sys, time, json
os.environ["OMP_NUM_THREADS"] = "1"
from pathlib import Path
import luthier.run.stage, luthier.run.launch, luthier.data.render, luthier.data.preview
import transformers.models.llama.modeling_llama, peft.tuners.lora
from luthier.cli.main import main

recipe, run, delays = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for life, delay in enumerate([*delays, None]):
    child = os.fork()
    if child == 0:
        known = (Path(run) / "resolved.json").exists()
        try:
            main(["resume", run] if known else ["train", recipe, "run=" + run])
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    if delay == "saving":
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(Path(run).glob("*/checkpoints/.step-*")):
            if os.waitpid(child, os.WNOHANG)[0]:
                child = None
                break
    elif delay is not None:
        time.sleep(delay)
    if child is None:
        continue
    if delay is not None:
        try:
            os.kill(child, 9)
        except ProcessLookupError:
            pass
    status = os.waitpid(child, 0)[1]
    if delay is None and os.waitstatus_to_exitcode(status) not in (0, 2):
        sys.exit(f"the last life ended with {os.waitstatus_to_exitcode(status)}")
"""


def _recipe(folder: Path, model: Path, method: str) -> Path:
    data = folder / "data.jsonl"
    draw = random.Random(0)
    words = ["red", "blue", "cat", "dog", "sun", "moon", "tree", "fish"]
    rows = [
        {
            "prompt": " ".join(draw.choices(words, k=draw.randint(2, 9))),
            "completion": " ".join(draw.choices(words, k=4)),
        }
        for _ in range(64)
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "model": str(model),
        "method": method,
        "objective": "sft",
        "data": str(data),
        "eval_fraction": 0.1,
        "max_steps": 40,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 3,
        "eval_steps": 5,
        "samples": 1,
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _live(recipe: Path, run: Path, delays: list[float | str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIVES, str(recipe), str(run), json.dumps(delays)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _outcome(run: Path) -> tuple[list[dict], dict, dict]:
    rows = [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["step_seconds"]
    report = json.loads((run / "report.json").read_text())
    files = sorted((run / report["final_checkpoint"]).glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return rows, tensors, report["eval"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_killed_at_any_moment_ends_bit_for_bit_like_the_uninterrupted_one(
    method: str, tmp_path: Path, shared: Path
) -> None:
    recipe = _recipe(tmp_path, shared / "models" / "stories260K", method)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    _live(recipe, whole, [])
    life = max(time.monotonic() - started - 4.0, 1.0)  # four seconds of it were imports
    draw = random.Random(1)
    _live(recipe, broken, [0.05, *(draw.uniform(0.1, life * 0.8) for _ in range(7)), "saving", "saving"])

    rows, tensors, scores = _outcome(whole)
    rows_broken, tensors_broken, scores_broken = _outcome(broken)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows_broken == rows
    assert scores_broken == scores
    assert tensors_broken.keys() == tensors.keys()
    assert all(bool((tensors_broken[n] == tensors[n]).all()) for n in tensors)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path, shared: Path) -> None:
    recipe = _recipe(tmp_path, shared / "models" / "stories260K", "lora")
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "train", str(recipe), f"run={run}", "max_steps=100000", "save_steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = run / "00-sft" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)

    assert process.returncode == 130
    assert f"luthier resume {run}" in " ".join(shown.split())
    assert list(run.glob("00-sft/checkpoints/step-*/DONE"))
    assert json.loads((run / "report.json").read_text())["status"] == "interrupted"
