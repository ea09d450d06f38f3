"""Endings behind one beginning: computed once and packed, they are what they are as rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from families import FAMILIES, NAMES, WINDOW
from luthier.core.batch import Example, collate
from luthier.methods.base import Method
from luthier.methods.lora import Lora
from luthier.methods.prefix import Prefix
from luthier.methods.prompt import Prompt
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.models.pooling import pool

PACKING = [name for name in NAMES if FAMILIES[name].packs]
METHODS = [Lora(rank=2), Prompt(tokens=3), Prefix(tokens=3)]
CASES = [(f, None) for f in PACKING] + [(f, m) for f in ("llama", "qwen3", "mistral") for m in METHODS]
DRAW = np.random.default_rng(5)


def branched(prompt: int, endings: tuple[int, ...], vocabulary: int) -> Example:
    tokens = DRAW.integers(0, vocabulary, prompt + sum(endings)).astype(np.int32)
    weights = np.concatenate([np.zeros(prompt), DRAW.choice([0.0, 0.5, 1.0], sum(endings))]).astype(np.float32)
    weights[prompt] = 1.0
    extras = {"reference": np.arange(len(endings), dtype=np.float32), "margin": 2.0}
    here = np.arange(np.count_nonzero(weights[1:]), dtype=np.float32)
    return Example(tokens, weights, f"f:{prompt}", extras, endings, {"old": here})


def some(vocabulary: int = 50) -> list[Example]:
    plain = Example(DRAW.integers(0, vocabulary, 7).astype(np.int32), np.ones(7, np.float32), "f:0")
    plain = Example(plain.tokens, plain.weights, "f:0", {"reference": 9.0, "margin": 1.0}, (), {"old": np.ones(6)})
    shapes = [(5, (3, 6)), (1, (4, 1)), (2 * WINDOW, (9, WINDOW + 3)), (6, (2, 3, 4, 1))]
    return [plain, *(branched(p, e, vocabulary) for p, e in shapes)]


def test_paths_hold_the_beginning_and_one_ending_each() -> None:
    example = branched(4, (2, 3), 50)
    first, second = example.paths()
    assert first.tokens.tolist() == example.tokens[:6].tolist()
    assert second.tokens.tolist() == [*example.tokens[:4], *example.tokens[6:]]
    assert [first.extras["reference"], second.extras["reference"]] == [0.0, 1.0]
    assert first.count + second.count == example.count
    assert np.concatenate([first.token_extras["old"], second.token_extras["old"]]).tolist() == list(
        example.token_extras["old"]
    )


def test_packed_and_padded_have_the_same_targets_lengths_and_extras_in_the_same_order() -> None:
    rows = some()
    packed, padded = collate(rows), collate(rows, packed=False)
    for name in ("targets_M", "weights_M", "sequence_M"):
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name
    assert packed.lengths == padded.lengths
    assert packed.sources == padded.sources
    assert all(torch.equal(packed.extras[n], padded.extras[n]) for n in ("reference", "margin"))
    assert torch.equal(packed.token_extras["old"], padded.token_extras["old"])
    assert torch.equal(packed.tokens.reshape(-1)[packed.ends_S], padded.tokens.reshape(-1)[padded.ends_S])
    assert packed.real_tokens == sum(map(len, rows)) < padded.real_tokens


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "cls", "concat"])
def test_pooling_sees_each_ending_with_its_beginning(pooling: str) -> None:
    rows = some()
    packed, padded = collate(rows), collate(rows, packed=False)
    states_VH = torch.randn(50, 8)
    ours, theirs = (pool(states_VH[b.tokens.reshape(-1)], b, pooling) for b in (packed, padded))  # type: ignore[arg-type]
    assert torch.allclose(ours, theirs, atol=1e-6)


def _gradients(model: CausalModel, rows: list[Example], packed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model.module.zero_grad()
    batch = collate(rows, packed=packed)
    logps_M = model.logps(batch)
    (logps_M * batch.weights_M).sum().backward()
    return logps_M.detach(), {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "method"), CASES, ids=lambda case: getattr(case, "kind", case) or "none")
def test_one_shared_beginning_gives_the_log_probs_and_gradients_of_separate_rows(
    family: str, method: Method | None, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    if method is not None:
        torch.manual_seed(0)
        method.prepare(model.module)
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    rows = some(model.vocabulary_rows)
    together, ours = _gradients(model, rows, packed=True)
    apart, theirs = _gradients(model, rows, packed=False)
    assert torch.allclose(together, apart, atol=2e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert (ours[name] - gradient).abs().max() <= 1e-5 * scale, name
