"""Train the starter model from scratch on the corpus, with Luthier's engine and `objective: lm`.

    python scripts/starter/pretrain.py --corpus OUT/train.jsonl --work OUT/pretrain --out src/luthier/starter

Can be stopped and started again: it goes on from the newest checkpoint in --work. About an hour and a half on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from luthier.core.batch import Example
from luthier.core.rundir import StageDir
from luthier.data.stream import Stream
from luthier.methods.full import Full
from luthier.models.load import load_model
from luthier.objectives.lm import Lm
from luthier.optim.adamw import AdamW
from luthier.optim.schedules import Cosine
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine, Settings

STARTER = Path(__file__).parents[2] / "src" / "luthier" / "starter"
SAVE_EVERY = 250


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    model = load_model(str(STARTER), from_scratch=True, seed=options.seed)
    method = Full()
    method.prepare(model.module)
    examples = tokenise(options.corpus, model.tokenizer)
    print(f"{len(examples):,} documents, {sum(map(len, examples)):,} tokens", flush=True)
    stream = Stream(len(examples), options.batch_size, options.seed)
    settings = Settings(
        total_steps=stream.total_steps(options.epochs, options.max_steps),
        learning_rate=options.learning_rate,
        warmup_steps=100,
        weight_decay=0.1,
        seed=options.seed,
    )
    engine = Engine(model, method, Lm(), AdamW(beta2=0.95), Cosine(min_ratio=0.02), settings)
    stage = StageDir(options.work)
    if stage.complete_checkpoints():
        load_checkpoint(engine, stage.complete_checkpoints()[-1])
    train(engine, stream, examples, stage)
    # The shipped file stops at both end tokens; a model from scratch knows only one.
    model.module.generation_config = GenerationConfig.from_pretrained(STARTER)
    model.module.to(torch.bfloat16).save_pretrained(options.out)


def train(engine: Engine, stream: Stream, examples: list[Example], stage: StageDir) -> None:
    """Run the loop, with a line of figures every 20 steps and a checkpoint every 250."""
    started, tokens, losses = time.monotonic(), 0, []
    while engine.step < engine.settings.total_steps:
        row = engine.train_step([examples[i] for i in stream.rows(engine.step)])
        tokens += int(row["tokens"])
        losses.append(row["loss"])
        if engine.step % 20 == 0:
            speed = tokens / (time.monotonic() - started)
            print(
                f"{engine.step}/{engine.settings.total_steps} loss {np.mean(losses[-20:]):.4f} {speed:,.0f} tokens/s",
                flush=True,
            )
        if engine.step % SAVE_EVERY == 0:
            save_checkpoint(engine, stage, {}, keep=1)


def tokenise(corpus: Path, tokenizer) -> list[Example]:
    """Return one example per row: text with its end token, or a conversation in the template, all trained on."""
    end = tokenizer.pad_token  # <|endoftext|>: the separator of raw text
    texts = []
    for line in corpus.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chat = "messages" in row
        texts.append(tokenizer.apply_chat_template(row["messages"], tokenize=False) if chat else row["text"] + end)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        Example(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=np.float32), f"{corpus.name}:{number}")
        for number, tokens in enumerate(ids, start=1)
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="train.jsonl made by corpus.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=STARTER, help="folder for the finished model")
    parser.add_argument("--epochs", type=float, default=1.3)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--batch-size", type=int, default=32, help="documents per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
