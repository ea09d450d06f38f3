"""Claim: on a CPU, Luthier trains more useful tokens per CPU-second, in less memory, than TRL at its defaults, the
transformers Trainer grouped by length, and a plain hand-written PyTorch loop without padding.

    python benchmarks/sft_cpu.py --trl-python PATH [--cases lora-8m full-8m …] [--steps 24] [--rounds 3]

Same weights, rows and batch size for all; contenders alternate (A B C A B C …), each in a process of its own. Useful
tokens are the real ones, without padding. CPU-seconds are user plus system time of all threads between the first and
the last step. Every contender runs with OMP_WAIT_POLICY=PASSIVE unless --defaults is given, so that spinning threads
do not count as work. --trl-python names an interpreter that has trl==1.16.0, peft and transformers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sft_cases import BATCH_SIZE, CASES, HERE, SHARED

CONTENDERS = {
    "trl": ("sft_trl.py", []),
    "trl-grouped": ("sft_trl.py", ["--grouped"]),
    "trainer": ("sft_trainer.py", ["--grouped"]),
    "loop": ("sft_loop.py", []),
    "luthier": ("sft_luthier.py", []),
}
WORK = HERE / ".work" / "cases"


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


def summary(runs: list[dict[str, float]]) -> dict[str, object]:
    """Return median and range of each figure over the rounds."""
    return {
        key: {
            "median": statistics.median(r[key] for r in runs),
            "range": [min(r[key] for r in runs), max(r[key] for r in runs)],
        }
        for key in runs[0]
    }


def measure(options: argparse.Namespace) -> dict[str, dict[str, dict[str, object]]]:
    """Run all contenders on all cases, alternating, and print a line for each run."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    if not options.defaults:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    results: dict[str, dict[str, dict[str, object]]] = {}
    for case in options.cases:
        if not (WORK / case / "tokens.json").is_file():
            command = [options.trl_python, str(HERE / "sft_cases.py"), case, "--rows", "1000", "--shared", str(SHARED)]
            subprocess.run([*command, "--folder", str(WORK / case)], check=True, env=environment)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.contenders}
        for _ in range(options.rounds):
            for name in options.contenders:
                figures = run_one(name, case, options, environment)
                runs[name].append(figures)
                print(
                    f"{case:10} {name:12} {figures['tokens_per_cpu_second']:8.0f} tokens/CPU-s "
                    f"{figures['peak_mib']:6.0f} MiB  start {figures['start_cpu_seconds']:.1f} CPU-s",
                    flush=True,
                )
        results[case] = {name: summary(found) for name, found in runs.items()}
    return results


def print_table(results: dict[str, dict[str, dict[str, object]]]) -> None:
    """Print speed and memory as ratios to TRL at its defaults, where it was run."""
    for case, by_name in results.items():
        base = by_name.get("trl")
        print(f"\n{case}")
        for name, figures in by_name.items():
            speed, peak = figures["tokens_per_cpu_second"]["median"], figures["peak_mib"]["median"]
            ratio = ""
            if base is not None:
                faster = speed / base["tokens_per_cpu_second"]["median"]
                ratio = f"{faster:5.2f}× speed  {peak / base['peak_mib']['median']:.2f}× memory"
            print(f"  {name:12} {speed:8.0f} tokens/CPU-s  {peak:6.0f} MiB  {ratio}")


def hardware() -> dict[str, object]:
    """Name the processor, its cores and the versions in use."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in described if "model name" in line), "")
    packages = ("luthier", "torch", "transformers", "peft")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"processor": model, "cores": os.cpu_count(), "system": platform.platform(), "versions": versions}


def main() -> None:
    """Measure, print, and write benchmarks/results/sft_cpu-<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="interpreter with TRL for the other contenders")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["lora-8m", "full-8m"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=24, help=f"optimizer steps of {BATCH_SIZE} rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defaults", action="store_true", help="leave OMP_WAIT_POLICY as each tool has it")
    parser.add_argument("--name", default=f"sft_cpu-{datetime.date.today().isoformat()}")
    options = parser.parse_args()
    results = measure(options)
    print_table(results)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    kept = {
        "claim": __doc__.split("\n\n")[0],
        "commit": commit,
        "hardware": hardware(),
        "steps": options.steps,
        "rounds": options.rounds,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**kept, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
