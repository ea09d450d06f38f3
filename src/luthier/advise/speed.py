"""How many operations a run takes, and how long: forward and backward, by what the method trains.

A product with a matrix of p numbers takes 2p operations for each token. The gradient of its input takes as many again,
in every block above the lowest trained one; the gradient of the matrix itself as many once more, where it is trained.
Attention over a causal sequence of T tokens takes 2·A·D·T for each token, backward twice that and recomputed scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.advise.activations import Pass, kept
from luthier.advise.reach import Reach
from luthier.advise.shape import ModelShape

OPTIMIZER_BYTES = 28
"""Read and written for each trained parameter by AdamW: weight, gradient, two moments, the gradient's norm."""
PASSES = 6.0
"""How often what is kept between the passes is read or written beside the products: norms, gates, sums, copies."""


@dataclass(frozen=True)
class Speed:
    """What a device does in a second.

    Attributes:
        flops: operations of matrix products that are sustained.
        bandwidth: bytes of memory, 0 where elementwise work is part of `flops` already.
        watts: for the energy; 0 where unknown.
    """

    flops: float
    bandwidth: float = 0.0
    watts: float = 0.0


NOISE_BYTES = 64
"""What drawing the noise of one number for dropout costs on a CPU, as if it were bytes."""
LENGTH_BYTES = 24
"""DoRA adds its update to every number of a matrix, and takes the length of each row."""
DEQUANTIZE_BYTES = {4: 40, 8: 12}
"""What making one number of its bits costs, as if it were bytes: a look-up for each pair in 4 bits."""


@dataclass(frozen=True)
class Work:
    """Seconds of products, and seconds of everything that passes over memory."""

    product_seconds: float
    pass_seconds: float


def flops_per_step(shape: ModelShape, reach: Reach, one: Pass, reference: bool = False) -> float:
    """Return the operations of one micro-batch, forward and backward, without the update.

    Args:
        reference: a second model, or the same one at its start, runs forward too.
    """
    block = _block_matrices(shape)
    mean = one.tokens / max(one.sequences, 1)
    scores = 2 * shape.heads * shape.head_size * mean * (2 if shape.is_encoder else 1)
    forward = shape.layers * (2 * block + scores) * one.tokens
    depth = shape.layers - min(reach.first_block, shape.layers)
    backward = depth * (2 * block + 2.5 * scores) * one.tokens
    if reach.matrices:
        backward += depth * 2 * block * one.tokens
    thin = sum(m.inputs + m.outputs for m in shape.matrices if m.role in reach.beside) * reach.rank
    thin += sum(2 * shape.hidden * width for width in reach.bottlenecks)
    backward += depth * 4 * thin * one.tokens
    forward += depth * 2 * thin * one.tokens
    if one.folds and reach.beside:  # the update is folded into the weight twice
        folded = sum(m.parameters for m in shape.matrices if m.role in reach.beside)
        backward += depth * 2 * 2 * reach.rank * folded
    if one.checkpointing:
        backward += depth * (2 * block + scores) * one.tokens
    head = 2 * shape.head_matrix * one.supervised
    needs_gradient = 1 if depth or reach.virtual_tokens else 0
    total = forward + backward + head * (1 + needs_gradient + (1 if reach.head else 0))
    return total + (forward + head if reference else 0)


def bytes_per_step(shape: ModelShape, reach: Reach, one: Pass, micro_batches: int, bits: int | None) -> float:
    """Return the bytes that one step moves beside its products: norms, gates, logits, gradients, folds, the update.

    Args:
        one: all of a step's tokens as one pass.
    """
    plain = replace(one, checkpointing=False)
    size = PASSES * kept(shape, reach, plain).activations * (1.5 if one.checkpointing else 1.0)
    size += PASSES * 4 * shape.vocabulary * one.supervised * (not shape.is_encoder)
    depth = shape.layers - min(reach.first_block, shape.layers)
    beside = [m for m in shape.matrices if m.role in reach.beside]
    if one.folds and reach.beside:
        size += micro_batches * depth * 16 * sum(m.parameters for m in beside)
    if one.noise:
        size += NOISE_BYTES * one.tokens * depth * sum(m.inputs for m in beside)
    if reach.lengths:
        size += micro_batches * depth * LENGTH_BYTES * sum(m.parameters for m in beside)
    if bits is not None:  # a matrix is made of its bits for each product
        size += micro_batches * (shape.layers + depth) * DEQUANTIZE_BYTES[bits] * shape.block_matrices
    if reach.matrices:
        size += micro_batches * 12 * min(reach.parameters, shape.total_parameters)
    return size + OPTIMIZER_BYTES * reach.parameters


def _block_matrices(shape: ModelShape) -> float:
    """Return the numbers that one token meets in one block."""
    chosen = shape.experts_per_token * 3 * shape.hidden * shape.expert_inner + shape.experts * shape.hidden
    return shape.block_matrices + (chosen if shape.experts else 0)
