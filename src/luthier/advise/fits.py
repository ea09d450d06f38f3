"""What a card can do with a model: each usual method as it is, cut over several cards, or with parts on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from luthier.advise.cards import Card
from luthier.advise.memory import Job, Memory, plan_memory
from luthier.advise.overhead import SHIPPED
from luthier.advise.shape import ModelShape

CONTEXT_BYTES = 3 * 2**28
"""What a CUDA context and its libraries take beside torch's tensors: 0.75 GiB."""
METHODS = ("full", "lora", "qlora")
GB = 1e9


@dataclass(frozen=True)
class Fit:
    """One method on one card.

    Attributes:
        how: plain, or what has to be cut or lie in the host's memory.
        sum: the parts that make the peak, in GB.
        host_bytes: of the host's memory, for each device.
    """

    card: str
    method: str
    fits: bool
    peak_bytes: int
    how: str
    sum: str
    host_bytes: int


def what_fits(shape: ModelShape, devices: int, card: Card, tokens: int = 2048) -> list[Fit]:
    """Return for each usual method the lightest way that fits a card, or the lightest there is."""
    return [_lightest(shape, devices, card, method, tokens) for method in METHODS]


def _lightest(shape: ModelShape, devices: int, card: Card, method: str, tokens: int) -> Fit:
    fit = None
    for how, job in _ways(devices, method, tokens):
        memory = plan_memory(shape, job)
        peak = memory.peak_bytes + CONTEXT_BYTES
        fit = Fit(
            f"{devices} × {card.name}" if devices > 1 else card.name,
            method,
            peak <= card.memory_bytes,
            peak,
            how,
            _sum(memory),
            memory.host_bytes,
        )
        if fit.fits:
            return fit
    assert fit is not None
    return fit


def _ways(devices: int, method: str, tokens: int) -> Iterator[tuple[str, Job]]:
    """Yield ways to run a method, from the plain one to the one that takes least of a card."""
    plain = Job(
        method=method,
        tokens=tokens,
        micro_batches=2,
        dtype="bfloat16",
        device="cuda",
        gradient_checkpointing=True,
        mixed=method == "full",
        overhead=SHIPPED["cuda"],
    )
    if devices > 1:
        yield "a copy on each card", replace(plain, devices=devices, placement="ddp")
        yield f"cut over {devices} cards (zero3)", replace(plain, devices=devices, placement="zero3")
    else:
        yield "plain", plain
    cut = replace(plain, devices=devices, placement="zero3") if devices > 1 else plain
    if method == "full":
        yield "optimizer in 8 bits", replace(cut, optimizer="adamw_8bit")
        yield "optimizer on the host", replace(cut, offload="optimizer")
    yield "all but one block on the host", replace(cut, offload="all")


def _sum(memory: Memory) -> str:
    parts = [f"{name.replace('_', ' ')} {size / GB:.1f}" for name, size in memory.parts.items() if size >= 0.05 * GB]
    host = f"; on the host {memory.host_bytes / GB:.1f}" if memory.host_bytes else ""
    return " + ".join([*parts, f"context {CONTEXT_BYTES / GB:.1f}"]) + host
