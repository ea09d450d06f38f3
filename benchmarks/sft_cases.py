"""The four cases of the SFT benchmark: real instruction rows and random-weight Llama shapes.

A case is a folder that every contender opens: `model/` (config, weights, tokenizer), `rows.jsonl` (chat rows, in
training order) and `tokens.json` (the same rows as token ids). Run as a script, it writes one such folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LUTHIER_SHARED", HERE.parent.parent / "shared"))
ROWS_SOURCE = "alpaca/alpaca_small.json"
TOKENIZER_SOURCES = (ROWS_SOURCE, "llamafactory/alpaca_en_demo.json")
BATCH_SIZE = 8
MAX_LENGTH = 512
SEED = 7
TOKENIZER_VOCABULARY = 8192
# No white space between turns: the end-of-turn token is the last token of a row, so every tool that trains on
# "the assistant's part" trains on the same tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model shape and what is trained of it."""

    name: str
    method: Literal["lora", "full"]
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    learning_rate: float


CASES = {
    case.name: case
    for case in (
        Case("lora-8m", "lora", 256, 688, 8, 4, 2, 8192, 1e-3),
        Case("full-8m", "full", 256, 688, 8, 4, 2, 8192, 3e-4),
        # The proportions of SmolLM-135M with half of its layers.
        Case("lora-80m", "lora", 576, 1536, 15, 9, 3, 49152, 5e-4),
        Case("full-152k", "full", 512, 1408, 4, 8, 2, 151936, 3e-4),
    )
}
LORA_RANK = 8
LORA_ALPHA = 16


def read_conversations(path: Path) -> list[list[dict[str, str]]]:
    """Read an Alpaca file as user/assistant turns, in file order."""
    conversations = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        if not row["output"].strip():
            continue
        question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        conversations.append([{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}])
    return conversations


def _texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for turns in read_conversations(path):
            for turn in turns:
                yield turn["content"]


def make_tokenizer(shared: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer that all cases share."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _texts([shared / "data" / source for source in TOKENIZER_SOURCES]),
        trainers.BpeTrainer(
            vocab_size=TOKENIZER_VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_case(case: Case, rows: int, shared: Path, folder: Path) -> None:
    """Train the tokenizer, draw the rows, initialise the model, and write all three under `folder`."""
    tokenizer = make_tokenizer(shared)
    conversations = read_conversations(shared / "data" / ROWS_SOURCE)
    random.Random(SEED).shuffle(conversations)
    chosen, tokens = [], []
    for turns in conversations:
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        if len(ids) > MAX_LENGTH:
            continue
        chosen.append({"messages": turns})
        tokens.append({"input_ids": ids, "prompt_length": len(prompt)})
        if len(chosen) == rows:
            break

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    write_model(case, tokenizer, folder / "model")


def write_model(case: Case, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Initialise the model, and write it with the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden_size,
        intermediate_size=case.intermediate_size,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write one case folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    write_case(CASES[options.case], options.rows, options.shared, options.folder)


if __name__ == "__main__":
    main()
