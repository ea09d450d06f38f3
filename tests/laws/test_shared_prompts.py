"""A prompt that answers share is computed once, with the gradient of whole rows, under methods that lay something among
the tokens, and with checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from families import VOCABULARY
from luthier.core.batch import Example
from luthier.methods.base import Method, trainable
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.methods.p_tuning import PTuning
from luthier.methods.p_tuning_v2 import PTuningV2
from luthier.methods.prefix import Prefix
from luthier.methods.prompt import Prompt
from luthier.models.load import load_model
from luthier.objectives.dpo import Dpo
from luthier.train.engine import Engine
from training import engine

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "mistral", "mixtral", "gemma2")
CASES: list[tuple[Method, bool]] = [
    (Lora(rank=4), False),
    (Lora(rank=4), True),
    (Full(), True),
    (Prompt(tokens=4), False),
    (PTuning(tokens=3, encoder="lstm", encoder_size=8), False),
    (Prefix(tokens=4, projection=True, projection_size=8), False),
    (PTuningV2(tokens=3), False),
]


def _pairs() -> list[Example]:
    """Pairs whose prompts and answers are shorter and longer than a window."""
    draw = np.random.default_rng(7)
    made = []
    for prompt, chosen, rejected in ((1, 4, 9), (8, 2, 3), (5, 7, 1)):
        tokens = draw.integers(3, VOCABULARY - 4, prompt + chosen + rejected).astype(np.int32)
        weights = np.concatenate([np.zeros(prompt), np.ones(chosen + rejected)]).astype(np.float32)
        extras = {"reference": draw.normal(-20.0, 3.0, 2)}
        made.append(Example(tokens, weights, "", extras, (chosen, rejected)))
    return made


def _step(training: Engine, pairs: list[Example]) -> tuple[float, dict[str, Tensor]]:
    training.optimizer.zero_grad()
    loss = float(training.forward_backward(pairs).loss)
    named = trainable(training.model.module)
    return loss, {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "checkpointing"), CASES, ids=[f"{m.kind}{' checkpointed' * c}" for m, c in CASES])
def test_a_shared_prompt_gives_the_gradient_of_two_rows(
    family: str, method: Method, checkpointing: bool, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    assert model.packs
    training = engine(model, method, Dpo(beta=0.5), gradient_checkpointing=checkpointing)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():  # an adapter that does nothing yet would show nothing
        for parameter in trainable(model.module).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    loss, gradients = _step(training, _pairs())
    rows = [path for pair in _pairs() for path in pair.paths()]
    packed_rows = _step(training, rows)
    model.packs = False
    padded = _step(training, _pairs())
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2
    for other_loss, expected in (packed_rows, padded):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = max(1.0, float(gradient.abs().max()))
            assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * scale, name
