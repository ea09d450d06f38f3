"""Claim: dpo raises the held-out accuracy of preferences above its start on three real models, a reward model tells the
better answer in at least 0.85 of held-out pairs, for each of three seeds.

    python benchmarks/learning_preferences.py [--cases starter …] [--seeds 0 1 2] [--shared FOLDER] [--out FILE]

The pairs are the models' own answers, put in order by a score that can be checked: the warmth of a story
(examples/warmth.py), or for zh-poem-750K whether eight lines of seven characters came where 七律 was asked. Prompts of
held-out pairs are in no training pair. Each run is `luthier train` on a recipe. DPO's own accuracy compares with the
start, which knows no order by itself: its start is 0.5. So the plain accuracy log p(better) > log p(worse), per token,
is measured too, under the model before and after.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LUTHIER_SHARED", HERE.parent.parent / "shared"))
warmth: Callable[[str], float] = runpy.run_path(str(HERE.parent / "examples/warmth.py"))["warmth"]
# fmt: off
TOPICS = [
    "明月", "春风", "秋雨", "山水", "故乡", "离别", "梅花", "江南", "边塞", "美酒", "友人", "落日",
    "寒夜", "飞雪", "桃花", "归雁", "古寺", "渔舟", "长安", "思君", "荷花", "松竹", "夜泊", "登高",
    "暮春", "早梅", "残雪", "晚霞", "牧童", "采莲", "闺怨", "从军", "怀古", "山居", "田园", "听琴",
    "观潮", "对酒", "中秋", "重阳", "清明", "元日", "寒食", "柳絮", "流水", "青山", "杜鹃", "芳草",
    "送别", "孤舟", "清晨", "白云", "黄河", "洞庭", "西湖", "琴声", "落花", "春江", "秋夜", "远行",
    "故人", "竹林", "古道", "客舍",
]
HEROES = [
    "Lily", "Tim", "Tom", "Sara", "Ben", "Anna", "Max", "Mia",
    "Sam", "Lucy", "Jack", "Emma", "Leo", "Zoe", "Bob", "Amy",
]
# fmt: on
DEEDS = ("was sad", "went to the park", "found a ball", "lost a toy", "met a dog", "wanted to play")


def obeys(text: str) -> float:
    """Return 1 for eight lines of seven characters, else 0."""
    lines = re.findall(r"[^，。！？；、\s]+", text)
    return float(len(lines) == 8 and all(len(line) == 7 for line in lines))


@dataclass(frozen=True)
class Case:
    """A model, what it is asked, how its answers are judged, and how it is trained.

    Attributes:
        gap: by how much the better answer is better at least.
        each: answers drawn to each prompt.
        cuts: answers that have not ended are cut behind their last sentence; others leave them out.
    """

    model: str
    prompts: tuple[str, ...]
    score: Callable[[str], float]
    gap: float
    each: int
    room: int
    training: dict[str, object]
    cuts: bool = False


CASES = {
    "stories260K": Case(
        "stories260K",
        tuple(f"Once upon a time, {who} {deed}." for who in HEROES for deed in DEEDS),
        warmth,
        3.0,
        16,
        120,
        {"method": "full", "learning_rate": 3e-4, "epochs": 3, "batch_size": 16},
        cuts=True,
    ),
    "zh-poem-750K": Case(
        "zh-poem-750K",
        tuple(f"主题：{topic} 体裁：七律\n" for topic in TOPICS),
        obeys,
        1.0,
        32,
        90,
        {"method": "full", "learning_rate": 3e-4, "epochs": 3, "batch_size": 16},
    ),
}
SHIPPED = {"method": "lora", "learning_rate": 2e-3, "epochs": 2, "batch_size": 8}
REWARD = {"method": "lora", "learning_rate": 3e-3, "epochs": 3, "batch_size": 16}


def drawn_pairs(case: Case, shared: Path, seed: int, most: int = 6) -> tuple[list[dict], list[dict]]:
    """Return (training pairs, held-out pairs) of the model's own answers; every fourth prompt is held out."""
    from luthier.models.load import load_model
    from luthier.train.generate import Sampling, sample, stop_tokens

    model = load_model(str(shared / "models" / case.model))
    tokens = [list(model.tokenizer(p, add_special_tokens=True)["input_ids"]) for p in case.prompts]
    ends = [t for t in (model.tokenizer.eos_token_id,) if t is not None]
    tokens = [t[:-1] if t and t[-1] in ends else t for t in tokens]
    drawn = sample(model, tokens, case.each, Sampling(case.room, temperature=0.9, seed=seed), counts=False)
    stops, draw = set(stop_tokens(model)), random.Random(seed)
    parts: tuple[list[dict], list[dict]] = ([], [])
    for index, (prompt, answers) in enumerate(zip(case.prompts, drawn)):
        texts = {}
        for answer in answers:
            new = answer.tokens.tolist()
            if new and new[-1] in stops:
                text = str(model.tokenizer.decode([t for t in new if t not in stops])).strip()
                texts[text] = case.score(text)
            elif case.cuts:
                text = str(model.tokenizer.decode(new)).strip()
                text = text[: text.rfind(".") + 1]
                texts |= {text: case.score(text)} if text else {}
        fitting = [(a, b) for a in texts for b in texts if texts[a] >= texts[b] + case.gap]
        draw.shuffle(fitting)
        rows = [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in fitting[:most]]
        parts[index % 4 == 3].extend(rows)
    return parts


def plain_accuracy(target: str, rows: Sequence[dict], template: str | None) -> float:
    """Return in how many pairs the better answer is the likelier one per token."""
    from luthier.data.records import PromptAnswer
    from luthier.data.render import Renderer
    from luthier.objectives.pairs import answer_logps
    from luthier.run.opened import open_target

    model, _ = open_target(target)
    renderer = Renderer(
        model.tokenizer, objective_kind="sft", max_length=512, on_overlong="truncate", chat_template=template
    )
    records = [PromptAnswer(r["prompt"], r[k], "", "", (), False, "") for r in rows for k in ("chosen", "rejected")]
    store = renderer.render_all(records).store
    with model.evaluating():
        values = [float(answer_logps(model, model.collate([store[i]]), mean=True)) for i in range(len(store))]
    return sum(a > b for a, b in zip(values[::2], values[1::2])) / len(rows)


def train(
    model: str, objective: object, data: tuple[str, str], training: dict[str, object], seed: int, run: Path
) -> dict:
    """Run `luthier train` and return its report."""
    recipe = {"model": model, "objective": objective, "data": data[0], "eval_data": data[1], **training}
    recipe |= {"seed": seed, "samples": 1, "max_length": 512, "on_overlong": "drop", "run": str(run)}
    if model != "starter":
        recipe["max_length"] = 128 if "zh-poem" in model else 256
    path = run.with_suffix(".json")
    path.write_text(json.dumps(recipe), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "train", str(path), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:] + done.stdout[-3000:])
    return json.loads(done.stdout)


def jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def main() -> None:
    """Run the cases and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["starter", *CASES, "reward", *(f"reward-{c}" for c in CASES)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    from luthier.data.spec import resolve_path
    from luthier.run.environment import collect_environment

    results, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        for name in args.cases:
            for seed in args.seeds:
                run = Path(home) / f"{name}-{seed}"
                is_reward = name.startswith("reward")
                own = name.removeprefix("reward-")
                if own in CASES:
                    case = CASES[own]
                    trained, held = drawn_pairs(case, args.shared, seed)
                    files = jsonl(run.with_suffix(".train"), trained), jsonl(run.with_suffix(".held"), held)
                    model, training, objective = (
                        str(args.shared / "models" / case.model),
                        case.training,
                        "reward" if is_reward else "dpo",
                    )
                else:
                    files = "starter:preferences", "starter:preferences_eval"
                    held = [json.loads(line) for line in resolve_path(files[1]).read_text("utf-8").splitlines()]
                    trained = [json.loads(line) for line in resolve_path(files[0]).read_text("utf-8").splitlines()]
                    model, objective = "starter", "reward" if is_reward else "dpo"
                    training = REWARD if is_reward else SHIPPED
                report = train(model, objective, files, training, seed, run)
                scores = {
                    when: {k: v["value"] for k, v in report["eval"][when].items()} for when in ("before", "after")
                }
                found = {"case": name, "seed": seed, "objective": objective, "training": training, **scores}
                found |= {"pairs": len(trained), "held_out_pairs": len(held), "seconds": report["train_seconds"]}
                if objective == "dpo":
                    found["likelier_before"] = plain_accuracy(model, held, None)
                    found["likelier_after"] = plain_accuracy(str(run), held, None)
                results.append(found)
                print(json.dumps(found, ensure_ascii=False), flush=True)
    today = datetime.date.today().isoformat()
    out = args.out or HERE / "results" / f"learning-preferences-{today}.json"
    whole = {"claim": (__doc__ or "").split("\n\n")[0], "date": today, "seconds": time.monotonic() - started}
    out.write_text(
        json.dumps({**whole, "environment": collect_environment(), "results": results}, indent=1, ensure_ascii=False)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
