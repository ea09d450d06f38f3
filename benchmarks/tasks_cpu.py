"""Claim: 13,400 minimal pairs of BLiMP and 1,508 of CrowS-Pairs are scored before and after a short run on the starter,
with intervals for each and for every paradigm, in less than three minutes of processor time.

    python benchmarks/tasks_cpu.py [--shared ../shared] [--steps 40]

One run of the program: LoRA on the starter's quickstart rows, with both files under `evaluate` as they were published.
What training takes is known from the run; the rest of its processor time is loading, reading and measuring. Writes
benchmarks/results/tasks_cpu-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from sft_cpu import HERE, hardware

MASTERED = (
    "principle_A_case_1",
    "principle_A_domain_1",
    "irregular_past_participle_verbs",
    "sentential_negation_npi_licensor_present",
    "existential_there_quantifiers_1",
    "wh_vs_that_no_gap",
    "wh_questions_subject_gap_long_distance",
    "anaphor_gender_agreement",
    "left_branch_island_echo_question",
    "drop_argument",
    "determiner_noun_agreement_1",
)
"""Paradigms that small models of stories are known to have learnt."""


def run(shared: Path, model: str, steps: int) -> dict[str, object]:
    """Run the program once and return what it measured and took."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        recipe = {
            "model": model,
            "method": "lora",
            "data": "starter:quickstart",
            "max_steps": steps,
            "eval_steps": 10 * steps,
            "samples": 0,
            "run": str(folder / "run"),
            "evaluate": [
                {"kind": "minimal_pairs", "name": "blimp", "data": str(shared / "blimp" / "blimp_67x200.jsonl.gz")},
                {
                    "kind": "minimal_pairs",
                    "name": "crows_pairs",
                    "data": str(shared / "crows_pairs" / "crows_pairs_anonymized.csv"),
                },
            ],
        }
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "luthier", "train", str(folder / "r.yaml"), "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(done.stdout)
        results = json.loads((folder / "run" / "00-sft" / "eval.json").read_text(encoding="utf-8"))
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    parts = {name: _task(results, name) for name in ("blimp", "crows_pairs")}
    return {
        "model": model,
        "steps": report["steps"],
        "cpu_seconds": round(whole, 2),
        "training_cpu_seconds": round(report["train_cpu_seconds"], 2),
        "evaluation_and_loading_cpu_seconds": round(whole - report["train_cpu_seconds"], 2),
        "tasks": parts,
    }


def _task(results: dict, name: str) -> dict[str, object]:
    first, second, change = (results[when][name] for when in ("before", "after", "change"))
    groups = {
        group: {
            "before": part["value"],
            "interval": part["interval"],
            "after": second["groups"][group]["value"],
            "change": change["groups"][group]["change"],
            "change_interval": change["groups"][group]["interval"],
            "near_chance_before": part["near_chance"],
        }
        for group, part in first["groups"].items()
        if name != "blimp" or group in MASTERED
    }
    near = [group for group, part in first["groups"].items() if part["near_chance"]]
    return {
        "n": first["n"],
        "metric": first["metric"],
        "before": {"score": first["value"], "interval": first["interval"], "near_chance": first["near_chance"]},
        "after": {"score": second["value"], "interval": second["interval"], "near_chance": second["near_chance"]},
        "change": change["change"],
        "change_interval": change["interval"],
        "groups_near_chance_before": len(near),
        "groups_in_all": len(first["groups"]),
        "groups": groups,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=["starter"])
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    result = {
        "claim": (__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "commit": commit.stdout.strip(),
        "hardware": hardware(),
        "threads": os.environ.get("OMP_NUM_THREADS", "by the model's size"),
        "runs": [run(options.shared.resolve() / "data", model, options.steps) for model in options.models],
    }
    path = HERE / "results" / f"tasks_cpu-{datetime.date.today()}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
