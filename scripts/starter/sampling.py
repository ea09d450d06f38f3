"""Sample many stories from a small Llama at once, on the CPU: the bulk of the starter's English corpus.

`generate` of transformers keeps every row until the longest one ends and costs more in Python than in arithmetic for a
model of 0.26 M parameters, so this file holds its own forward pass: one batch, a cache that grows by one position
a step, and rows that leave the batch as soon as their story ends.

Shape legend: B rows, T positions, K key/value heads, G query heads per key/value head, D head width, H hidden width.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

SHRINK_BELOW = 0.85  # compacting copies the whole cache, so it waits until this share of the rows is left


@dataclass(frozen=True)
class SmallLlama:
    """Weights and sizes of a Llama whose embeddings are tied; no gradient, float32."""

    weights: dict[str, torch.Tensor]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float

    @classmethod
    def load(cls, folder: Path) -> "SmallLlama":
        """Read a transformers folder (config.json, model.safetensors)."""
        config = json.loads((folder / "config.json").read_text())
        weights = {
            name.removeprefix("model."): tensor.float()
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        for layer in range(config["num_hidden_layers"]):
            prefix = f"layers.{layer}."
            attention = [weights.pop(f"{prefix}self_attn.{name}_proj.weight") for name in "qkv"]
            weights[prefix + "qkv"] = torch.cat(attention)
            weights[prefix + "gate_up"] = torch.cat(
                [weights.pop(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up")]
            )
        return cls(
            weights=weights,
            n_layers=config["num_hidden_layers"],
            n_heads=config["num_attention_heads"],
            n_kv_heads=config["num_key_value_heads"],
            head_dim=config["hidden_size"] // config["num_attention_heads"],
            eps=config["rms_norm_eps"],
            rope_theta=config["rope_theta"],
        )


class Cache:
    """Keys (layer, B, K, D, T), which lie transposed for their product, and values (layer, B, K, T, D)."""

    def __init__(self, model: SmallLlama, rows: int, length: int) -> None:
        shape = (model.n_layers, rows, model.n_kv_heads)
        self.keys, self.values = (
            torch.zeros(*shape, model.head_dim, length),
            torch.zeros(*shape, length, model.head_dim),
        )

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


def rope_table(model: SmallLlama, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (T, D), of the half-split rotary embedding that transformers uses for Llama."""
    inverse = model.rope_theta ** (-torch.arange(0, model.head_dim, 2).float() / model.head_dim)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn heads (..., D) by the angles of one position."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-right, left], dim=-1) * sin


def step(
    model: SmallLlama, tokens_B: torch.Tensor, position: int, cache: Cache, rope: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Feed one token per row at `position`, extend the cache, return the logits (B, vocabulary)."""
    weights, rows = model.weights, tokens_B.shape[0]
    cos, sin = rope[0][position], rope[1][position]
    kv, group, width = model.n_kv_heads, model.n_heads // model.n_kv_heads, model.head_dim

    def norm(hidden_BH: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden_BH, hidden_BH.shape[-1:], weights[name], model.eps)

    hidden_BH = weights["embed_tokens.weight"][tokens_B]
    for layer in range(model.n_layers):
        prefix = f"layers.{layer}."
        heads = (norm(hidden_BH, prefix + "input_layernorm.weight") @ weights[prefix + "qkv"].T).view(rows, -1, width)
        turned = rotate(heads[:, : model.n_heads + kv], cos, sin)
        cache.keys[layer, :, :, :, position] = turned[:, model.n_heads :]
        cache.values[layer, :, :, position] = heads[:, model.n_heads + kv :]
        # Query head h reads key/value head h // group.
        queries = turned[:, : model.n_heads].reshape(rows, kv, group, width)
        keys, values = cache.keys[layer, :, :, :, : position + 1], cache.values[layer, :, :, : position + 1]
        scores = (queries @ keys) * width**-0.5
        mixed = (scores.softmax(-1) @ values).reshape(rows, -1)
        hidden_BH = hidden_BH + mixed @ weights[prefix + "self_attn.o_proj.weight"].T
        gate, up = (norm(hidden_BH, prefix + "post_attention_layernorm.weight") @ weights[prefix + "gate_up"].T).chunk(
            2, dim=-1
        )
        hidden_BH = hidden_BH + (torch.nn.functional.silu(gate) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    return norm(hidden_BH, "norm.weight") @ weights["embed_tokens.weight"].T


def draw(
    logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator, candidates: int = 48
) -> torch.Tensor:
    """Sample one token per row by nucleus sampling among the `candidates` likeliest; (B,) int64.

    The bound on candidates replaces a full sort; for a vocabulary of 512 it hardly ever cuts the nucleus.
    """
    top, index = (logits / temperature).topk(min(candidates, logits.shape[-1]), dim=-1)
    probabilities = top.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities > top_p
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    # The Gumbel-max trick, without logarithms.
    choice = (probabilities.masked_fill(outside, 0.0) / noise).argmax(-1, keepdim=True)
    return index.gather(-1, choice).squeeze(-1)


@torch.inference_mode()
def sample_batch(
    model: SmallLlama,
    prompts: list[list[int]],
    ends: set[int],
    length: int,
    settings: tuple[float, float],
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Yield the finished rows: prompt and continuation, without the end token; rows longer than `length` are dropped.

    Prompts may differ in length: while a row's prompt lasts, its next token is given, not drawn. `settings` is
    (temperature, top_p).
    """
    given = torch.full((len(prompts), max(map(len, prompts))), -1)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt)] = torch.tensor(prompt)
    tokens = torch.zeros(len(prompts), length, dtype=torch.long)
    tokens[:, 0] = given[:, 0]
    is_end = torch.zeros(model.weights["embed_tokens.weight"].shape[0], dtype=torch.bool)
    is_end[list(ends)] = True
    is_running = torch.ones(len(prompts), dtype=torch.bool)
    cache, rope = Cache(model, len(prompts), length), rope_table(model, length)
    for position in range(length - 1):
        drawn = draw(step(model, tokens[:, position], position, cache, rope), *settings, generator)
        if position + 1 < given.shape[1]:
            drawn = torch.where(given[:, position + 1] >= 0, given[:, position + 1], drawn)
        tokens[:, position + 1] = drawn
        ended = is_end[drawn] & is_running
        for row in ended.nonzero().flatten().tolist():
            yield tokens[row, : position + 1].tolist()
        is_running &= ~ended
        running = int(is_running.sum())
        if running < SHRINK_BELOW * len(is_running):
            if running == 0:
                return
            rows = is_running.nonzero().flatten()
            cache.keep(rows)
            tokens, given, is_running = tokens[rows], given[rows], is_running[rows]
