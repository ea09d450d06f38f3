"""What each method would need in a situation: the planner's memory, and hours from operations and speed."""

from __future__ import annotations

import math
from dataclasses import replace

from luthier.advise.memory import Job, Memory, plan_memory
from luthier.advise.model_profile import sizes_of
from luthier.advise.rules.base import EVERY
from luthier.advise.settings import method_settings
from luthier.advise.shape import ModelShape
from luthier.advise.situation import GIB, Need, Situation

DEFAULT_MAX_LENGTH = 2048
"""As in run.examine: the longest sequence of a recipe that says nothing."""
_FORWARD_ONLY = ("feature_extraction", "dense_head")
_WHOLE = ("full", "ulmfit", "layers")
_CUDA_BYTES = GIB  # context, kernels, fragmentation; libraries on a processor
_CPU_BYTES = GIB // 2
_SLOWER_BY_4_BITS = 1.39
"""Raschka 2023: QLoRA's time in units of LoRA's."""


def with_needs(s: Situation) -> Situation:
    """Return the situation with what every method would need."""
    shape = sizes_of(s.model.config, s.model.name)
    return replace(s, needs={kind: need(s, kind, shape) for kind in EVERY})


def sequence_length(s: Situation) -> int:
    """Return how many tokens the longest sequence of a recipe has: as long as the rows, within what the model takes."""
    longest = max((d.longest_tokens for d in s.data), default=DEFAULT_MAX_LENGTH)
    if any(d.form == "text" for d in s.data):
        longest = DEFAULT_MAX_LENGTH
    rounded = max(64, 64 * math.ceil(longest * 1.25 / 64))
    return min(rounded, DEFAULT_MAX_LENGTH, s.model.context or DEFAULT_MAX_LENGTH)


def need(s: Situation, kind: str, shape: ModelShape) -> Need:
    """Return what a method needs with the smallest micro-batch; activations are recomputed only where it must be."""
    plain = job(s, kind)
    memory, checkpointing = plan_memory(shape, plain), False
    spare = _CUDA_BYTES if s.machine.kind == "gpu" else _CPU_BYTES
    if memory.peak_bytes + spare > 0.8 * s.machine.device_bytes:
        plain = replace(plain, gradient_checkpointing=True)
        memory, checkpointing = plan_memory(shape, plain), True
    spread = memory
    if s.machine.devices > 1:
        spread = plan_memory(shape, replace(plain, devices=s.machine.devices, placement="zero3"))
    trained = memory.trainable_parameters
    return Need(
        parts={**memory.parts, "libraries": spare},
        peak_bytes=memory.peak_bytes + spare,
        sharded_bytes=spread.peak_bytes + spare,
        checkpointing=checkpointing,
        trained=trained,
        file_bytes=_file_bytes(kind, memory),
        hours=_hours(s, kind, shape, checkpointing),
    )


def job(s: Situation, kind: str) -> Job:
    """Return the planner's job of a method here: one row of the longest kind at a time."""
    length = sequence_length(s)
    compares = s.main is not None and s.main.form == "preference"
    on_gpu = s.machine.kind == "gpu"
    return Job(
        method=kind,
        settings=method_settings(s, kind),
        tokens=2 * length if compares else length,
        sequences=2 if compares else 1,
        dtype="bfloat16" if on_gpu else "float32",
        device="cuda" if on_gpu else "cpu",
        micro_batches=2,
        optimizer="adamw",
    )


def _file_bytes(kind: str, memory: Memory) -> int:
    """Return what a version takes on disk: the whole model in 16 bits, or what was trained in 32."""
    return 2 * memory.total_parameters if kind in ("full", "ulmfit") else 4 * memory.trainable_parameters


def _hours(s: Situation, kind: str, shape: ModelShape, checkpointing: bool) -> float:
    """Return the hours for all rows and epochs: 2 operations per parameter and token forward, as many for the gradient
    of the inputs, as many again where weights are trained (Kaplan et al. 2020, arXiv:2001.08361)."""
    tokens = sum(d.tokens for d in s.data) * epochs_for(s)
    passes = 2.0 if kind in _FORWARD_ONLY else 6.0 if kind in _WHOLE else 4.0
    if checkpointing and kind not in _FORWARD_ONLY:
        passes += 2
    if kind in _FORWARD_ONLY:  # features are computed once, whatever the epochs
        tokens = sum(d.tokens for d in s.data)
    slower = _SLOWER_BY_4_BITS if kind == "qlora" else 1.0
    speed = s.machine.flops * (s.machine.devices if s.machine.devices > 1 else 1)
    return passes * min(s.model.active, shape.active_parameters) * tokens * slower / speed / 3600


def epochs_for(s: Situation) -> int:
    """Return how many times a recipe goes through the rows: few rows more often, a hundred thousand once."""
    if s.classifies:
        return 10 if s.rows <= 200 else 4 if s.rows <= 20_000 else 2
    return 3 if s.rows <= 10_000 else 2 if s.rows <= 50_000 else 1
