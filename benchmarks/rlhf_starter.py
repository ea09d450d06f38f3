"""Claim: examples/rlhf.yaml, begun with three seeds, trains a reward model that tells the better of two answers in at
least 0.85 of the held-out pairs, and PPO against that model raises the true score of answers to held-out prompts, with
the KL to the start bounded; the whole line takes less than ten minutes on two cores.

    python benchmarks/rlhf_starter.py [--seeds 0 1 2] [--name NAME] [--set KEY=VALUE …]

The preference is synthetic and can be checked: the pairs are the starter's own answers, and the better one is the
warmer one (examples/warmth.py). PPO sees the reward model alone. Warmth is measured on the prompts of the held-out
pairs, which are in no training pair and not among PPO's prompts: four answers each, drawn as in training, under the
model before and after. The interval is a bootstrap over prompts of the paired difference.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "examples/rlhf.yaml"
warmth: Callable[[str], float] = runpy.run_path(str(HERE.parent / "examples/warmth.py"))["warmth"]
ANSWERS, NEW_TOKENS = 4, 48
SHOWN = ("step", "reward", "kl", "entropy", "response_length", "truncated", "clip_fraction", "explained_variance")


def true_score(target: str) -> tuple[np.ndarray, dict[str, float], list[str]]:
    """Return the mean warmth of the answers to each held-out prompt, numbers on the answers, and a few of them."""
    from luthier.data.prompts import render_prompt
    from luthier.data.records import PromptAnswer
    from luthier.data.spec import resolve_path
    from luthier.run.opened import open_target
    from luthier.train.generate import Sampling, sample, stop_tokens

    lines = resolve_path("starter:preferences_eval").read_text(encoding="utf-8").splitlines()
    asked = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
    model, _ = open_target(target)
    records = [PromptAnswer(prompt, "", "", "", (), False, prompt) for prompt in asked]
    tokens = [render_prompt(model.tokenizer, record) for record in records]
    found = sample(model, tokens, ANSWERS, Sampling(NEW_TOKENS, temperature=1.0, seed=4321), counts=False)
    stops = set(stop_tokens(model))
    texts = [[str(model.tokenizer.decode([t for t in a.tokens.tolist() if t not in stops])) for a in g] for g in found]
    scores = np.array([[warmth(text) for text in group] for group in texts])
    lengths = np.array([[len(answer.tokens) for answer in group] for group in found])
    flat = [text for group in texts for text in group]
    told = {
        "answers": float(scores.size),
        "mean_tokens": float(lengths.mean()),
        "ended": float(np.mean([not answer.is_truncated for group in found for answer in group])),
        "different": len(set(flat)) / len(flat),
    }
    return scores.mean(1), told, [group[0] for group in texts[:4]]


def gain(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Return the mean paired difference and its 95 % interval by bootstrap over prompts."""
    difference = after - before
    draw = np.random.default_rng(0)
    means = difference[draw.integers(0, len(difference), (10_000, len(difference)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def run(seed: int, home: Path, overrides: list[str]) -> tuple[Path, dict[str, float]]:
    """Train the line of the recipe, and return its folder with what it took."""
    folder = home / f"rlhf-{seed}"
    command = [sys.executable, "-m", "luthier", "train", str(RECIPE), f"seed={seed}", f"run={folder}", *overrides]
    started = time.perf_counter()
    with (home / f"{seed}.log").open("w", encoding="utf-8") as log:
        # In a session of its own, so that on a shared machine each run gets the share of one.
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        _, status, took = os.wait4(running.pid, 0)  # what this process alone has taken
    if status:
        said = (home / f"{seed}.log").read_text(encoding="utf-8")
        raise SystemExit(f"seed {seed} failed:\n{said[-3000:]}")
    wall = time.perf_counter() - started
    cpu = took.ru_utime + took.ru_stime
    return folder, {"wall_seconds": wall, "cpu_seconds": cpu, "peak_mib": took.ru_maxrss / 1024}


def measured(seed: int, folder: Path, took: dict[str, float], base: np.ndarray) -> dict[str, object]:
    """Return all that is claimed of a finished run."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    reward = report["stages"][0]["eval"]["after"]
    [metrics] = folder.glob("*-ppo/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    score, told, answers = true_score(str(folder))
    mean, low, high = gain(base, score)
    return {
        "seed": seed,
        "reward_model": {name: measure["value"] for name, measure in reward.items()},
        "held_out_pairs": reward["held-out accuracy"]["n"],
        "true_score_after": float(score.mean()),
        "gain": mean,
        "gain_95": [low, high],
        "kl_last": rows[-1]["kl"],
        "kl_most": max(row["kl"] for row in rows),
        "model_reward_first": rows[0]["reward"],
        "model_reward_last": rows[-1]["reward"],
        **took,
        "answers_after": told,
        "examples_after": answers,
        "curve": [{name: round(row[name], 4) for name in SHOWN if name in row} for row in rows],
    }


def main() -> None:
    """Run the seeds, print, and write benchmarks/results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; 1 for seconds that mean something")
    parser.add_argument("--name", default=f"rlhf_starter-{datetime.date.today().isoformat()}")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe, such as stages.1.max_steps=40")
    options = parser.parse_args()
    from luthier.run.environment import collect_environment

    base, told, answers = true_score("starter")
    print(f"before: warmth {base.mean():.2f} ({told['mean_tokens']:.0f} tokens, {told['ended']:.0%} ended)", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(options.jobs) as pool:
        runs = pool.map(lambda seed: run(seed, Path(home), options.set), options.seeds)
        for seed, (folder, took) in zip(options.seeds, runs):
            result = measured(seed, folder, took, base)
            found.append(result)
            print(
                f"seed {seed}: reward model {result['reward_model']['held-out accuracy']:.3f}, "  # type: ignore[index]
                f"warmth {base.mean():.2f} → {result['true_score_after']:.2f} "
                f"(gain {result['gain']:.2f}, {result['gain_95'][0]:.2f} to {result['gain_95'][1]:.2f}), "  # type: ignore[index]
                f"KL {result['kl_last']:.3f} per token (most {result['kl_most']:.3f}), "
                f"{result['cpu_seconds']:.0f} CPU-seconds, {result['wall_seconds']:.0f} s; {result['answers_after']}",
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
        "runs_at_once": options.jobs,
        "recipe": RECIPE.read_text(encoding="utf-8"),
        "overrides": options.set,
        "true_score_before": float(base.mean()),
        "answers_before": told,
        "examples_before": answers,
        "runs": found,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
