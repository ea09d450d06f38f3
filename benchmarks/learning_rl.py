"""Claim: grpo, rloo and ppo raise the obedience of zh-poem-750K to an asked verse form (七律: eight lines of seven
characters) above 0.8 on topics that were not trained on, with bounded KL, for each of three seeds.

    python benchmarks/learning_rl.py [--objectives grpo rloo ppo] [--seeds 0 1 2] [--shared FOLDER]

The reward is 1 for an answer that obeys and 0 for any other. Each run is `luthier train` on a recipe; obedience is then
measured on 16 held-out topics with 32 answers each at temperature 0.8, under the model before and after, with the same
draws. `--shared` names the folder that holds models/zh-poem-750K.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LUTHIER_SHARED", HERE.parent.parent / "shared"))
FORM = "七律"
LINES, CHARACTERS = 8, 7
# fmt: off
TRAINED = [
    "明月", "春风", "秋雨", "山水", "故乡", "离别", "梅花", "江南", "边塞", "美酒", "友人", "落日",
    "寒夜", "飞雪", "桃花", "归雁", "古寺", "渔舟", "长安", "思君", "荷花", "松竹", "夜泊", "登高",
    "暮春", "早梅", "残雪", "晚霞", "牧童", "采莲", "闺怨", "从军", "怀古", "山居", "田园", "听琴",
    "观潮", "对酒", "中秋", "重阳", "清明", "元日", "寒食", "柳絮", "流水", "青山", "杜鹃", "芳草",
]
HELD_OUT = [
    "送别", "孤舟", "清晨", "白云", "黄河", "洞庭", "西湖", "琴声", "落花", "春江", "秋夜", "远行",
    "故人", "竹林", "古道", "客舍",
]
# fmt: on
ANSWERS, TEMPERATURE, NEW_TOKENS = 32, 0.8, 96
OBJECTIVES: dict[str, dict[str, object]] = {
    "grpo": {
        "objective": {"num_generations": 8, "beta": 0.02},
        "batch_size": 8,
        "max_steps": 40,
        "learning_rate": 3e-4,
    },
    "rloo": {
        "objective": {"num_generations": 8, "beta": 0.005},
        "batch_size": 8,
        "max_steps": 40,
        "learning_rate": 3e-4,
    },
    "ppo": {
        "objective": {"iterations": 2, "minibatches": 2, "beta": 0.01, "gae_lambda": 1.0},
        "batch_size": 48,
        "max_steps": 160,
        "learning_rate": 1e-4,
    },
}


def obeys(text: str) -> bool:
    """Say whether a poem has the form that was asked for."""
    lines = [line for line in re.split(r"[，。？！；、\s]+", text.strip()) if line]
    return len(lines) == LINES and all(len(line) == CHARACTERS for line in lines)


def score(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """The reward, as a recipe names it: learning_rl.py:score."""
    return [float(obeys(answer)) for answer in answers]


def write_rows(file: Path, topics: list[str]) -> Path:
    """Write prompts for topics, in the words that the model was trained with."""
    rows = ({"prompt": f"主题：{topic} 体裁：{FORM}\n"} for topic in topics)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def obedience(target: str) -> tuple[float, list[str]]:
    """Return the share of answers to held-out topics that obey, and the first answer to each topic."""
    from luthier.data.prompts import render_prompt
    from luthier.data.records import PromptAnswer
    from luthier.run.opened import open_target
    from luthier.train.generate import Sampling, sample, stop_tokens

    model, _ = open_target(target)
    records = [PromptAnswer(f"主题：{t} 体裁：{FORM}\n", "", "", "", (), False, t) for t in HELD_OUT]
    prompts = [render_prompt(model.tokenizer, record) for record in records]
    found = sample(model, prompts, ANSWERS, Sampling(NEW_TOKENS, TEMPERATURE, seed=1234), counts=False)
    stops = set(stop_tokens(model))
    texts = [
        [model.tokenizer.decode([t for t in a.tokens.tolist() if t not in stops], skip_special_tokens=True) for a in g]
        for g in found
    ]
    return sum(obeys(text) for group in texts for text in group) / (ANSWERS * len(texts)), [g[0] for g in texts]


def run(objective: str, seed: int, model: Path, home: Path) -> dict[str, object]:
    """Train once with a recipe and measure."""
    import yaml

    settings = OBJECTIVES[objective]
    assert isinstance(settings["objective"], dict)
    recipe = {
        "model": str(model),
        "data": str(write_rows(home / "train.jsonl", TRAINED)),
        "method": "full",
        **settings,
        "objective": {
            "kind": objective,
            "reward": f"{Path(__file__).resolve()}:score",
            "max_new_tokens": NEW_TOKENS,
            "temperature": TEMPERATURE,
            "max_kl": 1.0,
            **settings["objective"],
        },
        "schedule": "constant",
        "save_steps": 10000,
        "samples": 0,
        "seed": seed,
        "run": str(home / f"{objective}-{seed}"),
    }
    file = home / f"{objective}-{seed}.yaml"
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    started = time.perf_counter()
    command = [sys.executable, "-m", "luthier", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{objective} with seed {seed} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = time.perf_counter() - started
    [metrics] = Path(recipe["run"]).glob("*/metrics.jsonl")  # type: ignore[arg-type]
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    share, poems = obedience(str(recipe["run"]))
    shown = ("step", "reward", "kl", "entropy", "response_length", "clip_fraction", "explained_variance")
    return {
        "objective": objective,
        "seed": seed,
        "held_out_after": share,
        "kl_last": rows[-1]["kl"],
        "kl_most": max(row["kl"] for row in rows),
        "entropy_first": rows[0]["entropy"],
        "entropy_last": rows[-1]["entropy"],
        "seconds": seconds,
        "train_cpu_seconds": sum(row["step_seconds"] for row in rows),
        "poems": poems[:4],
        "curve": [{n: round(row[n], 4) for n in shown if n in row} for row in rows],
    }


def main() -> None:
    """Train, measure, print, and write benchmarks/results/learning_rl-<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--name", default=f"learning_rl-{datetime.date.today().isoformat()}")
    options = parser.parse_args()
    model = options.shared / "models" / "zh-poem-750K"
    before, poems = obedience(str(model))
    print(f"before: {before:.3f} of {ANSWERS * len(HELD_OUT)} answers obey")
    found = []
    with tempfile.TemporaryDirectory() as home:
        for objective in options.objectives:
            for seed in options.seeds:
                result = run(objective, seed, model, Path(home))
                found.append(result)
                print(
                    f"{objective:5} seed {seed}: {before:.3f} → {result['held_out_after']:.3f}  "
                    f"KL {result['kl_last']:.3f} per token  {result['seconds']:.0f} s",
                    flush=True,
                )
    sys.path.insert(0, str(HERE))
    from sft_cpu import hardware

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    kept = {
        "claim": __doc__.split("\n\n")[0],
        "commit": commit,
        "hardware": hardware(),
        "settings": OBJECTIVES,
        "held_out_before": before,
        "poems_before": poems[:4],
        "runs": found,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
