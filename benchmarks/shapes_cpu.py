"""Claim: the same recipe runs unchanged on models of 100 to 150 M parameters of other shapes, and what it takes is
measured.

    python benchmarks/shapes_cpu.py [--steps 4]

Random weights in the shapes of Llama and Qwen3, vocabulary 32,768, the starter's tokenizer and quickstart rows,
LoRA and full. Writes benchmarks/results/shapes_cpu-<date>.json: parameters, peak memory, tokens per second and
per CPU-second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from sft_cpu import HERE, hardware

SHAPES = {
    "llama": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "qwen3": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 14, "num_attention_heads": 12},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_model(shape: str, folder: Path) -> None:
    """Write a model folder without weights: config and tokenizer."""
    architectures = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config = {
        **SHAPES[shape],
        "model_type": shape,
        "architectures": [architectures[shape]],
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32768,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copy(str(files("luthier.starter") / name), folder / name)


def measure(shape: str, method: str, steps: int) -> dict[str, float]:
    """Train a few steps with the program and return the run's own figures."""
    with tempfile.TemporaryDirectory() as home:
        model, run = Path(home) / "model", Path(home) / "run"
        write_model(shape, model)
        recipe = str(HERE.parent / "examples" / "quickstart.yaml")
        overrides = [f"model.path={model}", "model.from_scratch=true", f"method={method}", f"run={run}"]
        smaller = [f"max_steps={steps}", "samples=0", "evaluate=[]", "eval_data.limit=4", "learning_rate=2e-4"]
        command = [sys.executable, "-m", "luthier", "train", recipe, *overrides, *smaller]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()][1:]
    tokens = sum(row["tokens"] for row in rows)
    return {
        "parameters": report["total_parameters"],
        "trainable_parameters": report["trainable_parameters"],
        "peak_mib": report["peak_bytes"] / 2**20,
        "tokens_per_second": tokens / sum(row["step_seconds"] for row in rows),
        "tokens_per_cpu_second": tokens / (report["train_cpu_seconds"] - report["first_step_cpu_seconds"]),
        "loss_first": report["loss_first"],
        "loss_last": report["loss_last"],
    }


def main() -> None:
    """Measure all four and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    results = {}
    for shape in SHAPES:
        for method in ("lora", "full"):
            results[f"{shape} {method}"] = figures = measure(shape, method, options.steps)
            print(f"{shape} {method}", {name: round(value, 3) for name, value in figures.items()}, flush=True)
    out = HERE / "results" / f"shapes_cpu-{datetime.date.today().isoformat()}.json"
    out.parent.mkdir(exist_ok=True)
    kept = {"claim": __doc__.split("\n\n")[0], "hardware": hardware(), "steps": options.steps, "results": results}
    out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
