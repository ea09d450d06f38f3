"""A million short texts tokenised within bounded memory, read back from the cache, and the same losses either way.

    python benchmarks/streaming_tokens.py [--rows 1000000] [--out results.json]

Claim: the whole process of `luthier train` on the rows (reading, checking, tokenising, two steps) peaks under 1.5 GB of
resident memory; a second run reads the tokens from the cache; a run without a cache (of the first 40,000 rows, which
take part in another pair of runs) has the same losses, bit for bit.
Rows, cache and runs lie in a temporary folder that is removed afterwards. Times are CPU-seconds of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["the", "cat", "sat", "on", "a", "mat", "saw", "red", "blue", "bird", "sun", "moon", "little", "dog", "home"]
LIMIT_BYTES = 1.5e9
FEWER = 40_000


def write_rows(path: Path, rows: int) -> None:
    """Write short texts, some 75 characters each."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = " ".join(draw.choices(WORDS, k=draw.randint(6, 24)))
            stream.write(json.dumps({"text": f"{number}: {text}."}) + "\n")


def _same(runs: dict[str, dict[str, object]], one: str, other: str) -> bool:
    return runs[one]["losses"] == runs[other]["losses"]


def run(folder: Path, name: str, cache: str, limit: int | None = None) -> dict[str, object]:
    """Train two steps in a process of its own and return what it took."""
    recipe = {
        "model": "starter",
        "method": "lora",
        "objective": "lm",
        "data": {"path": str(folder / "rows.jsonl"), "limit": limit},
        "eval_fraction": 0.001,
        "max_steps": 2,
        "batch_size": 8,
        "samples": 0,
        "max_length": 256,
        "run": str(folder / name),
    }
    (folder / f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")
    environment = {**os.environ, "LUTHIER_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "luthier", "train", str(folder / f"{name}.json"), "--json"]
    started = time.monotonic()
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    said = (folder / f"{name}.log").read_text(encoding="utf-8")
    if status:
        raise SystemExit(said)
    report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
    metrics = [json.loads(line) for line in (folder / name / "00-lm" / "metrics.jsonl").read_text().splitlines()]
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
        "peak_bytes": used.ru_maxrss * 1024,
        "sequences": report["data"]["examples"],
        "tokens": report["data"]["tokens"],
        "said": [line.strip() for line in said.splitlines() if line.strip().startswith("tokens")],
        "losses": [[row["loss"], row["grad_norm"], row.get("eval_loss")] for row in metrics],
        "environment": report["environment"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", asked.rows)
        size = (folder / "rows.jsonl").stat().st_size
        runs = {
            "made": run(folder, "made", str(folder / "cache")),
            "read": run(folder, "read", str(folder / "cache")),
            "fewer rows, made": run(folder, "few", str(folder / "cache"), limit=FEWER),
            "fewer rows, no cache": run(folder, "off", "off", limit=FEWER),
        }
    environment = runs["made"]["environment"]
    for part in runs.values():
        part.pop("environment")
        part["said"] = [line.replace(name, "…") for line in part["said"]]
    found = {
        "claim": "tokenising within 1.5 GB, the same losses with and without the cache",
        "rows": asked.rows,
        "file_bytes": size,
        "peak_bytes": max(part["peak_bytes"] for part in runs.values()),
        "within_limit": max(part["peak_bytes"] for part in runs.values()) < LIMIT_BYTES,
        "same_losses": _same(runs, "made", "read") and _same(runs, "fewer rows, made", "fewer rows, no cache"),
        "runs": runs,
        "environment": environment,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
