"""How much memory a training job needs, part by part, from closed forms alone: no torch, no weights, no GPU.

    shape = read_shape(Path("Llama-2-7b"))
    plan_memory(shape, Job(method="qlora", tokens=2048, device="cuda", dtype="bfloat16")).peak_bytes

Numbers of bytes for each parameter: weights 4, or 2 where they are frozen (or beside float32 masters); gradients 4;
AdamW's moments 8 (float32) or 2 (8 bits). ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054, figure 1) counts weights and
gradients in 16 bits with a float32 copy among the optimizer's 12; that is `mixed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from luthier.advise.activations import Kept, Pass, kept
from luthier.advise.overhead import NONE, Holes, Overhead
from luthier.advise.reach import Reach, reach_of
from luthier.advise.shape import ModelShape
from luthier.core.heap import NARROWEST

Placement = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
Offload = Literal["none", "optimizer", "all"]
KEPT_BELOW = 16_384
"""As in models.quantized: matrices of fewer numbers keep their precision."""
_MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.0 + 8 / 256, "paged_adamw": 8.0, "paged_adamw_8bit": 2.0 + 8 / 256}
"""Bytes for each trained parameter; 8-bit moments have a float32 scale for each block of 256."""
_FREEZES_NOTHING = frozenset({"full", "ulmfit", "layers"})


@dataclass(frozen=True)
class Job:
    """What is to be trained, and how.

    Attributes:
        method: its word in a recipe; settings: the fields of it that are given.
        trainable_parameters: where they are counted already; otherwise by closed form.
        tokens: of one micro-batch; supervised: those that are learnt (None: all).
        sequences: rows in a micro-batch; longest: tokens of the longest (None: tokens / sequences).
        micro_batches: in one optimizer step of one device. From two on gradients stand beside activations.
        dtype: of the computation; frozen weights are kept in it.
        bits: of a quantised frozen base; None where it is not quantised.
        mixed: weights and gradients in 16 bits beside a float32 copy, as DeepSpeed and ZeRO's tables count.
        rollout_sequences, rollout_tokens: answers written at once, and their longest length with the prompt (0: none).
        overhead: what libraries and the allocator take beside the tensors.
        copies: further copies of the trained tensors (a reference kept in memory).
        offload: what lies in the host's memory: the optimizer's part, or weights and gradients too.
    """

    method: str = "lora"
    settings: Mapping[str, object] = field(default_factory=dict)
    objective: str = "sft"
    trainable_parameters: int | None = None
    head_parameters: int = 0
    tokens: int = 2048
    supervised: int | None = None
    sequences: int = 1
    longest: int | None = None
    micro_batches: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    bits: Literal[4, 8] | None = None
    double_quantization: bool = True
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    mixed: bool = False
    devices: int = 1
    placement: Placement = "single"
    offload: Offload = "none"
    device: Literal["cpu", "cuda"] = "cpu"
    overhead: Overhead = NONE
    rollout_sequences: int = 0
    rollout_tokens: int = 0
    copies: int = 0

    @property
    def base_bits(self) -> Literal[4, 8] | None:
        """Bits of the base: as said, or as the method's settings say."""
        if self.method != "qlora":
            return self.bits
        bits = self.settings.get("bits", self.bits or 4)
        return 8 if bits == 8 else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the moment when most is needed.

    Attributes:
        parts: by name, in the order in which people ask for them.
        host: what lies in the host's memory instead, by name.
        phases: the whole at each stage of a run: loading, the first and all later steps, the update, saving.
        trainable_parameters: that are trained; total_parameters: of the base model.
        resident_bytes: what stays from step to step.
        holes, kept_bytes: of which kind the heap is, and what a micro-batch would keep without checkpointing.
    """

    parts: dict[str, int]
    host: dict[str, int]
    phases: dict[str, int]
    trainable_parameters: int
    total_parameters: int
    resident_bytes: int = 0
    holes: Holes = "frozen"
    kept_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())

    @property
    def host_bytes(self) -> int:
        """What lies in the host's memory."""
        return sum(self.host.values())


def plan_memory(shape: ModelShape, job: Job) -> Memory:
    """Return the memory that a job needs on each of its devices."""
    reach = reach_of(job.method, job.settings, shape)
    trained = (job.trainable_parameters if job.trainable_parameters is not None else reach.parameters) or 0
    trained += job.head_parameters if job.trainable_parameters is None else 0
    states = _states(shape, reach, job, trained)
    passes = kept(shape, reach, pass_of(shape, job))
    parts, host = _placed(states, shape, job)
    gradients = parts.pop("gradients", 0)
    resident = sum(parts.values())
    moving = _step(passes, gradients, reach, shape, job)
    cache = kv_cache(shape, job) if job.rollout_sequences else 0
    holes, plain = _holes(shape, reach, job)
    extra = job.overhead.bytes_of(holes, plain)
    phases = {
        "step": resident + sum(moving.values()) + extra,
        "rollouts": resident + cache + extra if cache else 0,
    }
    if phases["rollouts"] > phases["step"]:
        parts |= {"kv_cache": cache}
    else:
        parts |= moving
    parts["overhead"] = extra
    return Memory(
        {n: b for n, b in parts.items() if b}, host, phases, trained, shape.total_parameters, resident, holes, plain
    )


def _holes(shape: ModelShape, reach: Reach, job: Job) -> tuple[Holes, int]:
    """Return of which kind the heap's holes are, and what they grow with."""
    one = pass_of(shape, job)
    if job.base_bits is not None:
        return "returned", kept(shape, reach, one).activations
    plain = kept(shape, reach, replace(one, checkpointing=False)).activations
    if reach.beside and not one.folds:
        kind = "beside"
    elif job.gradient_checkpointing:
        kind = "recomputed"
    else:
        kind = "trained" if reach.matrices else "frozen"
    if shape.hidden >= NARROWEST:
        return cast("Holes", kind), plain
    if kind == "frozen" and job.micro_batches == 1:
        return "narrow_once", plain
    return cast("Holes", f"narrow_{kind}"), plain


def pass_of(shape: ModelShape, job: Job) -> Pass:
    """Return a job's micro-batch as `activations` sees it."""
    freezes = job.method not in _FREEZES_NOTHING
    in_16 = job.dtype == "bfloat16"
    drops = bool(job.settings.get("dropout"))
    apart = drops or bool(job.settings.get("dora"))
    is_transposed = shape.family == "gpt2"
    supervised = job.tokens if job.supervised is None else job.supervised
    return Pass(
        tokens=job.tokens,
        supervised=supervised,
        sequences=job.sequences,
        longest=job.longest or -(-job.tokens // max(job.sequences, 1)),
        compute=2 if in_16 else 4,
        residual=2 if in_16 and freezes else 4,
        checkpointing=job.gradient_checkpointing,
        folds=not in_16 and not apart and not is_transposed,
        noise=0 if not drops else 1 if job.device == "cuda" else 4,
    )


def quantized_bytes(shape: ModelShape, bits: int, double: bool) -> tuple[int, int]:
    """Return (bytes of codes, bytes of the constants that give them back) of a model's quantised matrices.

    4 bits: a scale for each block of 64, in float32 (0.5 bits), or quantised itself: 8 bits for each block and a
    float32 for 256 blocks, 8/64 + 32/(64·256) = 0.127 bits (QLoRA, arXiv:2305.14314, section 3). 8 bits: a float32 for
    each row.
    """
    codes = constants = 0.0
    for matrix in shape.matrices:
        if matrix.parameters < KEPT_BELOW:
            continue
        codes += matrix.parameters * bits / 8
        if bits == 8:
            constants += 4 * matrix.outputs
        else:
            constants += matrix.parameters / 64 * (1 + 4 / 256 if double else 4)
    return round(codes * shape.layers), round(constants * shape.layers)


def quantized_parameters(shape: ModelShape) -> int:
    """Return how many parameters a quantised base keeps in few bits."""
    return shape.layers * sum(m.parameters for m in shape.matrices if m.parameters >= KEPT_BELOW)


def kv_cache(shape: ModelShape, job: Job) -> int:
    """Return the bytes of keys and values that answers hold while they are written."""
    each = 2 * shape.layers * shape.kv_heads * shape.head_size * (2 if job.dtype == "bfloat16" else 4)
    return each * job.rollout_sequences * job.rollout_tokens


def _states(shape: ModelShape, reach: Reach, job: Job, trained: int) -> dict[str, float]:
    """Return the bytes of what stays from step to step, and of the gradients, before they are cut over devices."""
    freezes = job.method not in _FREEZES_NOTHING
    stored = 2 if job.dtype == "bfloat16" and (freezes or job.mixed) else 4
    few, constants = 0, 0
    codes = 0
    if job.base_bits is not None:
        codes, constants = quantized_bytes(shape, job.base_bits, _is_double(job))
        few = quantized_parameters(shape)
    inside = 0 if freezes else trained
    weights = codes + stored * (shape.total_parameters - few)
    beside = (trained - inside) * (2 if job.mixed else 4) if freezes else 0
    gradient = 2 if job.mixed else 4
    moments = _MOMENTS.get(job.optimizer, 8.0) + (4 if job.mixed else 0)
    return {
        "weights": weights,
        "quantization_constants": constants,
        "trained": beside,
        "gradients": gradient * trained,
        "optimizer": moments * trained,
        "copies": 4 * trained * job.copies,
    }


def _is_double(job: Job) -> bool:
    return bool(job.settings.get("double_quantization", job.double_quantization))


def _placed(states: Mapping[str, float], shape: ModelShape, job: Job) -> tuple[dict[str, int], dict[str, int]]:
    """Return (what each device holds, what its share of the host's memory holds)."""
    cut = {"ddp": (), "single": (), "zero1": ("optimizer",), "zero2": ("optimizer", "gradients")}.get(
        job.placement, ("optimizer", "gradients", "weights", "quantization_constants", "trained", "copies")
    )
    n = max(job.devices, 1)
    parts = {name: round(size / n if name in cut else size) for name, size in states.items()}
    host: dict[str, int] = {}
    if job.offload != "none":
        away = {"optimizer"} if job.offload == "optimizer" else {"optimizer", "weights", "gradients", "trained"}
        host = {name: parts.pop(name) for name in list(parts) if name in away and parts[name]}
    if (job.placement in ("zero3", "fsdp2") and n > 1) or job.offload == "all":
        # Two blocks stand in full: the one at work and the one that is fetched, or the embedding.
        stored = states["weights"] / max(shape.total_parameters, 1)
        parts["gathered"] = round(stored * max(2 * shape.block_parameters, shape.embeddings))
    return parts, host


def _step(passes: Kept, gradients: int, reach: Reach, shape: ModelShape, job: Job) -> dict[str, int]:
    """Return the parts that a step adds at its highest.

    Gradients grow as activations go, block by block, so that the most stands at one of the two ends, unless gradients
    of earlier micro-batches are there from the start.
    """
    early = gradients if job.micro_batches > 1 else 0
    if reach.head and job.micro_batches == 1:  # the head's gradient is made in the forward pass
        early = min(gradients, 4 * shape.head_matrix)
    forward = early + passes.total
    end = gradients + passes.block + passes.work
    if end > forward:
        return {"gradients": gradients, "activations": passes.block, "workspace": passes.work}
    backward = passes.block + passes.work > passes.head + passes.logits
    return {
        "gradients": early,
        "activations": passes.activations + (passes.block if backward else passes.head),
        "logits": 0 if backward else passes.logits,
        "workspace": passes.work if backward else 0,
    }
