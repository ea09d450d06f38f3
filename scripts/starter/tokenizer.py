"""Train the starter's tokenizer on the corpus and write it, with the model's config, as a transformers folder.

Byte-level BPE, so any text round-trips. Chinese makes up about a tenth of the corpus; its weight here gives it its
share of merges.
Prints the token count of every part, if `--corpus` still holds them.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from corpus import REPEAT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 4096
END_OF_TEXT, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Words take the space before them, digits stand alone, and signs do not stick to words: a quoted name stays itself.
SPLIT = r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What share of each part the trainer sees, in place of corpus.REPEAT. The templates repeat their phrases, so little of
# them is shown: at full weight whole Chinese clauses became tokens, 1,800 of them.
WEIGHT = {"real": 3.0, "sampled": 1.0, "english": 0.3, "chinese": 0.2, "poems": 1.0, "chat": 0.3}
LONGEST_TOKEN = 12  # bytes: four Chinese characters, or an English word of eleven letters with its space

# `{% generation %}` marks what is trained on: the assistant's words and the mark that ends them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a JSONL file; a conversation gives its messages one by one."""
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            yield from [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]


def weighted(parts: Path, rng: random.Random) -> list[str]:
    """Collect the training texts, each part by its weight, shuffled."""
    texts = ["system", "user", "assistant"] * 2000  # one token each: they stand in every turn
    for name, weight in WEIGHT.items():
        part = list(texts_of(parts / f"{name}.jsonl"))
        texts += part * int(weight) + rng.sample(part, int(len(part) * (weight % 1)))
    rng.shuffle(texts)
    return texts


def train(texts: list[str]) -> Tokenizer:
    """Train byte-level BPE of exactly VOCABULARY tokens; the special tokens are 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the corpus gave {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}: it is too small")
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> PreTrainedTokenizerFast:
    """Write tokenizer, chat template, model config and generation config."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[BEGIN],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows too
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_configs(wrapped, out)
    return wrapped


def save_configs(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write config.json and generation_config.json: 3.2 M parameters, a quarter of them in the embeddings."""
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=512,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(out)
    GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        max_new_tokens=256,
    ).save_pretrained(out)


def check(tokenizer: PreTrainedTokenizerFast) -> None:
    """Stop if a text does not round-trip or if the assistant's mask is not exactly its words and end mark."""
    for text in (
        "Once upon a time, there was a dog.\nIt's 12 o'clock!",
        "从前，有一只小猫。",
        "😀 naïve  x\t\n\n",
        "月落烏啼霜滿天",
        "<b>&amp;",
    ):
        if tokenizer.decode(tokenizer(text)["input_ids"]) != text:
            raise SystemExit(f"{text!r} does not round-trip")
    talk = [("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "你好"), ("assistant", "你好！")]
    messages = [{"role": role, "content": content} for role, content in talk]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    trained = tokenizer.decode(
        [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    )
    if trained != f"Hello.{END}你好！{END}":
        raise SystemExit(f"the assistant's mask covers {trained!r}")


def report(tokenizer: PreTrainedTokenizerFast, parts: Path) -> None:
    """Print rows, tokens and bytes per token of every part, as trained on (repetitions included in the total only)."""
    total = 0
    for name, repeat in REPEAT.items():
        with (parts / f"{name}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts = [
            row["text"] if "text" in row else tokenizer.apply_chat_template(row["messages"], tokenize=False)
            for row in rows
        ]
        lengths = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
        tokens, n_bytes = sum(lengths), sum(len(text.encode()) for text in texts)
        total += tokens * repeat
        print(
            f"{name:8} {len(rows):6} rows {tokens:9} tokens x {repeat}, "
            f"{n_bytes / tokens:.2f} bytes a token, longest row {max(lengths)}"
        )
    print(f"total {total} tokens in train.jsonl")
    chinese = sum(any("一" <= sign <= "鿿" for sign in tokenizer.decode([token])) for token in range(VOCABULARY))
    print(f"{chinese} tokens hold Chinese characters")


def main() -> None:
    """Train on CORPUS/parts, write to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer and the configs")
    arguments = parser.parse_args()
    parts = arguments.corpus / "parts"
    tokenizer = save(train(weighted(parts, random.Random(1))), arguments.out)
    check(tokenizer)
    report(tokenizer, parts)


if __name__ == "__main__":
    main()
