"""What choosing rows buys on the starter: 500 of the quickstart's rows by each score, against 500 at random.

Each choice is made with a run that has seen a little (100 steps), and trained with the quickstart's settings (four
epochs, so as many steps for each), three seeds. What counts is held-out loss and task accuracy. The random choice is
another one for every seed; the others differ between seeds in how ties are broken, and in the training.

    python benchmarks/select_cpu.py --name select_cpu-2026-11-28
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHOICES = ("random", "diversity", "ifd", "ifd,diversity", "perplexity")


def luthier(*words: str) -> dict:
    """Run the program and return its JSON."""
    command = [sys.executable, "-m", "luthier", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout)


def train(data: str, run: Path, seed: int, *more: str) -> dict:
    """Train the quickstart on some rows, and return its report."""
    settings = [f"data={data}", f"run={run}", f"seed={seed}", "samples=0", *more]
    luthier("train", "examples/quickstart.yaml", *settings)
    return json.loads((run / "report.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--best", default="500")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choices", nargs="+", default=list(CHOICES))
    parser.add_argument("--short", type=Path, help="a run that scores the rows; without it, one is trained")
    parser.add_argument("--name", help="write benchmarks/results/NAME.json")
    wanted = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        short = wanted.short or home / "short"
        if wanted.short is None:
            train("starter:quickstart", short, 0, "max_steps=100")
        for by in wanted.choices:
            rows = []
            for seed in range(wanted.seeds):
                out = home / f"{by.replace(',', '-')}.{seed}.jsonl"
                choose = ["--by", by, "--seed", str(seed), "--model", str(short)]
                if (home / "scores").exists():  # every choice reads the same scores
                    shutil.copy(home / "scores", out.with_name(f"{out.name}.journal.jsonl"))
                luthier("select", "starter:quickstart", "--best", wanted.best, "--out", str(out), *choose)
                if out.with_name(f"{out.name}.journal.jsonl").exists():
                    shutil.copy(out.with_name(f"{out.name}.journal.jsonl"), home / "scores")
                report = train(str(out), home / f"run-{out.stem}", seed)
                after = report["eval"]["after"]
                rows.append({"loss": after["held-out loss"]["value"], "accuracy": after["task accuracy"]["value"]})
                print(by, seed, rows[-1], flush=True)
            results[by] = {"seeds": rows, **{key: statistics.mean(row[key] for row in rows) for key in rows[0]}}
    if wanted.name:
        from luthier.run.environment import collect_environment

        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        report = {"commit": commit.stdout.strip(), "environment": collect_environment(), "results": results}
        (ROOT / "benchmarks" / "results" / f"{wanted.name}.json").write_text(json.dumps(report, indent=2, default=str))


if __name__ == "__main__":
    main()
