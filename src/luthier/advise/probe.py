"""How fast this machine is: matrix products at a model's own shapes, and copies of memory; five seconds, kept.

What is kept is keyed by processor, threads and shapes, so that another machine with the same home measures anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from luthier.advise.overhead import cache_folder
from luthier.advise.shape import ModelShape
from luthier.advise.speed import Speed

ROWS = 512
_ALL_SECONDS = 5.0


def kept_speed(shape: ModelShape, machine: str, threads: int) -> Speed | None:
    """Return what was measured before for a model on this machine; None where nothing was."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))[_key(shape, machine, threads)]
        return Speed(float(found["flops"]), float(found["bandwidth"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(shape: ModelShape, machine: str, threads: int, seconds: float = _ALL_SECONDS) -> Speed:
    """Measure products and copies for about so many seconds, and keep the result.

    Processor time is counted, not the clock: a machine that others use as well is not slower for it.
    """
    import torch

    sizes = sorted({(m.inputs, m.outputs) for m in shape.matrices}, key=lambda pair: pair[0] * pair[1])[-4:]
    each = seconds / (len(sizes) + 1)
    work = spent = 0.0
    for inputs, outputs in sizes:
        count = sum(1 for m in shape.matrices if (m.inputs, m.outputs) == (inputs, outputs))
        x, w = torch.ones(ROWS, inputs), torch.ones(outputs, inputs)
        one = _seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w), each)
        work += count * 2 * ROWS * inputs * outputs
        spent += count * one
    source = torch.ones(4 * 2**20)
    target = torch.empty_like(source)
    copied = _seconds(lambda: target.copy_(source), each)
    speed = Speed(work / spent * threads, 2 * source.nbytes / copied)
    _keep(_key(shape, machine, threads), speed)
    return speed


def _seconds(run: Callable[[], object], budget: float) -> float:
    """Return the processor seconds of one call, the fastest of as many rounds as fit into the budget."""
    run()
    best, until = float("inf"), time.monotonic() + budget
    while True:
        started, calls = time.process_time(), 0
        while time.process_time() - started < 0.02:
            run()
            calls += 1
        best = min(best, (time.process_time() - started) / calls)
        if time.monotonic() >= until:
            return best


def _key(shape: ModelShape, machine: str, threads: int) -> str:
    sizes = sorted((m.inputs, m.outputs) for m in shape.matrices)
    return hashlib.sha256(f"{machine}/{threads}/{sizes}".encode()).hexdigest()[:16]


def _file() -> Path:
    return cache_folder() / "speed.json"


def _keep(key: str, speed: Speed) -> None:
    file = _file()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({**kept, key: {"flops": speed.flops, "bandwidth": speed.bandwidth}}, indent=2), encoding="utf-8"
        )
    except OSError:  # a home that cannot be written: measured again the next time
        return
