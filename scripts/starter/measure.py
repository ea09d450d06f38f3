"""Print bits per byte on held-out stories and a few sampled stories of a model folder.

    python scripts/starter/measure.py MODEL --stories OUT/heldout.jsonl

Bits per byte compare models with different tokenizers. A story counts from its first byte to its last, without the
token that ends it. A model with a bos token predicts the first token from it; the first token of a model without one
has nothing before it and is charged as a draw from the whole vocabulary.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = ["Once upon a time", "One day, a little dog", '"Where is my hat?" asked Tom.', "从前", "小明和小红是好朋友。"]


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what a document begins with: the bos token, or nothing."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


@torch.inference_mode()
def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stories: list[str]
) -> tuple[float, float]:
    """Return (bits per byte, perplexity per token) over all stories; one longer than the context is cut."""
    nats, n_bytes, n_tokens = 0.0, 0, 0
    start, context = beginning(tokenizer), model.config.max_position_embeddings
    for story in stories:
        ids = start + tokenizer(story, add_special_tokens=False)["input_ids"]
        n_bytes, n_tokens = n_bytes + len(story.encode()), n_tokens + len(ids) - len(start)
        for begin in range(0, len(ids), context):
            window = torch.tensor([ids[begin : begin + context]])
            logits = model(window).logits[0, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            if begin or not start:
                nats += math.log(model.config.vocab_size)
    return nats / math.log(2) / n_bytes, math.exp(nats / n_tokens)


def continue_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], max_new_tokens: int
) -> str:
    """Sample a continuation of the token ids, at temperature 0.7 and top-p 0.95."""
    window = torch.tensor([ids])
    mask = torch.ones_like(window)
    out = model.generate(
        window, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.7, top_p=0.95
    )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def main() -> None:
    """Measure, then sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a transformers model")
    parser.add_argument(
        "--stories", type=Path, required=True, help="JSONL with a field text; paragraphs parted by one newline"
    )
    parser.add_argument("--samples", type=int, default=len(PROMPTS), help="how many prompts to continue")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    stories = [json.loads(line)["text"] for line in arguments.stories.read_text(encoding="utf-8").splitlines()]
    bits, perplexity = bits_per_byte(model, tokenizer, stories)
    print(f"{len(stories)} stories: {bits:.3f} bits per byte, perplexity {perplexity:.2f} per token")
    for prompt in PROMPTS[: arguments.samples]:
        ids = beginning(tokenizer) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        print(f"--- {prompt}{continue_text(model, tokenizer, ids, 200)}")
    if tokenizer.chat_template:
        for request in ("Tell me a story about a cat.", "给我讲一个小狗的故事。")[: arguments.samples]:
            talk = [{"role": "user", "content": request}]
            ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
            print(f"--- [{request}] {continue_text(model, tokenizer, ids, 200)}")


if __name__ == "__main__":
    main()
