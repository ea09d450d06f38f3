"""Claim: on a CPU, training with qlora peaks at no more than 0.45 of the resident memory of lora in float32.

Both run as a user runs them, `luthier train` in a process of its own, on the same random model of Llama's shape, the
same rows and the same steps. A third run, lora on a model of next to nothing, shows what the process itself takes:
Python, PyTorch, transformers, PEFT. Usage: python benchmarks/qlora_cpu.py [hidden intermediate layers]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

LIMIT = 0.45
RESULTS = Path(__file__).parent / "results"
STARTER = Path(__file__).parents[1] / "src/luthier/starter"
WORD = "Once upon a time there was a little dog who liked to play in the park with a red ball and a friend. "


def write_model(folder: Path, hidden: int, intermediate: int, layers: int) -> tuple[int, int]:
    """Write a random model with the starter's tokenizer; return its parameters, and those in linear layers."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    linear = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    return sum(p.numel() for p in model.parameters()), linear


def make(folder: Path, hidden: int, intermediate: int, layers: int) -> tuple[int, int]:
    """Call `write_model` in a child, so that this process's own peak, which its children start from, stays small."""
    place = f"pathlib.Path({str(folder)!r})"
    code = f"import qlora_cpu as q, pathlib; print(*q.write_model({place}, {hidden}, {intermediate}, {layers}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    parameters, linear = done.stdout.split()[-2:]
    return int(parameters), int(linear)


def train(home: Path, model: Path, kind: str, steps: int, name: str = "") -> dict[str, object]:
    """Train in a process of its own; return its peak memory, its seconds and its losses."""
    name = name or kind
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": WORD * 3}) + "\n" for _ in range(8)), encoding="utf-8")
    recipe = {
        "model": str(model),
        "method": {"kind": kind, "rank": 8},
        "objective": "lm",
        "data": str(rows),
        "max_length": 64,
        "batch_size": 2,
        "micro_batch_size": 1,
        "max_steps": steps,
        "samples": 0,
        "run": str(home / name),
    }
    file = home / f"{name}.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    started = time.monotonic()
    command = [sys.executable, "-m", "luthier", "train", str(file)]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = done.stdout.read(), done.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(done.pid, 0)
    if status:
        raise SystemExit(f"{name} failed:\n{out[-2000:]}\n{err[-2000:]}")
    metrics = next((home / name).rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    return {
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "seconds": round(time.monotonic() - started, 1),
        "losses": [json.loads(line)["loss"] for line in metrics],
    }


def main() -> None:
    hidden, intermediate, layers = (int(a) for a in sys.argv[1:4]) if len(sys.argv) > 3 else (1536, 6144, 12)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        parameters, linear = make(home / "m", hidden, intermediate, layers)
        make(home / "tiny", 64, 64, 1)
        runs = {kind: train(home, home / "m", kind, steps=2) for kind in ("lora", "qlora")}
        runs["process"] = train(home, home / "tiny", "lora", steps=2, name="process")
    peaks: dict[str, int] = {name: run["peak_bytes"] for name, run in runs.items()}  # type: ignore[misc]
    ratio = peaks["qlora"] / peaks["lora"]
    above = (peaks["qlora"] - peaks["process"]) / (peaks["lora"] - peaks["process"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "claim": f"peak resident memory of qlora is at most {LIMIT} of lora's in float32",
        "holds": ratio <= LIMIT,
        "ratio": round(ratio, 4),
        "ratio_above_the_process_itself": round(above, 4),
        "peaks_mib": {name: round(peak / 2**20) for name, peak in peaks.items()},
        "parameters": parameters,
        "parameters_in_linear_layers": linear,
        "shape": {"hidden": hidden, "intermediate": intermediate, "layers": layers},
        "runs": runs,
        "commit": commit,
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {p: version(p) for p in ("torch", "transformers", "peft", "bitsandbytes")},
    }
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"qlora_cpu-{linear // 10**6}M-{time.strftime('%Y-%m-%d')}.json"
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
