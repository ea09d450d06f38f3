"""What this engine keeps between the forward and the backward pass: a closed form, block by block.

Written after what autograd saves (a test counts it): a norm's input, and in 16 bits its normalised value where its
weight is trained; the input of a matrix that is trained or has an update beside it; queries, keys, values and the
output of the fused attention kernel; gate and up of a gated feed-forward, whose other two tensors are made again.
Nothing of size tokens × tokens and nothing of size tokens × vocabulary exists.

Shape legend: N tokens of a micro-batch, M supervised ones, H hidden size, F inner size, A heads, K key/value heads,
D head size. All results are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.advise.reach import Reach
from luthier.advise.shape import Matrix, ModelShape

CHUNK_BYTES = 8 * 2**20
CHUNK_ROWS = 64
"""As in core.logps: logits are made in chunks of so many bytes, and at least so many rows."""

TRIMMED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families whose last feed-forward runs at supervised positions alone."""
_FLOAT = 4


@dataclass(frozen=True)
class Pass:
    """One micro-batch on its way through the model.

    Attributes:
        tokens: N, padding and virtual tokens included.
        supervised: M.
        sequences: rows in it.
        longest: tokens of its longest sequence.
        compute: bytes of a number in the computation (4, or 2 under autocast).
        residual: bytes of a number in the residual stream (2 where the frozen weights are kept in 16 bits).
        checkpointing: blocks are computed again in the backward pass.
        folds: LoRA's update is folded into the weight for one product (float32, no dropout, no transposed matrices).
        noise: bytes kept for each number that enters a low-rank update through dropout; 0 without.
        trims: the last feed-forward runs at supervised positions alone.
    """

    tokens: int
    supervised: int
    sequences: int = 1
    longest: int = 0
    compute: int = _FLOAT
    residual: int = _FLOAT
    checkpointing: bool = False
    folds: bool = True
    noise: int = 0
    trims: bool = True


@dataclass(frozen=True)
class Kept:
    """Bytes of one micro-batch's passes.

    Attributes:
        activations: kept between forward and backward.
        head: the final norm, and the gradient of the last hidden states, which the head makes at once.
        logits: the buffer of one chunk, beside the hidden states that it is made of.
        block: what one block adds while it runs backward: with checkpointing all that it keeps, made again.
        work: temporary tensors of one block's backward pass.
    """

    activations: int
    head: int
    logits: int
    block: int
    work: int

    @property
    def total(self) -> int:
        """The most that stands at one time."""
        return self.activations + max(self.head + self.logits, self.block + self.work)


def kept(shape: ModelShape, reach: Reach, one: Pass) -> Kept:
    """Return what a micro-batch keeps and needs."""
    depth = shape.layers - min(reach.first_block, shape.layers)
    head = _head(shape, reach, one)
    logits = 0 if shape.is_encoder else logits_buffer(shape, one)
    if depth == 0:
        return Kept(0, head, logits, 0, 0)
    whole = _attention(shape, reach, one) + _feed_forward(shape, reach, one, lean=not one.checkpointing)
    if one.checkpointing:
        # Each block's input is kept; the last one is not trimmed.
        boundaries = depth * shape.hidden * one.residual * one.tokens
        return Kept(boundaries, head, logits, whole * one.tokens, _work(shape, one) * one.tokens)
    rows = depth * one.tokens
    trimmed = one.trims and shape.family in TRIMMED and one.supervised < one.tokens
    fed = _feed_forward(shape, reach, one, lean=True)
    activations = _attention(shape, reach, one) * rows + fed * (rows - trimmed * (one.tokens - one.supervised))
    activations += _places(shape, one) * one.tokens
    activations -= _below(shape, reach, one) * one.tokens
    work = _work(shape, one)
    # The last block runs backward first, when all the others are still kept; where it is trimmed its own temporaries
    # are smaller, but by then nothing of the others is gone.
    last = work * one.supervised if trimmed else work * one.tokens
    second = work * one.tokens - whole * one.tokens if depth > 1 else 0
    return Kept(int(activations), head, logits, 0, max(last, second))


def _below(shape: ModelShape, reach: Reach, one: Pass) -> int:
    """Return bytes for each token of what the lowest block keeps not, as it stands before anything trained."""
    if reach.from_below or shape.is_encoder:
        return 0
    if reach.enters == "nothing":
        from_input = not shape.has_rms or one.residual == _FLOAT
        if reach.norms and from_input:
            return 0
        own = [m for m in shape.matrices if m.role in ("q", "k", "v", "qkv") and reach.keeps_inputs(m.role)]
        noise = one.noise * shape.hidden * len(own) if _drops(reach, one) else 0
        return _FLOAT * shape.hidden + noise  # the first norm's input wants no gradient, nor what it makes
    bare = replace(reach, bottlenecks=(), scaled=0)
    size = _attention(shape, bare, one)
    return size + _feed_forward(shape, bare, one, lean=True) if reach.enters == "feed_forward" else size


def logits_buffer(shape: ModelShape, one: Pass) -> int:
    """Return the bytes of one chunk of logits, with its copies in a computation of 16 bits, and of what it reads."""
    rows = min(max(CHUNK_ROWS, CHUNK_BYTES // (4 * shape.vocabulary)), one.supervised)
    chunks = -(-one.supervised // rows) if rows else 0
    rows = -(-one.supervised // chunks) if chunks else 0
    per_number = _FLOAT if one.compute == _FLOAT else 2 * one.compute + _FLOAT
    return rows * shape.vocabulary * per_number + one.supervised * shape.hidden * one.residual


def _attention(shape: ModelShape, reach: Reach, one: Pass) -> int:
    """Return bytes for each token: norm, projections, rotation, kernel, output."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    inputs = [m for m in shape.matrices if m.role in ("q", "k", "v", "qkv")]
    own = [m for m in inputs if reach.keeps_inputs(m.role)]
    total = _norms(shape, reach, one) + _inputs([shape.hidden] * len(own), reach, one)
    total += (queries + 2 * keys) * one.compute + queries * one.compute + _FLOAT * shape.heads
    total += _inputs([queries] if reach.keeps_inputs("o") else [], reach, one)
    if shape.head_norms:
        total += (queries + keys) * (_FLOAT + _scaled(reach.norms, one))
        total += _FLOAT * (shape.heads + shape.kv_heads)
    total += _thin(len(own) + ("o" in reach.beside), reach, one)
    total += _lengths([m for m in shape.matrices if m.role in ("q", "k", "v", "qkv", "o")], reach, one)
    total += _FLOAT * reach.scaled
    return total + _adapters(shape, reach.bottlenecks[: len(reach.bottlenecks) // 2], reach, one)


def _feed_forward(shape: ModelShape, reach: Reach, one: Pass, lean: bool) -> int:
    """Return bytes for each token: norm, inputs, and what stands between up and down."""
    total = _norms(shape, reach, one)
    total += _adapters(shape, reach.bottlenecks[len(reach.bottlenecks) // 2 :], reach, one)
    if shape.experts:
        chosen = shape.experts_per_token
        kept_inner = chosen * shape.expert_inner * one.compute
        total += 4 * kept_inner + chosen * 2 * shape.hidden * one.compute + _FLOAT * 2 * shape.experts
        if not any(m.role == "gate" for m in shape.matrices):
            return total
    entering = [m for m in shape.matrices if m.role in ("gate", "up") and reach.keeps_inputs(m.role)]
    total += _inputs([shape.hidden] * len(entering), reach, one)
    inner = shape.inner * one.compute
    keeps_down = reach.keeps_inputs("down") and not _drops(reach, one)
    if reach.keeps_inputs("down") and not keeps_down:
        total += _inputs([shape.inner], reach, one)
    if shape.is_gated:
        is_lean = lean and shape.activation == "silu"
        total += (2 if is_lean else 3) * inner
        # Lean: the input of down is made again, unless PEFT's layer keeps a copy of its own.
        total += inner if keeps_down and (not is_lean or not _shares(reach, one)) else 0
        total += 0 if is_lean else _FLOAT * reach.scaled_inner
    else:
        written_out = shape.activation == "gelu_new" and one.compute != _FLOAT
        total += (4 if written_out else 0 if shape.activation == "relu" else 1) * inner
        total += inner if keeps_down or shape.activation == "relu" else 0
        total += _FLOAT * reach.scaled_inner
    total += _lengths([m for m in shape.matrices if m.role in ("gate", "up", "down")], reach, one)
    total += _thin(len(entering) + ("down" in reach.beside), reach, one)
    return total


def _norms(shape: ModelShape, reach: Reach, one: Pass) -> int:
    """Return bytes for each token of half of a block's norms: what enters, and what a trained weight scales."""
    scaled = _scaled(shape.has_rms and reach.norms, one)
    return shape.block_norms // 2 * (shape.hidden * (_FLOAT + scaled) + _FLOAT * (1 if shape.has_rms else 2))


def _scaled(is_trained: bool, one: Pass) -> int:
    """Return bytes of a number that a trained norm weight scales: in float32 it is made again from what enters."""
    return one.residual if is_trained and one.residual != _FLOAT else 0


def _places(shape: ModelShape, one: Pass) -> int:
    """Return bytes for each token of the rotation's cosines and sines, which all blocks share."""
    rotates = shape.family != "gpt2" and not shape.is_encoder
    return 2 * shape.head_size * one.residual if rotates else 0


def _inputs(widths: Sequence[int], reach: Reach, one: Pass) -> int:
    """Return bytes for each token of what enters several matrices: one tensor, or a copy for each.

    Under autocast each has a copy in 16 bits; behind dropout each has what is left of it, and the noise.
    """
    if not widths:
        return 0
    if _drops(reach, one):
        return sum(widths) * (one.compute + one.noise)
    return widths[0] * one.compute * (1 if one.compute == _FLOAT else len(widths))


def _drops(reach: Reach, one: Pass) -> bool:
    return bool(reach.beside) and one.noise > 0


def _lengths(matrices: Sequence[Matrix], reach: Reach, one: Pass) -> int:
    """Return bytes for each token of what DoRA's lengths scale: what the matrix makes, and what the update adds."""
    if not reach.lengths:
        return 0
    return 2 * one.compute * sum(m.outputs for m in matrices if m.role in reach.beside)


def _shares(reach: Reach, one: Pass) -> bool:
    """Return whether the layers beside a matrix keep its very input, no copy."""
    return one.compute == _FLOAT or not reach.beside


def _thin(count: int, reach: Reach, one: Pass) -> int:
    """Return bytes for each token of x·Aᵀ, which layers that do not fold keep."""
    return 0 if one.folds or not reach.beside else count * reach.rank * one.compute


def _adapters(shape: ModelShape, widths: Sequence[int], reach: Reach, one: Pass) -> int:
    """Return bytes for each token of adapters: what enters, what the activation sees and makes; always float32."""
    each = _FLOAT * (1 if reach.plain else 2) + one.noise
    return sum(_FLOAT * shape.hidden + each * width for width in widths)


def _head(shape: ModelShape, reach: Reach, one: Pass) -> int:
    """Return bytes of the final norm, and of the gradient of the hidden states at supervised positions."""
    rows = one.tokens if not one.trims or shape.family not in TRIMMED or one.checkpointing else one.supervised
    if shape.is_encoder:
        return 4 * shape.hidden * _FLOAT * one.sequences
    scaled = _scaled(shape.has_rms and reach.final_norm, one)
    return rows * (shape.hidden * (_FLOAT + scaled) + _FLOAT) + one.supervised * shape.hidden * one.residual


def _work(shape: ModelShape, one: Pass) -> int:
    """Return bytes for each token of temporaries: the feed-forward's gradients, where they are largest."""
    inner = shape.experts_per_token * shape.expert_inner if shape.experts else shape.inner
    return ((4 if shape.is_gated else 3) * inner + 2 * shape.hidden) * one.compute
