"""Claim: on a CPU, DPO with LoRA trains at least 4 times TRL's useful tokens per CPU-second, in at most 0.45 of its
peak memory.

    python benchmarks/dpo_cpu.py --trl-python PATH [--cases demo hh] [--steps 20] [--rounds 3]

The 8 M model of the SFT benchmark, rank 8 on all linear layers, 4 pairs a step, the same weights and rows for all;
contenders alternate, each in a process of its own. Useful tokens are the real ones of prompt + chosen and of prompt +
rejected, whether or not a tool computes the prompt twice. CPU-seconds are user plus system time of all threads in the
steps but the first, and the reference's log-probabilities, where they are computed beforehand, by the same share. Every
contender runs in one thread unless --threads says otherwise. --trl-python names an interpreter that has trl==1.16.0,
peft and transformers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_cases import BATCH_PAIRS, DPO_CASES
from sft_cases import HERE, SHARED
from sft_cpu import hardware, print_table, summary

CONTENDERS = {
    "trl": ("dpo_trl.py", []),
    "trl-best": ("dpo_trl.py", ["--best"]),
    "loop": ("dpo_loop.py", []),
    "luthier": ("dpo_luthier.py", []),
}
WORK = HERE / ".work" / "dpo"
FASTER, LEANER = 4.0, 0.45


def run_one(name: str, case: str, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, float]:
    """Run one contender once and return its figures."""
    script, flags = CONTENDERS[name]
    python = sys.executable if name == "luthier" else options.trl_python
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "result.json"
        command = [python, str(HERE / script), case, "--folder", str(WORK / case), "--steps", str(options.steps)]
        done = subprocess.run([*command, "--out", str(out), *flags], capture_output=True, text=True, env=environment)
        if done.returncode or not out.exists():
            raise SystemExit(f"{name} failed on {case}:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def measure(options: argparse.Namespace) -> dict[str, dict[str, dict[str, object]]]:
    """Run all contenders on all cases, alternating, and print a line for each run."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["OMP_NUM_THREADS"] = str(options.threads)
    results: dict[str, dict[str, dict[str, object]]] = {}
    for case in options.cases:
        if not (WORK / case / "tokens.json").is_file():
            command = [options.trl_python, str(HERE / "dpo_cases.py"), case, "--shared", str(SHARED)]
            subprocess.run([*command, "--folder", str(WORK / case)], check=True, env=environment)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.contenders}
        for _ in range(options.rounds):
            for name in options.contenders:
                figures = run_one(name, case, options, environment)
                runs[name].append(figures)
                speed, peak = figures["tokens_per_cpu_second"], figures["peak_mib"]
                print(
                    f"{case:6} {name:10} {speed:6.0f} tokens/CPU-s {peak:6.0f} MiB  "
                    f"loss {figures['first_loss']:.4f} to {figures['last_loss']:.4f}",
                    flush=True,
                )
        results[case] = {name: summary(found) for name, found in runs.items()}
    return results


def main() -> None:
    """Measure, print, and write benchmarks/results/dpo_cpu-<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="interpreter with TRL for the other contenders")
    parser.add_argument("--cases", nargs="+", choices=DPO_CASES, default=list(DPO_CASES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["trl", "loop", "luthier"])
    parser.add_argument("--steps", type=int, default=20, help=f"optimizer steps of {BATCH_PAIRS} pairs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default=f"dpo_cpu-{datetime.date.today().isoformat()}")
    options = parser.parse_args()
    results = measure(options)
    print_table(results)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    kept = {
        "claim": " ".join(__doc__.split("\n\n")[0].split()),
        "limits": {"times_as_fast_as_trl": FASTER, "share_of_trls_memory": LEANER},
        "commit": commit,
        "hardware": hardware(),
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**kept, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
