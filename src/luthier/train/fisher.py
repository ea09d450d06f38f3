"""How much each weight matters for some rows: the diagonal of the Fisher information, measured before training.

F = E[(∂ log p(y|x)/∂θ)²] with tokens y that the model itself draws at each position of real texts x. Draws at different
positions are independent and their scores have the mean 0, so that the square of a whole row's gradient is an unbiased
estimate of the sum over its tokens: one backward pass for each row, and no need for one for each token.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, Example
from luthier.core.divergence import draw_tokens
from luthier.core.rundir import write_atomic
from luthier.methods.base import read_tensors
from luthier.models.causal import CausalModel
from luthier.objectives.sft import Sft
from luthier.train.engine import add_gradients


def fisher(
    model: CausalModel, trained: Mapping[str, nn.Parameter], rows: Sequence[Example], seed: int
) -> dict[str, Tensor]:
    """Return the Fisher information of a supervised token, for each number of the trained tensors, float32.

    Args:
        trained: the parameters by name; their gradients are empty before and after.
        seed: of the draws.
    """
    squares = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in trained.items()}
    tokens = 0
    was_training = model.module.training
    model.module.eval()
    try:
        for index, row in enumerate(rows):
            batch = _with_drawn_targets(model, row, zlib.crc32(f"{seed}/fisher/{index}".encode()))
            if not len(batch.targets_M):
                continue
            add_gradients(model, Sft(), [batch])
            tokens += len(batch.targets_M)
            for name, parameter in trained.items():
                if parameter.grad is not None:
                    # The gradient is of the mean over the row's tokens; of the sum it is so many times larger.
                    squares[name] += (parameter.grad.float() * len(batch.targets_M)).square()
                    parameter.grad = None
    finally:
        model.module.train(was_training)
    return {name: square / max(tokens, 1) for name, square in squares.items()}


def kept_fisher(
    model: CausalModel, trained: Mapping[str, nn.Parameter], rows: Sequence[Example], seed: int, file: Path
) -> dict[str, Tensor]:
    """Return the Fisher information, measured once: a resumed run reads it from `file`."""
    from safetensors.torch import save

    if file.is_file():
        return {name: tensor.to(model.device) for name, tensor in read_tensors(file).items()}
    found = fisher(model, trained, rows, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, save({name: tensor.contiguous().cpu() for name, tensor in found.items()}))
    return found


def _with_drawn_targets(model: CausalModel, row: Example, seed: int) -> Batch:
    batch = model.collate([row])
    with model.computing():
        targets_M = draw_tokens(model.beliefs(batch), seed)
    count = float(len(targets_M))
    return replace(batch, targets_M=targets_M, weights_M=torch.ones_like(batch.weights_M), count=count)
