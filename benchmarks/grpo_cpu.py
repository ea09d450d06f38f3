"""Claim: on a CPU, an iteration of GRPO takes at most 0.6 of the time that TRL 1.16 takes for it.

    python benchmarks/grpo_cpu.py --trl-python PATH [--cases lora-8m full-starter …] [--steps 8] [--rounds 3]

Same weights, prompts, answers to each prompt and new tokens for both; 8 prompts with 8 answers of up to 32 tokens.
Time is user plus system time of the process in one thread, so that other work on the machine does not count; the first
iteration is warm-up. Both run at their defaults: Luthier looks at the KL to the start on a quarter of the prompts, TRL
loads no reference model unless beta is above 0 (case lora-8m-kl, where both look at every answer). --trl-python names
an interpreter that has trl==1.16.0, peft and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
STARTER = HERE.parent / "src" / "luthier" / "starter"
LIMIT = 0.6


@dataclasses.dataclass(frozen=True)
class Case:
    """A model shape, and how it is trained. `hidden` 0 is the starter itself."""

    name: str
    method: str
    hidden: int
    intermediate: int
    layers: int
    beta: float = 0.0
    iterations: int = 1
    prompts: int = 8
    answers: int = 8
    new_tokens: int = 32
    learning_rate: float = 1e-5
    steps: int = 8


CASES = {
    case.name: case
    for case in (
        Case("full-starter", "full", 0, 0, 0),
        Case("lora-8m", "lora", 256, 688, 8),
        Case("lora-8m-kl", "lora", 256, 688, 8, beta=0.04),
        Case("lora-40m", "lora", 512, 1408, 12),
    )
}


def write_case(case: Case, folder: Path) -> None:
    """Write a model, the prompts and the settings."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = None  # prompts are plain text for both
    torch.manual_seed(0)
    if case.hidden:
        config = LlamaConfig(
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            num_hidden_layers=case.layers,
            num_attention_heads=case.hidden // 64,
            num_key_value_heads=case.hidden // 128,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
    else:
        model = LlamaForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = (STARTER / "data" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [_prompt(json.loads(line)) for line in lines[: case.prompts * (case.steps + 1)]]
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    (folder / "case.json").write_text(json.dumps(dataclasses.asdict(case)), encoding="utf-8")


def _prompt(row: dict) -> str:
    turns = row.get("messages") or row.get("conversations")
    return turns[0].get("content") or turns[0].get("value") if turns else str(row.get("prompt", row.get("instruction")))


def run_luthier(folder: Path, out: Path) -> None:
    """Run our iterations in this process."""
    import numpy as np
    import torch

    from luthier.core.component import component_class
    from luthier.data.prompts import render_prompt
    from luthier.data.records import Asked, PromptAnswer
    from luthier.methods.full import Full
    from luthier.methods.lora import Lora
    from luthier.models.load import load_model
    from luthier.optim.adamw import AdamW
    from luthier.optim.schedules import Linear
    from luthier.rewards.base import Scorer
    from luthier.train.engine import Engine, Settings
    from luthier.train.microbatch import auto_cut
    from luthier.train.rl import iterate
    from luthier.train.rollout import Prompt

    class Score(Scorer):
        def __call__(self, prompts: object, answers: Sequence[str], rows: object, asked: object = None) -> list[float]:
            return [len(set(text)) / max(len(text), 1) for text in answers]

    torch.set_num_threads(1)
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    model = load_model(str(folder / "model"), dtype="float32")
    method = Lora(rank=8, alpha=16) if case.method == "lora" else Full()
    method.prepare(model.module)
    values = {
        "kind": "grpo",
        "reward": "exact_match",
        "num_generations": case.answers,
        "max_new_tokens": case.new_tokens,
        "iterations": case.iterations,
        "beta": case.beta,
    }
    settings = Settings(total_steps=case.steps * case.iterations, learning_rate=case.learning_rate, keep_reference=True)
    objective = component_class("objective", "grpo").model_validate(values)
    cut = auto_cut(model.module.config, "cpu")
    engine = Engine(model, method, objective, AdamW(), Linear(), settings, cut=cut)  # type: ignore[arg-type]
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [PromptAnswer(json.loads(t)["prompt"], "", "", "", (), False, str(i)) for i, t in enumerate(lines)]
    prompts = [
        Prompt(np.asarray(render_prompt(model.tokenizer, r), dtype=np.int32), Asked(r, {}, r.source)) for r in records
    ]
    cpu, wall, rows = [], [], []
    for step in range(case.steps):
        start, start_wall = time.process_time(), time.perf_counter()
        rows.append(iterate(engine, Score(), prompts[step * case.prompts : (step + 1) * case.prompts]))
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - start_wall)
    length = statistics.mean(row["response_length"] for row in rows)
    out.write_text(json.dumps({"cpu": cpu[1:], "wall": wall[1:], "response_length": length}), encoding="utf-8")


def measure(case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Run both contenders on a case, alternating, each in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    runs: dict[str, list[dict[str, list[float]]]] = {"trl": [], "luthier": []}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_case(dataclasses.replace(case, steps=options.steps), folder)
        for _ in range(options.rounds):
            for name, found in runs.items():
                out = folder / f"{name}.json"
                ours = [sys.executable, str(HERE / "grpo_cpu.py"), "--run", str(folder), "--out", str(out)]
                theirs = [options.trl_python, str(HERE / "grpo_trl.py"), str(folder), "--out", str(out)]
                command = ours if name == "luthier" else theirs
                done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                if done.returncode:
                    raise SystemExit(f"{name} failed on {case.name}:\n{done.stderr[-3000:]}")
                found.append(json.loads(out.read_text(encoding="utf-8")))
    medians = {n: [statistics.median(run["cpu"]) for run in found] for n, found in runs.items()}
    walls = {n: [statistics.median(run["wall"]) for run in found] for n, found in runs.items()}
    ratios = [ours / theirs for ours, theirs in zip(medians["luthier"], medians["trl"])]
    ratio = statistics.median(ratios)
    ours, theirs = (statistics.median(medians[name]) for name in ("luthier", "trl"))
    spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    said = "ok" if ratio <= LIMIT else "TOO SLOW"
    print(
        f"{case.name:14} luthier {ours:6.2f}  trl {theirs:6.2f} CPU-s per step  {ratio:.2f} {spread}  {said}",
        flush=True,
    )
    return {"cpu_seconds": medians, "wall_seconds": walls, "ratio": ratio, "ratios": ratios, "runs": runs}


def main() -> None:
    """Measure, print, and write benchmarks/results/grpo_cpu-<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default=f"grpo_cpu-{datetime.date.today().isoformat()}")
    parser.add_argument("--run", type=Path, help="run Luthier's iterations on a case's folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        run_luthier(options.run, options.out)
        return
    results = {name: measure(CASES[name], options) for name in options.cases}
    sys.path.insert(0, str(HERE))
    from sft_cpu import hardware

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    kept = {
        "claim": __doc__.split("\n\n")[0],
        "commit": commit,
        "hardware": hardware(),
        "cases": {name: dataclasses.asdict(CASES[name]) for name in options.cases},
        "steps": options.steps,
        "rounds": options.rounds,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps({**kept, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
