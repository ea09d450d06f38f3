"""Claim: with `layers: {last: 2}` on a model of twelve blocks and three epochs, keeping what the frozen blocks give
makes a whole run at least 1.8 times and its steps at least 1.7 times faster, and its losses stay the same.

    python benchmarks/frozen_prefix_cpu.py [--rows 160] [--rounds 2] [--threads 1]

A Llama of random weights (12 blocks, hidden size 768, vocabulary 8192) learns word sequences whose lengths are
log-normal, as those of instruction data are; a fifth of the rows is held out and measured before training, after each
epoch and after training. `luthier train` runs with `cache_frozen: true` and `false`, alternating, each in a process of
its own. "whole" is the process from start to end, "training" the time inside the optimizer steps.

With the forward pass of a block as the unit and r for what stays in every epoch (backward through two blocks: 4, the
head, the optimizer), three epochs become 3·(12 + r) / ((12 + r) + 2·(2 + r)) times faster: 1.71 at r = 4, 1.57 at
r = 6.4, because the first epoch has to run everything. The last feed-forward runs at supervised positions only, which
makes r smaller. Each epoch more, and each measure of held-out rows, gains more.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
VOCABULARY, BLOCKS, EPOCHS, BATCH_SIZE = 8192, 12, 3, 8


def make_model(folder: Path) -> None:
    """Write a random Llama and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=BLOCKS, tie_word_embeddings=False, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)


def make_rows(file: Path, count: int) -> None:
    """Write prompts and completions of about 100 and 60 words in the median, 500 at most."""
    draw = random.Random(0)

    def words(median: float) -> str:
        length = min(max(int(draw.lognormvariate(0, 0.7) * median), 8), 250)
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(length))

    rows = [{"prompt": words(100) + " ", "completion": words(60)} for _ in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_one(home: Path, cached: bool, threads: int) -> dict[str, object]:
    """Train once in a process of its own and return its times and losses."""
    run = home / f"run-{time.monotonic_ns()}"
    recipe = {
        "model": str(home / "model"),
        "method": {"kind": "layers", "last": 2},
        "data": str(home / "rows.jsonl"),
        "run": str(run),
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "eval_fraction": 0.2,
        "samples": 0,
        "cache_frozen": cached,
    }
    (home / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "luthier", "train", str(home / "recipe.json"), "--json"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    lines = (run / "00-sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "whole_seconds": seconds,
        "whole_cpu_seconds": cpu_seconds,
        "training_seconds": report["train_seconds"],
        "training_cpu_seconds": report["train_cpu_seconds"],
        "tokens": report["tokens_total"],
        "losses": [json.loads(line)["loss"] for line in lines],
        "said": [line.strip() for line in done.stderr.splitlines() if "frozen part" in line],
    }


def compared(runs: dict[bool, list[dict[str, object]]]) -> dict[str, object]:
    """Return how much faster the run with kept states was in each round, and how far its losses were off."""
    pairs = list(zip(runs[False], runs[True]))
    keys = [f"{part}_{kind}" for part in ("whole", "training") for kind in ("seconds", "cpu_seconds")]
    ratios = {key: [float(str(a[key])) / float(str(b[key])) for a, b in pairs] for key in keys}
    losses = [(one, other) for a, b in pairs for one, other in zip(a["losses"], b["losses"])]  # type: ignore[call-overload]
    return {
        "speed": {k: {"median": statistics.median(v), "range": [min(v), max(v)]} for k, v in ratios.items()},
        "largest_loss_difference": max(abs(one - other) for one, other in losses),
    }


def write(runs: dict[bool, list[dict[str, object]]], options: argparse.Namespace) -> None:
    """Write what is measured so far."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    kept = {
        "claim": " ".join(str(__doc__).split("\n\n")[0].split()),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip(),
        "hardware": {
            "processor": next((line.split(":")[1].strip() for line in described if "model name" in line), ""),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "system": platform.platform(),
            "versions": {name: importlib.metadata.version(name) for name in ("luthier", "torch", "transformers")},
        },
        "rows": options.rows,
        "rounds": len(runs[True]),
        **compared(runs),
        "runs": {f"cache_frozen: {str(cached).lower()}": found for cached, found in runs.items()},
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, and write benchmarks/results/frozen_prefix_cpu-<date>.json after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default=f"frozen_prefix_cpu-{datetime.date.today().isoformat()}")
    options = parser.parse_args()
    runs: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_model(home / "model")
        make_rows(home / "rows.jsonl", options.rows)
        for _ in range(options.rounds):
            for cached in (False, True):
                found = run_one(home, cached, options.threads)
                runs[cached].append(found)
                shown = (f"{part} {found[f'{part}_cpu_seconds']:.1f}" for part in ("whole", "training"))
                print(f"cache_frozen: {cached!s:5}  CPU-seconds: {', '.join(shown)}", flush=True)
            write(runs, options)
    print(json.dumps(compared(runs), indent=2))


if __name__ == "__main__":
    main()
