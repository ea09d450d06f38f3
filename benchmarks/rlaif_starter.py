"""Claim: learning from AI feedback, from sampling to a better model, takes two commands and less than ten minutes on
two cores, and raises what the judge says of answers to prompts that it never judged.

    python benchmarks/rlaif_starter.py [--seeds 0] [--name NAME]

The commands are those of examples/rlaif/dpo.yaml: the judge compares the starter's own answers, and DPO learns from
what it said. The judge is a score that can be checked (warmth); its view of held-out prompts is measured as in
rlhf_starter.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_starter import HERE, gain, true_score

ROOT = HERE.parent
RECIPE = ROOT / "examples/rlaif/dpo.yaml"
JUDGE = (
    "judge starter:story_prompts --sample starter --samples 4 --reward {root}/examples/warmth.py:score --margin 1.5 "
    "--max-new-tokens 48 --out runs/judged.jsonl"
)


def timed(words: list[str], home: Path) -> dict[str, float]:
    """Run a command of luthier in a folder and return what it took."""
    started = time.perf_counter()
    with (home / "log.txt").open("w", encoding="utf-8") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "luthier", *words], cwd=home, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, took = os.wait4(running.pid, 0)
    if status:
        raise SystemExit((home / "log.txt").read_text(encoding="utf-8")[-3000:])
    cpu = took.ru_utime + took.ru_stime
    return {"wall_seconds": time.perf_counter() - started, "cpu_seconds": cpu, "peak_mib": took.ru_maxrss / 1024}


def main() -> None:
    """Run the two commands, print, and write benchmarks/results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--name", default=f"rlaif_starter-{datetime.date.today().isoformat()}")
    options = parser.parse_args()
    from luthier.run.environment import collect_environment

    base, told, _ = true_score("starter")
    found = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "runs").mkdir()
        judging = timed(shlex.split(JUDGE.format(root=ROOT)), home)
        pairs = len((home / "runs/judged.jsonl").read_text(encoding="utf-8").splitlines())
        print(f"judge: {pairs} pairs, {judging['cpu_seconds']:.0f} CPU-seconds", flush=True)
        for seed in options.seeds:
            run = home / f"dpo-{seed}"
            took = timed(["train", str(RECIPE), f"seed={seed}", f"run={run}", "data=runs/judged.jsonl"], home)
            score, after, answers = true_score(str(run))
            mean, low, high = gain(base, score)
            found.append(
                {
                    "seed": seed,
                    "true_score_after": float(score.mean()),
                    "gain": mean,
                    "gain_95": [low, high],
                    "answers_after": after,
                    "examples_after": answers,
                    **took,
                }
            )
            print(
                f"seed {seed}: {base.mean():.2f} → {score.mean():.2f} ({low:.2f} to {high:.2f} more), "
                f"{took['cpu_seconds']:.0f} CPU-seconds, {took['wall_seconds']:.0f} s",
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    kept = {
        "claim": (__doc__ or "").split("\n\n")[0],
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "environment": collect_environment(),
        "threads": os.environ.get("OMP_NUM_THREADS", "chosen by luthier"),
        "load_average": os.getloadavg(),
        "recipe": RECIPE.read_text(encoding="utf-8"),
        "true_score_before": float(base.mean()),
        "answers_before": told,
        "pairs": pairs,
        "judge": judging,
        "runs": found,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
