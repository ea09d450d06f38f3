"""The cases of the DPO benchmark: real pairs of answers, and the 8 M model of the SFT benchmark.

A case is a folder that every contender opens: `model/` (config, weights, tokenizer), `rows.jsonl` (prompt, chosen and
rejected as messages, in training order) and `tokens.json` (the same rows as token ids). Run as a script, it writes one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sft_cases import CASES, MAX_LENGTH, SEED, SHARED, make_tokenizer, write_model

Pair = dict[Literal["prompt", "chosen", "rejected"], list[dict[str, str]]]
BATCH_PAIRS = 4
MODEL = CASES["lora-8m"]
BETA = 0.1
DPO_CASES = ("demo", "hh")
"""demo: short questions with long answers (LLaMA-Factory's demonstration set); hh: long dialogues with short answers
(Anthropic's harmlessness test set)."""
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def read_demo(shared: Path) -> Iterator[Pair]:
    """Read LLaMA-Factory's pairs."""
    for row in json.loads((shared / "data" / "llamafactory" / "dpo_en_demo.json").read_text(encoding="utf-8")):
        turns = [*row["conversations"], row["chosen"], row["rejected"]]
        messages = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
        yield {"prompt": messages[:-2], "chosen": [messages[-2]], "rejected": [messages[-1]]}


def read_transcripts(shared: Path) -> Iterator[Pair]:
    """Read Anthropic's pairs, whose dialogues differ in the last answer."""
    with gzip.open(shared / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
            if chosen[:-1] == rejected[:-1] and chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
                yield {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _turns(text: str) -> list[dict[str, str]]:
    turns = []
    for part in text.split("\n\nHuman:")[1:]:
        question, *answers = part.split("\n\nAssistant:")
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return turns


def write_case(name: str, shared: Path, folder: Path) -> None:
    """Draw the rows, and write them with model and tokenizer under `folder`."""
    tokenizer = make_tokenizer(shared)
    pairs = list({"demo": read_demo, "hh": read_transcripts}[name](shared))
    random.Random(SEED).shuffle(pairs)
    rows, tokens = [], []
    for pair in pairs:
        prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
        whole = [
            tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_dict=False)
            for side in ("chosen", "rejected")
        ]
        answers = [ids[len(prompt) :] for ids in whole]
        empty = not all(turn[0]["content"].strip() for turn in (pair["chosen"], pair["rejected"]))
        if empty or max(map(len, whole)) > MAX_LENGTH or answers[0] == answers[1]:
            continue
        assert all(ids[: len(prompt)] == prompt for ids in whole)
        rows.append(pair)
        tokens.append({"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    write_model(MODEL, tokenizer, folder / "model")


def main() -> None:
    """Write one case folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=DPO_CASES)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    write_case(options.case, options.shared, options.folder)


if __name__ == "__main__":
    main()
