"""Accelerators by name: memory, speed, bandwidth and power as their makers' data sheets give them.

Speed is dense bfloat16 with float32 accumulation, in operations per second (data sheets often show twice that, with
sparsity); where a card has no bfloat16 it is float16. Power is the board's limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.advise.machine import parse_size
from luthier.core.errors import Problem, UserError, did_you_mean

UTILISATION = 0.4
"""The share of a card's peak that training of a whole model sustains (PaLM reports 0.46, Llama 3's 405B 0.38 to 0.43);
with LoRA's thin products and short sequences it is less."""


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        flops: dense bfloat16 operations per second, 0 where only the memory is known.
        bandwidth: bytes per second of its memory; watts: the board's limit; source: where the numbers are from.
    """

    name: str
    memory_bytes: int
    flops: float = 0.0
    bandwidth: float = 0.0
    watts: float = 0.0
    source: str = ""


def _card(name: str, gib: int, tera: float, gigabytes: float, watts: float, source: str) -> Card:
    return Card(name, gib * 2**30, tera * 1e12, gigabytes * 1e9, watts, source)


CARDS = {
    card.name: card
    for card in (
        _card("T4", 16, 65, 320, 70, "NVIDIA T4 data sheet (float16)"),
        _card("V100-32GB", 32, 125, 900, 300, "NVIDIA V100 data sheet, SXM2 (float16)"),
        _card("A10", 24, 125, 600, 150, "NVIDIA A10 data sheet"),
        _card("L4", 24, 121, 300, 72, "NVIDIA L4 data sheet"),
        _card("RTX-3090", 24, 71, 936, 350, "NVIDIA Ampere GA102 white paper"),
        _card("RTX-4090", 24, 165.2, 1008, 450, "NVIDIA Ada white paper"),
        _card("RTX-5090", 32, 209.5, 1792, 575, "NVIDIA RTX Blackwell white paper"),
        _card("A6000", 48, 154.8, 768, 300, "NVIDIA RTX A6000 data sheet"),
        _card("L40S", 48, 362, 864, 350, "NVIDIA L40S data sheet"),
        _card("A100-40GB", 40, 312, 1555, 400, "NVIDIA A100 data sheet, SXM"),
        _card("A100-80GB", 80, 312, 2039, 400, "NVIDIA A100 data sheet, SXM"),
        _card("H100-80GB", 80, 989, 3350, 700, "NVIDIA H100 data sheet, SXM"),
        _card("H200", 141, 989, 4800, 700, "NVIDIA H200 data sheet"),
        _card("B200", 180, 2250, 8000, 1000, "NVIDIA DGX B200 data sheet"),
        _card("MI300X", 192, 1307, 5300, 750, "AMD Instinct MI300X data sheet"),
    )
}


def card_of(text: str) -> tuple[int, Card]:
    """Return (how many, which card) of a text such as `A100-80GB`, `8xH100-80GB`, or `24GB` for any card of that size.

    Raises:
        UserError: no such card and no size.
    """
    count, _, name = text.strip().rpartition("x") if "x" in text.lower() and text[:1].isdigit() else ("1", "", text)
    known = {card.lower(): card for card in CARDS}
    if name.strip().lower() in known and count.isdigit() and int(count) > 0:
        return int(count), CARDS[known[name.strip().lower()]]
    if text.strip()[:1].isdigit():
        devices, size = parse_size(text, "--gpu")
        return devices, Card(f"any card of {size / 2**30:g} GB", size)
    remedy = f"write a size such as 24GB, or one of {', '.join(CARDS)}"
    raise UserError(Problem(f'There is no card "{text}" in the table.{did_you_mean(text, CARDS)}', "--gpu", remedy))
