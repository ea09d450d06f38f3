"""Claim: fine-tuning stories260K on Chinese hotel reviews raises its loss on held-out stories and costs it grammar that
it had (eleven paradigms of BLiMP); rollback gives back the best state that kept within max_drop; replay forgets less.

    python benchmarks/forgetting_cpu.py [--seeds 0 1 2] [--shared FOLDER] [--out FILE]

Every run is a recipe of the same steps, rows and order, with one thing changed. The reviews are ChnSentiCorp's, stories
are of TinyStories' validation split; the rows that are replayed come from its training split, which the model has seen.
BLiMP is scored before and after on the same pairs, so that its change has a paired interval.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import json
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from luthier.core.batch import Example
from luthier.core.rundir import RunDir, read_json
from luthier.evaluate.tasks.base import TaskResult, paired, result_of
from luthier.models.loaded import LoadedModel
from luthier.run.draft import Draft
from luthier.run.environment import collect_environment
from luthier.run.examine import examine
from luthier.run.launch import start
from luthier.run.opened import open_target
from luthier.run.screen import Screen
from luthier.train.microbatch import Cut

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LUTHIER_SHARED", HERE.parent.parent / "shared"))
PARADIGMS = (
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
"""What the model masters; on the others it guesses."""
STEPS = 150
RATE = 3e-3
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "replay": {"regularizers": [{"kind": "replay", "share": 0.25}]},
    "kl": {"regularizers": [{"kind": "kl", "weight": 0.5}]},
    "low rate": {"learning_rate": 1e-4},
    "low rate, rollback": {"learning_rate": 1e-4, "forgetting": {"action": "rollback"}},
}
"""What is changed. At the full rate the first measurement is over max_drop, so rollback would give back the start."""
MAX_DROP = 0.05


def rows_of(text: str, paragraphs: int = 3) -> list[str]:
    """Return pieces of a file of stories: some paragraphs each, as the model was trained to read them."""
    found = [part.strip() for part in text.split("\n\n") if part.strip()]
    return ["\n".join(found[i : i + paragraphs]) for i in range(0, len(found) - paragraphs, paragraphs)]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepare(shared: Path, folder: Path) -> dict[str, str]:
    """Write the rows that runs read, and return their files."""
    data = shared / "data"
    with gzip.open(data / "zh_sentiment/ChnSentiCorp_htl_all.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        reviews = [row["review"][:60] for row in csv.DictReader(stream)]
    stories = rows_of((data / "tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8"))
    seen = rows_of((data / "tinystories/tinystories_train_head.txt").read_text(encoding="utf-8"))
    return {
        "reviews": write(folder / "reviews.jsonl", [{"text": r} for r in reviews[:2400] if r]),
        "held": write(folder / "held.jsonl", [{"text": r} for r in reviews[2400:2440] if r]),
        "stories": write(folder / "stories.jsonl", [{"text": s} for s in stories[:24]]),
        "seen": write(folder / "seen.jsonl", [{"text": s} for s in seen[:600]]),
    }


def recipe(name: str, files: dict[str, str], shared: Path, seed: int, run: Path) -> dict[str, object]:
    case = dict(CASES[name])
    parts = [dict(part) for part in case.get("regularizers", [])]  # type: ignore[union-attr]
    for part in parts:
        if part["kind"] in ("replay", "ewc"):
            part["data"] = files["seen"]
    limits = {"data": files["stories"], "max_drop": MAX_DROP, "action": "warn", **dict(case.get("forgetting", {}))}  # type: ignore[arg-type]
    usual = {
        "model": str(shared / "models/stories260K"),
        "method": "full",
        "objective": "lm",
        "data": files["reviews"],
        "eval_data": files["held"],
        "max_steps": STEPS,
        "batch_size": 16,
        "max_length": 128,
        "learning_rate": RATE,
        "eval_steps": 5,
        "save_steps": STEPS,
        "seed": seed,
        "samples": 0,
        "run": str(run),
    }
    return {**usual, **case, "forgetting": limits, "regularizers": parts}


def grammar(shared: Path) -> list[dict]:
    """Return the pairs of BLiMP that the model masters."""
    with gzip.open(shared / "data/blimp/blimp_67x200.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [pair for pair in map(json.loads, stream) if pair["uid"] in PARADIGMS]


def blimp(model: LoadedModel, pairs: list[dict]) -> TaskResult:
    """Return how often the good sentence is the likelier of two, by paradigm."""
    logps = sentence_logps(model, [pair[which] for pair in pairs for which in ("good", "bad")])
    hits = (logps[0::2] > logps[1::2]).astype(np.float64)
    return result_of("BLiMP", "accuracy", hits, chances=np.full(len(hits), 0.5), groups=[p["uid"] for p in pairs])


def sentence_logps(model: LoadedModel, texts: list[str]) -> np.ndarray:
    """Return log p of each sentence behind the token that begins one."""
    ids = [np.array(model.tokenizer(text)["input_ids"], np.int32) for text in texts]
    examples = [Example(tokens, np.append(0.0, np.ones(len(tokens) - 1)).astype(np.float32)) for tokens in ids]
    found: list[torch.Tensor] = []
    with model.evaluating():
        for group in Cut(256, None).apply(examples, padded=not model.packs):
            batch = model.collate(group)
            sums = torch.zeros(len(batch.lengths), dtype=torch.float64)
            found.append(sums.index_add(0, batch.sequence_M.cpu(), model.logps(batch).double().cpu()))
    return torch.cat(found).numpy()


def train(values: dict[str, object]) -> dict[str, object]:
    """Train a recipe and return its report."""
    found = examine(Draft.of_mapping(values))
    return read_json(start(found, Screen(Console(quiet=True), quiet=True)).report)


def measure(case: str, report: dict, run: Path, pairs: list[dict], base: TaskResult) -> dict[str, object]:
    """Return what a run gained and lost."""
    after = blimp(open_target(str(run))[0], pairs)
    change = paired(base, after)
    measures = {
        name: [report["eval"][when][key]["value"] for when in ("before", "after")]
        for name, key in (("reviews", "held-out loss"), ("stories", "stories"))
    }
    watched = report["forgetting"]
    return {
        "case": case,
        "loss": measures,
        "stories_worse_by": watched["sets"][0]["worse_by"],
        "blimp": {"before": base.score, "after": after.score, "change": change.as_dict(), "n": after.n},
        "blimp_by_paradigm": {name: [base.groups[name].score, part.score] for name, part in after.groups.items()},
        "steps": report["steps"],
        "result": report["final_checkpoint"],
        "first_forgot": watched["first_forgot"],
        "train_cpu_seconds": report["train_cpu_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    started, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        files = prepare(args.shared, folder)
        pairs = grammar(args.shared)
        base = blimp(open_target(str(args.shared / "models/stories260K"))[0], pairs)
        for seed in args.seeds:
            for name in args.cases:
                run = folder / f"{re.sub(r'[^a-z]+', '-', name)}-{seed}"
                report = train(recipe(name, files, args.shared, seed, run))
                found = {"seed": seed, **measure(name, report, RunDir(run).path, pairs, base)}
                results.append(found)
                shown = {k: v for k, v in found.items() if k != "blimp_by_paradigm"}
                print(json.dumps(shown), flush=True)
    today = datetime.date.today().isoformat()
    out = args.out or HERE / "results" / f"forgetting_cpu-{today}.json"
    whole = {"claim": (__doc__ or "").split("\n\n")[0], "date": today, "seconds": time.monotonic() - started}
    whole |= {"max_drop": MAX_DROP, "steps": STEPS, "environment": collect_environment(), "results": results}
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
