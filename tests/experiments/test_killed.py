"""Experiments that are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from recipes import pairs, write_recipe, write_rows


def test_an_experiment_that_was_killed_goes_on_where_it_was(family_folder: Callable[[str], Path], tmp_path: Path):
    """Kill -9 of the comparing process alone: what it started goes on, and the next command waits for it."""
    write_rows(tmp_path / "rows.jsonl", pairs(24))
    write_rows(tmp_path / "held.jsonl", pairs(6, seed=9))
    keys = {"eval_data": "held.jsonl", "samples": 0, "run": None, "max_steps": 3}
    write_recipe(tmp_path, family_folder("llama"), **keys)
    experiment = tmp_path / "experiment.json"
    # A rate that breaks the run at once: one failed cell does not end the rest.
    grid = {"learning_rate": [1e-2, 1e30]}
    experiment.write_text(json.dumps({"base": "recipe.json", "grid": grid, "seeds": 2}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "luthier", "compare", str(experiment), "--out", str(out), "--workers", "2"]
    first = out / "lr_0.01" / "seed-0"
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (first / "resolved.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = (first / "resolved.json").stat().st_mtime_ns
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    rows = {row["name"]: row for row in json.loads(said.stdout)["rows"]}
    assert rows["lr_0.01"]["seeds"] == [0, 1]
    assert rows["lr_0.01"]["quality"]["interval"]
    assert rows["lr_1e30"]["failures"] == 2
    assert "step" in rows["lr_1e30"]["failed"].lower()
    assert (first / "resolved.json").stat().st_mtime_ns == begun  # it was not begun anew
    assert "lr_0.01/seed-0: goes on" in said.stderr
    assert "lr_0.01/seed-0: done" in said.stderr
    assert not _still_at_work(out)


def _still_at_work(out: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(out) in words and folder.name != str(os.getpid()):
            found.append(words)
    return found
